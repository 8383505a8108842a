//! The far ends: servers that cost as little as possible, so that the difference between two ways is the ways'.
//!
//! Each runs on threads of its own in this process and ends with it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server's handling of one connection.
type Handler<S> = fn(S) -> io::Result<()>;

fn tcp(handler: Handler<TcpStream>) -> io::Result<SocketAddr> {
    tcp_on(Ipv4Addr::LOCALHOST.into(), handler)
}

fn tcp_on(
    ip: IpAddr,
    handler: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handler = handler.clone();
            std::thread::spawn(move || {
                // A client that has enough closes; that is no failure.
                let _ = stream.set_nodelay(true).and_then(|()| handler(stream));
            });
        }
    });
    Ok(address)
}

/// Sends back what it gets.
///
/// # Errors
/// When nothing can be bound.
pub fn echo(ip: IpAddr) -> io::Result<SocketAddr> {
    tcp_on(ip, |mut stream: TcpStream| send_back(&mut stream))
}

/// Takes bytes until the client has sent all, then sends one byte back. With the number of bytes taken so far, of all clients.
///
/// # Errors
/// When nothing can be bound.
pub fn sink(ip: IpAddr) -> io::Result<(SocketAddr, Arc<AtomicU64>)> {
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    let at = tcp_on(ip, move |mut stream: TcpStream| {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return stream.write_all(b"!");
            }
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    })?;
    Ok((at, taken))
}

/// What a client of [`moody`] begins with that will not be heard.
pub const DEAF: &[u8] = b"d";

/// Sends back what it gets, but reads nothing more from a client that begins with [`DEAF`].
///
/// # Errors
/// When nothing can be bound.
pub fn moody(ip: IpAddr) -> io::Result<SocketAddr> {
    tcp_on(ip, |mut stream: TcpStream| {
        let mut first = [0];
        stream.read_exact(&mut first)?;
        if first == *DEAF {
            // Until the client gives up.
            let mut events = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::empty())];
            rustix::event::poll(&mut events, None)?;
            return Ok(());
        }
        stream.write_all(&first)?;
        send_back(&mut stream)
    })
}

fn send_back(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

/// The body of every HTTP answer.
pub const BODY: &[u8] = br#"{"status":"healthy","synced":true,"peers":2}"#;

/// An HTTP/1.1 server as it should be: well-formed replies, connections kept.
///
/// # Errors
/// When nothing can be bound.
pub fn http_clean() -> io::Result<SocketAddr> {
    tcp(|stream| {
        let reply = [&head()[..], BODY].concat();
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        while skip_head(&mut reader)? {
            stream.write_all(&reply)?;
        }
        Ok(())
    })
}

/// An HTTP server with the node's habits: 24 bytes after the body, one request a connection.
///
/// # Errors
/// When nothing can be bound.
pub fn http_node() -> io::Result<SocketAddr> {
    tcp(|stream| {
        let reply = [&head()[..], BODY, b"Connection: keep-alive\r\n"].concat();
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        if skip_head(&mut reader)? {
            stream.write_all(&reply)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            while reader.read(&mut [0; 1024])? > 0 {}
        }
        Ok(())
    })
}

fn head() -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", BODY.len())
        .into_bytes()
}

/// Reads to the end of a request's head; false at the end of the stream.
fn skip_head(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if line == b"\r\n" {
            return Ok(true);
        }
    }
}

/// The framed RPC of the node over a Unix socket: one request a connection, then the server closes.
///
/// # Errors
/// When nothing can be bound.
pub fn rpc(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_rpc(&mut stream));
        }
    });
    Ok(())
}

/// The same over TCP.
///
/// # Errors
/// When nothing can be bound.
pub fn rpc_tcp() -> io::Result<SocketAddr> {
    tcp(|mut stream| answer_rpc(&mut stream))
}

fn answer_rpc(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let request = read_frame(stream)?;
    // The id is where the clients of this benchmark put it.
    let id = request.get(7..43).unwrap_or_default();
    let reply = [br#"{"id":""#, id, br#"","result":{"peers":2},"error":null}"#].concat();
    write_frame(stream, &reply)
}

/// Reads a frame: four bytes of length, big-endian, then the bytes.
///
/// # Errors
/// When the stream ends or the length is beyond what this benchmark sends.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > 1 << 20 {
        return Err(io::Error::other("a frame of more than 1 MiB"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes a frame in one piece.
///
/// # Errors
/// When the stream is closed.
pub fn write_frame(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat())
}
