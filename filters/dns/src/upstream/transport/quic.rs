//! DNS over QUIC (RFC 9250): a stream for each query.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectError, Connection, ConnectionError, Endpoint, TransportConfig, VarInt};

use super::super::message::Failure;

/// A connection without a packet for this time is over.
const IDLE: Duration = Duration::from_secs(15);
/// The length and the longest message (section 4.2).
const MAX_FRAME: usize = 2 + 65_535;
/// The error codes of section 4.3 for an end without an error.
const NO_ERROR: VarInt = VarInt::from_u32(0);

/// The configuration of connections.
pub(super) fn config(crypto: Arc<QuicClientConfig>) -> ClientConfig {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
    // Servers open no streams of their own.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(crypto);
    config.transport_config(Arc::new(transport));
    config
}

/// Our end of a connection, which has a socket of its own. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Quic {
    connection: Connection,
    /// Drives the socket.
    _endpoint: Endpoint,
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.connection.close(NO_ERROR, b"");
    }
}

impl Quic {
    /// Connects.
    pub(super) async fn new(server: SocketAddr, name: &str, config: ClientConfig) -> Result<Self, Failure> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let endpoint = Endpoint::client(any).map_err(Failure::Network)?;
        let connecting = endpoint.connect_with(config, server, name).map_err(|why| match why {
            ConnectError::InvalidServerName(name) => {
                Failure::Tls(format!("{name} cannot be in a certificate"))
            }
            why => Failure::Network(io::Error::other(why)),
        })?;
        let connection = connecting.await.map_err(|why| match why {
            // Section 20.1 of RFC 9000: an alert of TLS is a transport error from 0x100 on.
            ConnectionError::TransportError(why) if u64::from(why.code) >= 0x100 => {
                Failure::Tls(why.to_string())
            }
            ConnectionError::ConnectionClosed(why) => Failure::Tls(why.to_string()),
            why => Failure::Network(why.into()),
        })?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Asks. The message has id 0 (section 4.2.1).
    pub(super) async fn exchange(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(|_| Failure::Closed)?;
        // A query has less than 512 bytes.
        let length = (message.len() as u16).to_be_bytes();
        send.write_all(&[&length, message].concat()).await.map_err(|_| Failure::Closed)?;
        send.finish().map_err(|_| Failure::Closed)?;
        let frame = receive.read_to_end(MAX_FRAME).await.map_err(|_| Failure::Closed)?;
        match frame.split_first_chunk::<2>() {
            Some((length, message)) if usize::from(u16::from_be_bytes(*length)) == message.len() => {
                Ok(message.to_vec())
            }
            // The server reset the stream or sent half of a message.
            _ => Err(Failure::Closed),
        }
    }
}
