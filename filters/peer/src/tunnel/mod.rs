//! The tunnel between two sidecars: a QUIC stream for each TCP connection.

pub mod header;
