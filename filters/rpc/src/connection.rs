//! Client connections: several calls at once, replies in the order of the requests.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::OptionFuture;
use metrics::counter;
use qudag_core::rpc::Codec;
use qudag_filter_api::{Chains, FilterError, Lease};
use qudag_filter_common::{Drain, FlowLine, Seats, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::request::{INVALID_REQUEST, Method, NO_ID, Request, Unreadable, parse};
use crate::{Rpc, RpcCall, RpcListener, RpcReply, refusal};

/// How long a client that was refused may go on sending before its connection is closed. Closing at once would reset the connection and
/// take the error frame with it.
const FAREWELL: Duration = Duration::from_secs(2);
/// The room for reading.
const READ: usize = 16 * 1024;

/// A listening socket's connections.
pub(crate) struct Server {
    chains: Chains<Rpc>,
    connections: Seats,
}

impl Server {
    pub(crate) fn new(chains: Chains<Rpc>) -> Self {
        Self { chains, connections: Seats::default() }
    }

    /// Serves one connection to its end.
    pub(crate) async fn connection(self: Arc<Self>, stream: Stream, drain: Drain) {
        let listener = (self.chains)().map(|lease| lease.settings.listener.clone());
        let seat = listener.as_ref().map(|listener| {
            self.connections.take(usize::try_from(listener.max_connections).unwrap_or(usize::MAX))
        });
        let mut session = Session::new(Arc::clone(&self.chains), drain, stream, listener.unwrap_or_default());
        let error = match &seat {
            Some(Some(_seat)) => None,
            Some(None) => Some(FilterError::Overloaded("connections".into())),
            None => Some(FilterError::Draining),
        };
        if let Some(error) = error {
            FlowLine::start("rpc", session.client).end(error.label(), 0, 0);
            session.refuse(refusal::reply(NO_ID, &error));
        }
        session.run().await;
    }
}

/// One client connection.
struct Session {
    chains: Chains<Rpc>,
    drain: Drain,
    client: Option<SocketAddr>,
    read: ReadHalf<Stream>,
    write: WriteHalf<Stream>,
    received: BytesMut,
    /// As of the last request.
    listener: RpcListener,
    /// More may come from the client.
    reading: bool,
    /// A request has come.
    asked: bool,
    /// What comes from the client is not looked at any more.
    refused: bool,
    /// A changing call that waits for the calls before it.
    held: Option<RpcCall>,
    /// A changing call is under way, and the calls behind it wait.
    alone: bool,
    /// In the order of the requests.
    replies: VecDeque<oneshot::Receiver<Bytes>>,
    /// The rest of the frame that is being written.
    out: BytesMut,
    /// When a request was complete or a reply moved last.
    active: Instant,
}

enum Event {
    Aborted,
    /// The drain has begun, and all is read that had been sent.
    Enough,
    Idle,
    Reply(Option<Bytes>),
    Read(io::Result<usize>),
    Written(io::Result<usize>),
}

impl Session {
    fn new(chains: Chains<Rpc>, drain: Drain, stream: Stream, listener: RpcListener) -> Self {
        let client = stream.peer_addr();
        let (read, write) = split(stream);
        Self {
            chains,
            drain,
            client,
            read,
            write,
            received: BytesMut::new(),
            listener,
            reading: true,
            asked: false,
            refused: false,
            held: None,
            alone: false,
            replies: VecDeque::new(),
            out: BytesMut::new(),
            active: Instant::now(),
        }
    }

    /// Until everything is answered that came, or until the client has gone. Dropping the session cancels its read-only calls.
    async fn run(mut self) {
        loop {
            self.start_calls();
            if !self.reading && self.is_idle() && self.out.is_empty() {
                break;
            }
            match self.next_event().await {
                Event::Aborted | Event::Idle | Event::Reply(None) | Event::Read(Err(_)) => return,
                Event::Written(Err(_) | Ok(0)) => return,
                // A client that finishes sending still gets its replies.
                Event::Enough | Event::Read(Ok(0)) => self.reading = false,
                Event::Read(Ok(_)) => {}
                Event::Written(Ok(_)) => self.active = Instant::now(),
                Event::Reply(Some(reply)) => {
                    self.replies.pop_front();
                    self.active = Instant::now();
                    // The node's replies are within the limit, and the sidecar's are short.
                    if Codec::default().encode(&reply, &mut self.out).is_err() {
                        return;
                    }
                }
            }
        }
        let farewell = async {
            self.write.shutdown().await?;
            let mut rest = [0; 4096];
            while self.refused && self.read.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        // The client has had its replies in any case.
        let _ = timeout(FAREWELL, farewell).await;
    }

    async fn next_event(&mut self) -> Event {
        let wants_more = self.reading && self.has_room();
        if wants_more {
            self.received.reserve(READ);
        }
        let idle = (self.is_idle() || !self.out.is_empty())
            .then(|| self.active.checked_add(self.listener.idle_timeout.0))
            .flatten();
        let on_its_way = !self.asked || !self.received.is_empty();
        tokio::select! {
            biased;
            () = self.drain.aborted() => Event::Aborted,
            reply = first(&mut self.replies), if self.out.is_empty() => Event::Reply(reply),
            written = self.write.write_buf(&mut self.out), if !self.out.is_empty() => Event::Written(written),
            read = self.read.read_buf(&mut self.received), if wants_more => Event::Read(read),
            () = self.drain.read_enough(on_its_way), if wants_more => Event::Enough,
            Some(()) = OptionFuture::from(idle.map(sleep_until)) => Event::Idle,
        }
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.replies.is_empty() && self.held.is_none()
    }

    /// Whether another call may start.
    fn has_room(&self) -> bool {
        let most = usize::try_from(self.listener.max_in_flight).unwrap_or(usize::MAX);
        self.held.is_none() && !self.alone && self.replies.len() < most
    }

    /// Starts what has come and may start. A changing call starts when all before it are done, and those behind it wait until
    /// it is done: what a client sends in order takes effect in order.
    fn start_calls(&mut self) {
        loop {
            if self.replies.is_empty() {
                self.alone = false;
                if let Some(call) = self.held.take() {
                    self.start(call);
                }
            }
            if self.refused || !self.has_room() {
                return;
            }
            match Codec::new(self.listener.max_frame.bytes()).decode(&mut self.received) {
                Ok(None) => return,
                Ok(Some(body)) => self.request(body),
                Err(error) => {
                    FlowLine::start("rpc", self.client).end("malformed", 0, 0);
                    let error =
                        Unreadable { id: NO_ID.to_owned(), code: INVALID_REQUEST, why: error.to_string() };
                    self.refuse(refusal::unreadable(&error));
                }
            }
        }
    }

    fn request(&mut self, body: Bytes) {
        self.active = Instant::now();
        self.asked = true;
        match parse(&body) {
            Ok(Request { id, method }) => {
                let waits = !Method::of(&method).is_read_only() && !self.replies.is_empty();
                let call = RpcCall { body, id, method, client: self.client };
                if waits {
                    self.held = Some(call);
                } else {
                    self.start(call);
                }
            }
            Err(error) => {
                FlowLine::start("rpc", self.client).end("malformed", body.len() as u64, 0);
                self.answer(refusal::unreadable(&error));
            }
        }
    }

    fn start(&mut self, call: RpcCall) {
        let lease = (self.chains)();
        if let Some(lease) = &lease {
            self.listener = lease.settings.listener.clone();
        }
        let method = Method::of(&call.method);
        let (mut reply_to, reply) = oneshot::channel();
        self.replies.push_back(reply);
        self.alone = !method.is_read_only();
        let drain = self.drain.clone();
        let mut flow = FlowLine::start("rpc", self.client);
        flow.detail("method", format_args!("{:.64}", call.method));
        self.drain.spawn(async move {
            let (id, up) = (call.id.clone(), call.body.len() as u64);
            let result = tokio::select! {
                biased;
                () = drain.aborted() => Err("aborted"),
                result = perform(lease, call) => Ok(result),
                // What changes the node is left to finish.
                () = reply_to.closed(), if method.is_read_only() => Err(FilterError::ClientGone.label()),
            };
            let (outcome, reply) = match result {
                Ok(Ok(reply)) => ("ok", Some(reply.body)),
                Ok(Err(error)) => (error.label(), Some(refusal::reply(&id, &error))),
                Err(outcome) => (outcome, None),
            };
            counter!("qudag_sidecar_rpc_calls_total", "method" => method.label(), "outcome" => outcome)
                .increment(1);
            flow.end(outcome, up, reply.as_ref().map_or(0, Bytes::len) as u64);
            if let Some(reply) = reply {
                // The client may have gone.
                let _ = reply_to.send(reply);
            }
        });
    }

    /// Answers without a call.
    fn answer(&mut self, reply: Bytes) {
        let (reply_to, receiver) = oneshot::channel();
        // The receiver is here.
        let _ = reply_to.send(reply);
        self.replies.push_back(receiver);
    }

    /// Answers, and takes nothing more.
    fn refuse(&mut self, reply: Bytes) {
        self.answer(reply);
        self.reading = false;
        self.refused = true;
        self.received.clear();
    }
}

/// The first reply; `None` when its call came to no end.
async fn first(replies: &mut VecDeque<oneshot::Receiver<Bytes>>) -> Option<Bytes> {
    match replies.front_mut() {
        Some(reply) => reply.await.ok(),
        None => std::future::pending().await,
    }
}

async fn perform(lease: Option<Lease<Rpc>>, call: RpcCall) -> Result<RpcReply, FilterError> {
    // Held until the reply is there.
    let lease = lease.ok_or(FilterError::Draining)?;
    lease.chain.call(call).await
}
