//! The near ends: clients on blocking sockets that check every answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::db::wire::startup;
use crate::measure::Client;
use crate::servers::{BODY, read_frame, write_frame};

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn tcp(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(format!("a wrong answer: {what}"))
}

/// 64 bytes there and back on an open connection.
pub struct Echo(TcpStream);

impl Echo {
    /// A client of an echo server.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn connect(to: SocketAddr) -> io::Result<Box<dyn Client>> {
        Ok(Box::new(Self(tcp(to)?)))
    }
}

impl Client for Echo {
    fn call(&mut self) -> io::Result<()> {
        let sent = [7; 64];
        self.0.write_all(&sent)?;
        let mut got = [0; 64];
        self.0.read_exact(&mut got)?;
        if got == sent { Ok(()) } else { Err(wrong("other bytes came back")) }
    }
}

/// A new connection over which a byte went there and back.
pub(crate) fn opened(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = tcp(to)?;
    stream.write_all(b"x")?;
    let mut got = [0];
    stream.read_exact(&mut got)?;
    if got == *b"x" { Ok(stream) } else { Err(wrong("another byte came back")) }
}

/// A new connection and one byte there and back.
pub struct Connect(SocketAddr);

impl Connect {
    /// A client of an echo server.
    ///
    /// # Errors
    /// Never.
    pub fn connect(to: SocketAddr) -> io::Result<Box<dyn Client>> {
        Ok(Box::new(Self(to)))
    }
}

impl Client for Connect {
    fn call(&mut self) -> io::Result<()> {
        let stream = opened(self.0)?;
        // The client closes first, and without this every port would rest for a minute.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    }
}

/// Sends bytes to a [`sink`](crate::servers::sink) until it has taken them all.
///
/// # Errors
/// When the connection fails.
pub fn send_bulk(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = tcp(to)?;
    let chunk = vec![7; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let piece =
            chunk.get(..usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len())).unwrap_or_default();
        stream.write_all(piece)?;
        left -= piece.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut done = Vec::new();
    stream.read_to_end(&mut done)?;
    if done == b"!" { Ok(()) } else { Err(wrong("no end")) }
}

const GET: &[u8] = b"GET /health HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\n\r\n";

/// HTTP/1.1 on one connection.
pub struct HttpKept {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl HttpKept {
    /// A client that keeps its connection.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn connect(to: SocketAddr) -> io::Result<Box<dyn Client>> {
        Ok(Box::new(Self { stream: tcp(to)?, buffer: Vec::with_capacity(4096) }))
    }
}

impl Client for HttpKept {
    fn call(&mut self) -> io::Result<()> {
        self.stream.write_all(GET)?;
        read_reply(&mut self.stream, &mut self.buffer)
    }
}

/// HTTP/1.1 with a connection for each request, which is all that the node itself can do.
pub struct HttpOnce(SocketAddr);

impl HttpOnce {
    /// A client that makes a connection for each request.
    ///
    /// # Errors
    /// Never.
    pub fn connect(to: SocketAddr) -> io::Result<Box<dyn Client>> {
        Ok(Box::new(Self(to)))
    }
}

impl Client for HttpOnce {
    fn call(&mut self) -> io::Result<()> {
        let mut stream = tcp(self.0)?;
        stream.write_all(GET)?;
        read_reply(&mut stream, &mut Vec::with_capacity(1024))?;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    }
}

/// Reads a reply with [`BODY`]; takes as many bytes as its head says.
fn read_reply(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend(chunk.get(..length).unwrap_or_default());
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        if !buffer.starts_with(b"HTTP/1.1 200") {
            return Err(wrong(&String::from_utf8_lossy(buffer.get(..end).unwrap_or_default())));
        }
        let body = buffer.get(end + 4..).unwrap_or_default();
        if body.len() >= BODY.len() {
            return if body.starts_with(BODY) { Ok(()) } else { Err(wrong("another body")) };
        }
    }
}

/// Where an RPC server is.
#[derive(Clone)]
pub enum RpcServer {
    /// The node's own, one call a connection.
    Unix(PathBuf),
    /// The sidecar's, over TCP, on a kept connection.
    Kept(SocketAddr),
    /// A proxy of bytes: over TCP, one call a connection.
    Once(SocketAddr),
}

/// Framed JSON RPC.
pub struct Rpc {
    server: RpcServer,
    kept: Option<TcpStream>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Rpc {
    /// A client.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn connect(server: &RpcServer) -> io::Result<Box<dyn Client>> {
        let kept = match server {
            RpcServer::Kept(to) => Some(tcp(*to)?),
            RpcServer::Unix(_) | RpcServer::Once(_) => None,
        };
        Ok(Box::new(Self { server: server.clone(), kept }))
    }
}

