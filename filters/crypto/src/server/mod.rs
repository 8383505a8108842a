//! Connections of programs: the binary protocol `QDC1` and HTTP/1.1 on one socket.

mod binary;
mod calls;
mod convert;
mod http;
mod memory;
mod refusal;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use qudag_core::offload::{PREAMBLE, Reply};
use qudag_filter_api::{Chains, FilterError, FlowKey, Kind};
use qudag_filter_common::{Drain, FlowLine, Seats, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::Crypto;
use calls::{Caller, Protocol};
use memory::Memory;

pub(crate) use http::body::fuzz as fuzz_json;

/// How long a client that was refused may go on sending before its connection is closed. Closing at once would reset the connection and
/// take the refusal with it.
const FAREWELL: Duration = Duration::from_millis(500);
/// What is read at first.
const FIRST_READ: usize = 4 << 10;

/// A listening socket's connections.
pub(crate) struct Server {
    chains: Chains<Crypto>,
    connections: Seats,
    memory: Memory,
}

impl Server {
    pub(crate) fn new(chains: Chains<Crypto>) -> Self {
        Self { chains, connections: Seats::default(), memory: Memory::new() }
    }

    /// Serves one connection to its end.
    pub(crate) async fn connection(self: Arc<Self>, mut stream: Stream, drain: Drain) {
        let settings = (self.chains)().map(|lease| lease.settings);
        let listener = settings.as_ref().map(|settings| &settings.listener);
        let seat = listener.and_then(|listener| {
            self.connections.take(usize::try_from(listener.max_connections).unwrap_or(usize::MAX))
        });
        // Those who have no seat are not counted: they are gone in a moment.
        let patience =
            listener.filter(|_| seat.is_some()).map_or(FAREWELL, |listener| listener.idle_timeout.0);
        let Some((start, protocol)) = first_bytes(&mut stream, patience, &drain).await else { return };
        let client = stream.peer_addr();
        let (Some(settings), Some(_seat)) = (&settings, seat) else {
            let full = || FilterError::Overloaded("connections".into());
            let error = settings.as_ref().map_or(FilterError::Draining, |_| full());
            FlowLine::start(Crypto::NAME, client).end(error.label(), 0, 0);
            return refuse(stream, protocol, &error).await;
        };
        let caller =
            Caller::new(Arc::clone(&self.chains), protocol, program(&stream), client, self.memory.clone());
        let settings = Arc::clone(settings);
        match protocol {
            Protocol::Binary => binary::Session::new(caller, drain, stream, start, settings).run().await,
            Protocol::Http => http::serve(caller, drain, stream, start, settings).await,
        }
    }
}

/// What comes first, and which protocol it is; the preamble is taken off. `None` when the client has gone or does not say enough in time.
async fn first_bytes(stream: &mut Stream, patience: Duration, drain: &Drain) -> Option<(BytesMut, Protocol)> {
    let mut start = BytesMut::with_capacity(FIRST_READ);
    let read = async {
        loop {
            if stream.read_buf(&mut start).await.ok()? == 0 {
                return None;
            }
            if start.starts_with(&PREAMBLE) {
                let _ = start.split_to(PREAMBLE.len());
                return Some((start, Protocol::Binary));
            }
            if !PREAMBLE.starts_with(&start) {
                return Some((start, Protocol::Http));
            }
        }
    };
    tokio::select! {
        biased;
        read = timeout(patience, read) => read.ok().flatten(),
        () = drain.read_enough(true) => None,
    }
}

/// Who has connected: the process and its user on a Unix socket, otherwise the address.
fn program(stream: &Stream) -> FlowKey {
    match stream {
        Stream::Unix(unix) => match unix.peer() {
            Some(peer) => FlowKey::of(format!("unix {:?} {}", peer.pid(), peer.uid()).as_bytes()),
            None => FlowKey::of(b"unix"),
        },
        Stream::Tcp(_) => stream.peer_addr().map_or_else(|| FlowKey::of(b"tcp"), FlowKey::client),
    }
}

/// Answers a connection that is not served.
async fn refuse(mut stream: Stream, protocol: Protocol, error: &FilterError) {
    let mut reply = BytesMut::new();
    match protocol {
        Protocol::Binary => Reply::Error(refusal::binary(error)).encode(0, &mut reply),
        Protocol::Http => http::refusal(error, &mut reply),
    }
    let farewell = async {
        stream.write_all_buf(&mut reply).await?;
        close(&mut stream).await
    };
    // It is refused in any case.
    let _ = timeout(FAREWELL, farewell).await;
}

/// Ends this side and reads until the other side ends its own, so that the last reply arrives.
async fn close(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
