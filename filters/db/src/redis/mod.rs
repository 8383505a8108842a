//! Redis and Valkey: sessions passed through byte for byte, or pooled by batches of commands.

mod class;
mod machine;
pub mod resp;
