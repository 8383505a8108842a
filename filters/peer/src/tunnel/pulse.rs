//! Whether the other side of a connection is still there.
//!
//! A process that is killed sends nothing, and QUIC lets nothing that comes from outside of a connection end it. What is left is to ask:
//! who has been silent for too long is *knocked at* from a socket of its own. A host where nobody has the port says so (ICMP
//! port unreachable, RFC 1122 section 3.2.2.1; RFC 4443 section 3.1); one that is paused, or that cannot be reached, says nothing, and the
//! connection waits for it as long as it waits for everybody.

use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::Connection;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::transport;

/// The wait between knocks. Datagrams get lost, and hosts limit how many errors they send: Linux sends one a second to each host, for
/// whatever of it comes first.
const PAUSE: Duration = Duration::from_millis(200);
/// How long is knocked for.
const ASKING: Duration = Duration::from_secs(3);
/// How often connections are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Whoever is there sends a PING in this time ([`transport::KEEP_ALIVE`]).
const QUIET: Duration = transport::KEEP_ALIVE.saturating_add(Duration::from_secs(2));
/// What is sent: a byte that no packet of QUIC begins with (RFC 9000 section 17: the fixed bit is 0), so that an endpoint drops it.
pub(super) const KNOCK: [u8; 1] = [0];

/// Whether the other side owes an answer, looked at now and then.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    /// Datagrams received, and how much that needs an answer had been sent then.
    heard: u64,
    sent: u64,
    /// When it was seen first that something was sent since.
    owed: Option<Instant>,
    /// When it was seen that something had been received.
    since: Option<Instant>,
}

impl Pulse {
    /// Something that needs an answer is sent now.
    pub(super) fn owed(connection: &Connection, now: Instant) -> Self {
        let (heard, sent) = numbers(connection);
        Self { heard, sent, owed: Some(now), since: Some(now) }
    }

    /// How long the other side of a connection has owed an answer.
    pub(super) fn of(&mut self, connection: &Connection, now: Instant) -> Duration {
        let (heard, sent) = numbers(connection);
        self.silence(heard, sent, now)
    }

    /// How long nothing was received. The other side sends a PING every few seconds.
    fn quiet(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How long the other side has owed an answer, from the numbers of what was received and sent.
    fn silence(&mut self, heard: u64, sent: u64, now: Instant) -> Duration {
        if heard != self.heard {
            *self = Self { heard, sent, owed: None, since: Some(now) };
        }
        if sent != self.sent {
            self.owed.get_or_insert(now);
        }
        self.owed.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Datagrams received, and frames sent that somebody who is there acknowledges at once; what is not is sent again or asked for with a
/// PING. Probes of the size of packets are PINGs too, but often in vain.
fn numbers(connection: &Connection) -> (u64, u64) {
    let stats = connection.stats();
    let sent = stats.frame_tx.stream + stats.frame_tx.ping;
    (stats.udp_rx.datagrams, sent.saturating_sub(stats.path.sent_plpmtud_probes))
}

/// Resolves when the host says that nobody has the port; otherwise never. `mark` is what packets to other sidecars are marked with.
pub(crate) async fn closed_port(to: SocketAddr, mark: Option<u32>) {
    if knock(to, mark).await.is_none() {
        pending::<()>().await;
    }
}

/// Whether nobody has the port from which a connection's packets came, as far as the host says so.
async fn is_closed(connection: &Connection, mark: Option<u32>) -> bool {
    let heard = connection.stats().udp_rx.datagrams;
    let knocked = timeout(ASKING, knock(connection.remote_address(), mark)).await;
    // Whoever says something is there.
    knocked.is_ok_and(|refused| refused.is_some()) && connection.stats().udp_rx.datagrams == heard
}

async fn knock(to: SocketAddr, mark: Option<u32>) -> Option<()> {
    let socket = UdpSocket::bind(transport::any(to)).await.ok()?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark).ok()?;
    }
    socket.connect(to).await.ok()?;
    let is_refused = |result: &std::io::Result<usize>| {
        result.as_ref().is_err_and(|why| why.kind() == ErrorKind::ConnectionRefused)
    };
    loop {
        if is_refused(&socket.send(&KNOCK).await) {
            return Some(());
        }
        match timeout(PAUSE, socket.recv(&mut [0; 64])).await {
            Ok(answer) if is_refused(&answer) => return Some(()),
            // Something answers, or the host cannot be asked.
            Ok(_) => return None,
            Err(_) => {}
        }
    }
}

/// Ends a connection whose other side does not exist any more, long before its own time limit does. Resolves with the connection.
pub(crate) async fn watch(connection: Connection, patience: Duration, mark: Option<u32>) {
    let mut pulse = Pulse::default();
    let looks = async {
        loop {
            sleep(LOOK).await;
            let now = Instant::now();
            let trips = connection.rtt().saturating_mul(4);
            let owes = pulse.of(&connection, now) > patience + trips;
            if (owes || pulse.quiet(now) > QUIET + trips) && is_closed(&connection, mark).await {
                return;
            }
        }
    };
    tokio::select! {
        _ = connection.closed() => {}
        () = looks => gone(&connection),
    }
}

/// Gives a connection up whose other side is gone.
fn gone(connection: &Connection) {
    tracing::info!(remote = %connection.remote_address(), "the other side of a tunnel is gone: nobody has its port");
    metrics::counter!("qudag_sidecar_peer_gone_total").increment(1);
    connection.close(GONE, b"");
}

/// The code of a connection that is closed because its other side is gone. Nobody reads it.
const GONE: quinn::VarInt = quinn::VarInt::from_u32(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_owes_an_answer_is_silent() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pulse = Pulse { heard: 5, sent: 5, owed: None, since: Some(start) };
        assert_eq!(pulse.quiet(start + 9 * second), 9 * second);
        assert_eq!(pulse.silence(5, 5, start + 9 * second), Duration::ZERO, "nothing was sent");
        assert_eq!(pulse.silence(5, 6, start + 10 * second), Duration::ZERO, "just now, as far as is known");
        assert_eq!(pulse.silence(5, 7, start + 13 * second), 3 * second);
        assert_eq!(pulse.silence(6, 7, start + 14 * second), Duration::ZERO);
        assert_eq!(pulse.quiet(start + 14 * second), Duration::ZERO);
        assert_eq!(pulse.silence(6, 8, start + 15 * second), Duration::ZERO);
        assert_eq!(pulse.silence(6, 8, start + 16 * second), second);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_one_that_says_nothing() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(host).await.unwrap();
            let address = socket.local_addr().unwrap();
            assert!(timeout(Duration::from_millis(300), closed_port(address, None)).await.is_err());
            drop(socket);
            timeout(Duration::from_secs(20), closed_port(address, None)).await.unwrap();
        }
    }
}
