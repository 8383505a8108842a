//! The whole listener on real sockets, with programs that do what programs do.

mod binary;
mod http;
mod limits;

use std::path::PathBuf;

use bytes::BytesMut;
use qudag_core::offload::{
    Content, Decoder, Edition, HEADER, Header, Key, Limits, Operation, PREAMBLE, Reply, Signature,
    encode_batch,
};
use qudag_filter_api::Address;
use qudag_filter_common::testing::{self, Names, PATIENCE, nowhere};
use qudag_filter_common::{Stream, connect};
use qudag_mldsa::testing::{Sample, signatures};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::CryptoListener;

/// A signature of the library that QuDAG signs with.
#[derive(Clone)]
pub(crate) struct Signed {
    pub(crate) key: Vec<u8>,
    pub(crate) message: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl Signed {
    pub(crate) fn all() -> Vec<Self> {
        let all = signatures().map(|Sample { key, message, signature }| Self {
            key: key.to_vec(),
            message: message.to_vec(),
            signature: signature.to_vec(),
        });
        all.collect()
    }

    fn one() -> Self {
        Self::all().remove(1)
    }

    pub(crate) fn damaged(mut self) -> Self {
        self.signature[7] ^= 1;
        self
    }

    fn check(&self) -> Signature<&[u8]> {
        Signature {
            key: Key::Public(&self.key),
            edition: Edition::Draft,
            content: Content::Message { context: &[], message: &self.message },
            signature: &self.signature,
        }
    }
}

/// A listener with its chain, on a Unix socket.
struct Sidecar {
    inner: testing::Sidecar<CryptoListener>,
    _folder: TempDir,
}

impl Sidecar {
    /// The settings as in YAML.
    async fn start(filters: Value, mut listener: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bind: PathBuf = folder.path().join("crypto.sock");
        listener["bind"] = format!("unix:{}", bind.display()).into();
        let inner = testing::Sidecar::start(nowhere(), listener, filters).await;
        Self { inner, _folder: folder }
    }

    async fn plain() -> Self {
        Self::start(json!({}), json!({})).await
    }

    async fn connect(&self) -> Stream {
        let address: &Address = &self.inner.addresses[0];
        connect(address, &Names::default(), PATIENCE).await.unwrap()
    }

    async fn client(&self) -> Client {
        let mut client = Client { stream: self.connect().await, received: BytesMut::new() };
        client.send(&PREAMBLE).await;
        client
    }

    /// A client that is welcome.
    async fn welcome(&self) -> Client {
        let mut client = self.client().await;
        let reply = client.reply().await;
        assert!(matches!(reply, Some((0, Reply::Welcome(Limits { .. })))), "{reply:?}");
        client
    }
}

struct Client {
    stream: Stream,
    received: BytesMut,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn ask<O: Operation>(&mut self, id: u32, operations: &[O]) {
        self.send(&encoded(id, operations)).await;
    }

    /// The next reply with its id; `None` at the end of the connection.
    async fn reply(&mut self) -> Option<(u32, Reply)> {
        let decoder = Decoder::new(1 << 20);
        let read = async {
            loop {
                if let Some(frame) = decoder.decode(&mut self.received).unwrap() {
                    let reply = Reply::read(&frame.header, &frame.body).unwrap();
                    return Some((frame.header.id, reply));
                }
                if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                    assert!(self.received.is_empty(), "the connection ended within a frame");
                    return None;
                }
            }
        };
        timeout(PATIENCE, read).await.expect("a reply in time")
    }

    /// The code and the text of the error that comes next, with its id.
    async fn error(&mut self) -> (u32, &'static str, String) {
        match self.reply().await {
            Some((id, Reply::Error(refusal))) => (id, refusal.code.name(), refusal.message),
            other => panic!("{other:?}"),
        }
    }
}

fn encoded<O: Operation>(id: u32, operations: &[O]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_batch(id, operations, &mut bytes).unwrap();
    bytes
}

/// A header with its body.
fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    header.write(&mut bytes);
    bytes.extend_from_slice(body);
    bytes
}
