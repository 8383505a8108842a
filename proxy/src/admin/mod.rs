//! The admin API: HTTP/1.1 over TCP with tokens, or over a Unix socket with peer credentials.
//!
//! A request passes, in this order: the limits of the connection (`server`), the guard (exact path, Host, Origin and
//! Sec-Fetch-Site, no body on a GET), the route and its method, who asks (`auth`), the content type and the `body`. Every
//! change is a POST; a GET changes nothing. No answer carries a CORS header, so that no other site's script can read one.

mod auth;
mod body;
pub mod client;
mod door;
mod error;
mod guard;
mod host;
mod operations;
mod routes;
mod server;
mod tap;
#[cfg(test)]
mod tests;

pub use auth::{Auth, Role};
pub use door::Door;
pub(crate) use guard::is_plain_query;
pub use operations::{Flush, Operations};
pub use server::serve;
