//! The ways to a server.
//!
//! hickory-net has all of these transports, but takes and gives messages that it has read and written itself: a reply that its parser
//! does not understand is dropped, whatever the client could do with it, and a query is encoded anew at each hop of its futures. Its
//! multiplexer knows neither whether a connection is still alive nor how many queries wait on it. So UDP, TCP and TLS (tokio,
//! tokio-rustls), HTTP/2 (hyper) and QUIC (quinn) are driven here, and the bytes of a reply stay what the server sent.

mod framed;
mod https;
mod pool;
mod quic;
pub(super) mod tls;
pub(super) mod udp;

pub(super) use pool::{Pool, Target};
