//! A stream that may be encrypted.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use qudag_filter_api::{Address, Host};
use qudag_filter_common::Stream;
use rustls::ServerConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::binding::end_point;
use super::settings::ServerTlsMode;
use super::tls::{ALPN, ClientTls, ServerTls, TlsError};
use crate::startup::SSL_REQUEST;

/// A stream to a client or to a server, with or without TLS. With TLS, written bytes may stay behind until the stream is flushed.
#[derive(Debug)]
pub enum SecureStream {
    /// Without TLS.
    Plain(Stream),
    /// From a client, and the hash of the certificate that it saw.
    Accepted(Box<server::TlsStream<Stream>>, Option<Arc<[u8]>>),
    /// To a server, and the hash of its certificate.
    Connected(Box<client::TlsStream<Stream>>, Option<Arc<[u8]>>),
}

/// How a client begins TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// By an SSLRequest, which was answered with `S`.
    Requested,
    /// At once, instead of asking for it.
    Direct,
    /// At once, since nothing else is expected.
    Expected,
}

impl SecureStream {
    /// The socket.
    pub fn socket(&self) -> &Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Accepted(tls, _) => tls.get_ref().0,
            Self::Connected(tls, _) => tls.get_ref().0,
        }
    }

    /// The peer's address, an IPv4-mapped one as IPv4; `None` for a Unix socket or when the peer has gone.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket().peer_addr()
    }

    /// Whether there is TLS.
    pub fn is_encrypted(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// What `tls-server-end-point` binds to (RFC 5929 section 4.1): the hash of the server's certificate, which is the sidecar's own for a
    /// client. `None` without TLS, or where no hash is defined for the certificate's signature.
    pub fn tls_server_end_point(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Accepted(_, hash) | Self::Connected(_, hash) => hash.as_deref(),
        }
    }

    /// Closes with RST, so that the peer sees a failure and not an end.
    pub fn reset(self) {
        match self {
            Self::Plain(stream) => stream.reset(),
            Self::Accepted(tls, _) => tls.into_inner().0.reset(),
            Self::Connected(tls, _) => tls.into_inner().0.reset(),
        }
    }
}

impl From<Stream> for SecureStream {
    fn from(stream: Stream) -> Self {
        Self::Plain(stream)
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Accepted(tls, _) => Pin::new(tls).poll_read(cx, buf),
            Self::Connected(tls, _) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Accepted(tls, _) => Pin::new(tls).poll_write(cx, buf),
            Self::Connected(tls, _) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Accepted(tls, _) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::Connected(tls, _) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Accepted(tls, _) => Pin::new(tls).poll_flush(cx),
            Self::Connected(tls, _) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Accepted(tls, _) => Pin::new(tls).poll_shutdown(cx),
            Self::Connected(tls, _) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Makes the handshake with a client. `read` is what was read of it already; after an SSLRequest there may be nothing, since it would not
/// be encrypted. A client that begins with TLS has to name the protocol (PostgreSQL documentation, "Protocol Flow", 54.2.10).
///
/// # Errors
/// When the client makes none in time. It was told by an alert where TLS has one.
pub async fn accept_tls(
    stream: Stream,
    read: BytesMut,
    begun: Begun,
    tls: &ServerTls,
    deadline: Instant,
) -> Result<SecureStream, TlsError> {
    if begun == Begun::Requested && !read.is_empty() {
        return Err(TlsError::Unencrypted);
    }
    let accepting = tls.current();
    let mut fed = Ok(());
    let handshake = TlsAcceptor::from(Arc::clone(&accepting.config))
        .accept_with(stream, |session| fed = feed(session, &read));
    if let Err(why) = fed {
        // One look at the socket, which sends the alert where there is room.
        let _ = timeout(Duration::ZERO, handshake).await;
        return Err(why.into());
    }
    let stream = timeout_at(deadline, handshake).await.map_err(|_| TlsError::Timeout)??;
    if begun == Begun::Direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(TlsError::Alpn);
    }
    Ok(SecureStream::Accepted(Box::new(stream), accepting.end_point.clone()))
}

/// Gives a handshake the bytes that were read before it.
fn feed(session: &mut ServerConnection, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        session.read_tls(&mut bytes)?;
        session.process_new_packets().map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    }
    Ok(())
}

/// The host of a server to which there may be TLS: not that of a Unix socket, as with libpq.
fn host_with_tls<'a>(server: &'a Address, tls: &ClientTls) -> Option<&'a Host> {
    match server {
        Address::Tcp(address) if tls.mode() != ServerTlsMode::Disable => Some(&address.host),
        _ => None,
    }
}

/// Asks a server for TLS, and makes the handshake where it has it. A Unix socket stays as it is.
///
/// # Errors
/// When there is no TLS and has to be, or the server is not to be believed.
pub async fn connect_tls(
    stream: Stream,
    server: &Address,
    tls: &ClientTls,
    deadline: Instant,
) -> Result<SecureStream, TlsError> {
    let Some(host) = host_with_tls(server, tls) else { return Ok(stream.into()) };
    timeout_at(deadline, request(stream, host, tls)).await.map_err(|_| TlsError::Timeout)?
}

async fn request(mut stream: Stream, host: &Host, tls: &ClientTls) -> Result<SecureStream, TlsError> {
    let [a, b, c, d] = SSL_REQUEST.to_be_bytes();
    stream.write_all(&[0, 0, 0, 8, a, b, c, d]).await?;
    // Nothing behind this byte is taken out of the socket, so that whatever somebody puts there is part of the handshake (CVE-2021-23222).
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if tls.mode() == ServerTlsMode::Prefer => return Ok(stream.into()),
        b'N' => return Err(TlsError::NotOffered),
        other => return Err(TlsError::Answer(other)),
    }
    handshake(stream, host, tls).await
}

/// Makes the handshake with a server that expects nothing else, where there is to be TLS. A Unix socket stays as it is.
///
/// # Errors
/// When there is none in time, or the server is not to be believed.
pub async fn connect_tls_at_once(
    stream: Stream,
    server: &Address,
    tls: &ClientTls,
    deadline: Instant,
) -> Result<SecureStream, TlsError> {
    let Some(host) = host_with_tls(server, tls) else { return Ok(stream.into()) };
    timeout_at(deadline, handshake(stream, host, tls)).await.map_err(|_| TlsError::Timeout)?
}

async fn handshake(stream: Stream, host: &Host, tls: &ClientTls) -> Result<SecureStream, TlsError> {
    let name = match host {
        Host::Ip(ip) => ServerName::from(*ip),
        Host::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "the server's name cannot be verified")
        })?,
    };
    let stream = TlsConnector::from(tls.current()).connect(name, stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let hash = certificate.and_then(|certificate| end_point(certificate));
    Ok(SecureStream::Connected(Box::new(stream), hash))
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
