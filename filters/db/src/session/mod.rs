//! Pooled sessions, sans-io.

mod cancel;
mod client;
mod lexer;
mod model;
mod parameters;
mod pins;
mod relay;
mod replies;
mod requests;
mod seen;
mod server;
mod statements;
mod text;

pub use cancel::CancelKeys;
pub use client::{BATCH, Client, Step, Violation};
pub use model::fuzz_session;
pub use parameters::Parameters;
pub use pins::Pins;
pub use replies::Down;
pub use requests::Sent;
pub use seen::Seen;
pub use server::{Server, Tidy, Unknown};
pub use statements::Texts;
pub use text::fuzz_text;
