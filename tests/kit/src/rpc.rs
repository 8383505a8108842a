//! A client of the node's framed JSON RPC.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use uuid::Uuid;

/// Where an RPC server listens.
#[derive(Clone, Debug)]
pub enum Server {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A byte stream to a server.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Opens a connection.
///
/// # Errors
/// When it is refused.
pub async fn connect(server: &Server) -> std::io::Result<Box<dyn Connection>> {
    Ok(match server {
        Server::Tcp(addr) => Box::new(TcpStream::connect(addr).await?),
        Server::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// A request with a fresh id.
pub fn request(method: &str, params: Value) -> Value {
    json!({ "id": Uuid::new_v4().to_string(), "method": method, "params": params })
}

/// A frame: the length as four bytes, big-endian, then the bytes.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&length.to_be_bytes(), payload].concat()
}

/// Writes a frame.
///
/// # Errors
/// When the connection fails.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), payload: &[u8]) -> std::io::Result<()> {
    stream.write_all(&frame(payload)).await
}

/// Reads a frame.
///
/// # Errors
/// When the connection fails or ends.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// One request over a connection of its own: the whole reply, as bytes.
///
/// # Errors
/// When the connection fails or ends.
pub async fn call_bytes(server: &Server, request: &Value) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(server).await?;
    send(&mut stream, request.to_string().as_bytes()).await?;
    receive(&mut stream).await
}

/// One request over a connection of its own: the reply.
///
/// # Errors
/// When the connection fails, the reply is not JSON or answers another request.
pub async fn call(server: &Server, method: &str, params: Value) -> Result<Value, String> {
    let request = request(method, params);
    let reply = call_bytes(server, &request).await.map_err(|error| error.to_string())?;
    let reply: Value = serde_json::from_slice(&reply).map_err(|error| error.to_string())?;
    if reply["id"] == request["id"] { Ok(reply) } else { Err(format!("another id than {request}: {reply}")) }
}
