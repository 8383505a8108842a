//! A connection on which a test sends its own messages.

use std::net::SocketAddr;

use bytes::BytesMut;
use qudag_filter_common::testing::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) struct Wire {
    stream: TcpStream,
    inbox: BytesMut,
}

impl Wire {
    /// Begins with a StartupMessage, of which the length is left out.
    pub(crate) async fn start(address: SocketAddr, startup: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Self { stream, inbox: BytesMut::new() };
        let length = u32::try_from(startup.len() + 4).unwrap();
        wire.send(&[&length.to_be_bytes()[..], startup].concat()).await;
        wire
    }

    /// With the database `postgres`.
    pub(crate) async fn login(address: SocketAddr, user: &str, options: &str) -> Self {
        let startup = format!("\0\x03\0\0user\0{user}\0database\0postgres\0options\0{options}\0\0");
        Self::start(address, startup.as_bytes()).await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next message, with its type and length; `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<BytesMut> {
        loop {
            if let Some(length) = self.inbox.get(1..5) {
                let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.inbox.len() > length {
                    return Some(self.inbox.split_to(length + 1));
                }
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next message: its type, and its body as text.
    pub(crate) async fn message(&mut self) -> (u8, String) {
        split(&self.next().await.expect("the connection ended"))
    }

    /// The messages that come until the connection ends.
    pub(crate) async fn rest(&mut self) -> Vec<(u8, String)> {
        let mut seen = Vec::new();
        while let Some(message) = self.next().await {
            seen.push(split(&message));
        }
        seen
    }
}

fn split(message: &[u8]) -> (u8, String) {
    (message[0], String::from_utf8_lossy(&message[5..]).into_owned())
}

/// The SQLSTATE of an ErrorResponse.
pub(crate) fn sqlstate(error: &str) -> &str {
    error.split('\0').find_map(|field| field.strip_prefix('C')).unwrap()
}
