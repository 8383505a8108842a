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
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::transport;

/// The waits between knocks. Hosts limit how many errors they send, and datagrams get lost.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(600)];
/// How often connections are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What is sent: a byte that no packet of QUIC begins with (RFC 9000 section 17: the fixed bit is 0), so that an endpoint drops it.
const KNOCK: [u8; 1] = [0];

/// Whether the other side owes an answer, looked at now and then.
#[derive(Clone, Copy, Debug, Default)]
struct Pulse {
    /// Datagrams received, and those that had been sent then.
    heard: u64,
    sent: u64,
    /// When it was seen first that something was sent since.
    owed: Option<Instant>,
}

impl Pulse {
    /// How long the other side has owed an answer, from the numbers of datagrams that were received and sent.
    fn silence(&mut self, heard: u64, sent: u64, now: Instant) -> Duration {
        if heard != self.heard {
            *self = Self { heard, sent, owed: None };
        }
        if sent == self.sent {
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.owed.get_or_insert(now))
    }
}

/// Resolves when the host says that nobody has the port; otherwise never.
pub(crate) async fn closed_port(to: SocketAddr) {
    if knock(to).await.is_none() {
        pending::<()>().await;
    }
}

/// Whether nobody has the port from which a connection's packets came, as far as the host says so within a second or two.
pub(crate) async fn is_closed(connection: &Connection) -> bool {
    let heard = connection.stats().udp_rx.datagrams;
    let knocked = timeout(Duration::from_secs(2), knock(connection.remote_address())).await;
    // Whoever says something is there.
    knocked.is_ok_and(|refused| refused.is_some()) && connection.stats().udp_rx.datagrams == heard
}

async fn knock(to: SocketAddr) -> Option<()> {
    let socket = UdpSocket::bind(transport::any(to)).await.ok()?;
    socket.connect(to).await.ok()?;
    let refused = |result: std::io::Result<usize>| match result {
        Err(why) if why.kind() == ErrorKind::ConnectionRefused => Some(()),
        _ => None,
    };
    for pause in PAUSES {
        if let Some(refused) = refused(socket.send(&KNOCK).await) {
            return Some(refused);
        }
        let answer = timeout(pause, socket.recv(&mut [0; 64])).await;
        if let Ok(answer) = answer {
            return refused(answer);
        }
    }
    // The last one may be answered late.
    refused(socket.recv(&mut [0; 64]).await)
}

/// Ends a connection whose other side does not exist any more, long before its own time limit does. Resolves with the connection.
pub(crate) async fn watch(connection: Connection, patience: Duration) {
    let mut pulse = Pulse::default();
    let looks = async {
        loop {
            sleep(LOOK).await;
            let stats = connection.stats();
            let silence = pulse.silence(stats.udp_rx.datagrams, stats.udp_tx.datagrams, Instant::now());
            if silence > patience + stats.path.rtt.saturating_mul(4) && is_closed(&connection).await {
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
pub(crate) fn gone(connection: &Connection) {
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
        let mut pulse = Pulse { heard: 5, sent: 5, owed: None };
        assert_eq!(pulse.silence(5, 5, start + 9 * second), Duration::ZERO, "nothing was sent");
        assert_eq!(pulse.silence(5, 6, start + 10 * second), Duration::ZERO, "just now, as far as is known");
        assert_eq!(pulse.silence(5, 7, start + 13 * second), 3 * second);
        assert_eq!(pulse.silence(6, 7, start + 14 * second), Duration::ZERO);
        assert_eq!(pulse.silence(6, 8, start + 15 * second), Duration::ZERO);
        assert_eq!(pulse.silence(6, 8, start + 16 * second), second);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_one_that_says_nothing() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(host).await.unwrap();
            let address = socket.local_addr().unwrap();
            assert!(timeout(Duration::from_millis(300), closed_port(address)).await.is_err());
            drop(socket);
            timeout(Duration::from_secs(20), closed_port(address)).await.unwrap();
        }
    }
}