impl Client for Rpc {
    fn call(&mut self) -> io::Result<()> {
        // A UUID in form; the clients of this benchmark put it first.
        let id = format!(
            "00000000-0000-4000-8000-{:012x}",
            NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff_ffff
        );
        let request = format!(r#"{{"id":"{id}","method":"get_status","params":{{}}}}"#);
        let reply = match (&self.server, &mut self.kept) {
            (_, Some(stream)) => exchange(stream, request.as_bytes())?,
            (RpcServer::Unix(path), None) => exchange(&mut unix(path)?, request.as_bytes())?,
            (RpcServer::Kept(to) | RpcServer::Once(to), None) => {
                exchange(&mut tcp(*to)?, request.as_bytes())?
            }
        };
        let right = reply.windows(id.len()).any(|part| part == id.as_bytes())
            && reply.windows(9).any(|part| part == br#""peers":2"#);
        if right { Ok(()) } else { Err(wrong(&String::from_utf8_lossy(&reply))) }
    }
}

fn unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> io::Result<Vec<u8>> {
    write_frame(stream, request)?;
    read_frame(stream)
}

/// A PostgreSQL session for what has to be asked besides a load.
pub struct Postgres(TcpStream);

impl Postgres {
    /// Opens a session without a password, in the database that is named as the user.
    ///
    /// # Errors
    /// When the server cannot be reached or does not let the user in.
    pub fn connect(to: SocketAddr, user: &str) -> io::Result<Self> {
        let mut stream = tcp(to)?;
        stream.write_all(&startup(user, user))?;
        read_until_ready(&mut stream)?;
        Ok(Self(stream))
    }

    /// Runs one simple query: the first column of its last row.
    ///
    /// # Errors
    /// When the server gives one or the connection fails.
    pub fn query(&mut self, sql: &str) -> io::Result<String> {
        let length = u32::try_from(sql.len() + 5).map_err(io::Error::other)?;
        self.0.write_all(&[b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat())?;
        read_until_ready(&mut self.0)
    }
}

/// Reads messages up to ReadyForQuery; gives the first column of the last DataRow.
fn read_until_ready(stream: &mut impl Read) -> io::Result<String> {
    let (mut buffer, mut chunk, mut at, mut column) = (Vec::new(), [0; 8192], 0, String::new());
    loop {
        while let Some(header) = buffer.get(at..at + 5) {
            let header: [u8; 5] = header.try_into().map_err(io::Error::other)?;
            let [tag, length @ ..] = header;
            let end = at + 1 + u32::from_be_bytes(length) as usize;
            let Some(body) = buffer.get(at + 5..end) else { break };
            match tag {
                b'Z' => return Ok(column),
                b'E' => return Err(wrong(&String::from_utf8_lossy(body))),
                b'R' if body != [0; 4] => return Err(wrong("the server asks for a password")),
                // Int16 number of columns, Int32 length, value.
                b'D' => column = String::from_utf8_lossy(body.get(6..).unwrap_or_default()).into_owned(),
                _ => {}
            }
            at = end;
        }
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend(chunk.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::servers;

    fn works(mut client: Box<dyn Client>) {
        for _ in 0..3 {
            client.call().unwrap();
        }
    }

    #[test]
    fn clients_and_servers_understand_each_other() {
        let echo = servers::echo(Ipv4Addr::LOCALHOST.into()).unwrap();
        works(Echo::connect(echo).unwrap());
        works(Connect::connect(echo).unwrap());
        works(HttpKept::connect(servers::http_clean().unwrap()).unwrap());
        works(HttpOnce::connect(servers::http_node().unwrap()).unwrap());
        let (sink, taken) = servers::sink(Ipv4Addr::LOCALHOST.into()).unwrap();
        send_bulk(sink, 1_000_001).unwrap();
        assert_eq!(taken.load(Ordering::Relaxed), 1_000_001);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        servers::rpc(&path).unwrap();
        works(Rpc::connect(&RpcServer::Unix(path)).unwrap());
    }

    #[test]
    fn a_kept_connection_of_the_node_gives_no_second_answer() {
        let mut client = HttpKept::connect(servers::http_node().unwrap()).unwrap();
        client.call().unwrap();
        assert!(client.call().is_err());
    }

    #[test]
    fn messages_of_postgresql_are_read_in_any_pieces() {
        let stream = b"T\0\0\0\x06\0\0D\0\0\0\x0c\0\x01\0\0\0\x0242C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                (&mut self.0).take(1).read(into)
            }
        }
        assert_eq!(read_until_ready(&mut Drip(stream)).unwrap(), "42");
        assert_eq!(read_until_ready(&mut &stream[..]).unwrap(), "42");
        assert!(read_until_ready(&mut &stream[..10]).is_err());
    }
}
