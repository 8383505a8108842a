//! Redis and Valkey.

pub mod resp;
