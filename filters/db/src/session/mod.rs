//! Pooled sessions, sans-io.

mod lexer;
mod pins;
mod text;

pub use pins::Pins;
