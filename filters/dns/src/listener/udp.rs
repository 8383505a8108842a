//! Queries in datagrams: a thread for each core, with a socket of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use metrics::counter;
use qudag_filter_common::Drain;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::answer::{Intake, Message, Received, Shared};
use super::datagram::{Datagrams, Inbox, Outbox, Route};
use crate::Transport;

/// How many more batches are received at most when the drain has started: a flood must not hold it up.
const LAST_BATCHES: usize = 64;
/// How long a thread pauses when the kernel refuses to give it anything.
const PAUSE: Duration = Duration::from_millis(50);

/// Sockets on one address, among which the kernel shares the clients out (`SO_REUSEPORT`).
pub(super) struct Group {
    sockets: Vec<Arc<Datagrams>>,
}

impl Group {
    /// As many sockets as the current runtime has threads, on an address with a port.
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let threads = Handle::current().metrics().num_workers();
        let sockets = (0..threads).map(|_| Datagrams::bind(addr).map(Arc::new));
        Ok(Self { sockets: sockets.collect::<io::Result<_>>()? })
    }

    /// Receives until the drain starts, then what has arrived by then. Each query that has to wait becomes a task of the
    /// drain.
    pub(super) async fn serve(self, shared: Arc<Shared>, drain: Drain) {
        let mut threads = Vec::new();
        for socket in self.sockets {
            let (intake, drain) = (Intake::new(Arc::clone(&shared)), drain.clone());
            let (ended, end) = oneshot::channel::<()>();
            let receiver = Receiver { socket, runtime: Handle::current(), drain };
            let work = move || {
                receiver.run(intake);
                drop(ended);
            };
            match thread::Builder::new().name("dns".to_owned()).spawn(work) {
                Ok(_) => threads.push(end),
                Err(why) => tracing::error!(error = %why, "cannot start a thread for DNS queries"),
            }
        }
        for end in threads {
            // Ends when the sender is dropped, which is all that is waited for.
            let _ = end.await;
        }
    }
}

/// What a thread needs.
struct Receiver {
    socket: Arc<Datagrams>,
    runtime: Handle,
    drain: Drain,
}

impl Receiver {
    #[expect(clippy::disallowed_methods, reason = "it has a thread of its own, which may sleep")]
    fn run(&self, mut intake: Intake) {
        let mut inbox = Inbox::new(&self.socket);
        let mut outbox = Outbox::new();
        let mut last_batches = LAST_BATCHES;
        while last_batches > 0 {
            let stopping = self.drain.is_stopping();
            match inbox.receive(&self.socket, !stopping) {
                Ok(0) if stopping => return,
                Ok(0) => {}
                Ok(count) => self.batch(&inbox, count, &mut intake, &mut outbox),
                Err(why) => {
                    tracing::warn!(error = %why, "cannot receive DNS queries");
                    counter!("qudag_sidecar_dns_receive_errors_total").increment(1);
                    thread::sleep(PAUSE);
                }
            }
            if stopping {
                last_batches -= 1;
            }
        }
    }

    fn batch(&self, inbox: &Inbox, count: usize, intake: &mut Intake, outbox: &mut Outbox) {
        let mut batch = intake.batch();
        for (wire, route) in inbox.datagrams(count) {
            let Some(client) = route.client() else { continue };
            match batch.receive(Message { wire, client, transport: Transport::Udp }, &mut outbox.bytes) {
                Received::Nothing => {}
                Received::Replied => outbox.close(route),
                Received::Query(asking) => self.spawn(*asking, route),
            }
        }
        let (failed, why) = outbox.send(&self.socket);
        if let Some(why) = why {
            note(failed, &why);
        }
    }

    fn spawn(&self, asking: super::answer::Asking, route: Route) {
        let (socket, ending) = (Arc::clone(&self.socket), self.drain.clone());
        let answer = async move {
            tokio::select! {
                biased;
                reply = asking.answer() => {
                    if let Err(why) = socket.send(&reply, &route) {
                        note(1, &why);
                    }
                }
                () = ending.aborted() => {}
            }
        };
        let _runtime = self.runtime.enter();
        self.drain.spawn(answer);
    }
}

fn note(failed: usize, why: &io::Error) {
    counter!("qudag_sidecar_dns_send_errors_total").increment(failed as u64);
    tracing::debug!(error = %why, failed, "cannot send DNS replies");
}
