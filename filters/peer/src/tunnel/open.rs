//! Opens a stream of the tunnel for a client.

use std::time::Duration;

use qudag_filter_api::FilterError;
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, interval_at, sleep_until, timeout};

use super::TunnelStream;
use super::header::{Header, Status};
use super::pulse::Pulse;
use crate::opening::Opening;
use crate::pool::{PeerPool, Place};

/// How often a stream is tried on another connection after one was lost or is going away.
const TRIES: u32 = 3;

/// Why a stream of the tunnel was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer could not be reached lately, and is left alone.
    Down,
    /// It could not be reached now, for this reason.
    Dial(&'static str),
    /// Too many streams wait for a connection.
    Crowded,
    /// No connection was there in time.
    Pending,
    /// The connection gave no stream in time.
    OpenTimeout,
    /// Nothing at all came over the connection after the header was sent.
    Silent,
    /// The status did not come in time.
    AnswerTimeout,
    /// The connection was lost.
    Lost,
    /// The other side answered with something else than a status.
    Protocol,
    /// The other side refused.
    Status(Status),
}

impl Failure {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Dial(_) => "dial",
            Self::Crowded => "crowded",
            Self::Pending => "pending_timeout",
            Self::OpenTimeout => "open_timeout",
            Self::Silent => "silent",
            Self::AnswerTimeout => "answer_timeout",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::Status(status) => status.label(),
        }
    }

    /// The error for a client that may go no other way.
    pub(crate) fn error(self, peer: &str) -> FilterError {
        match self {
            Self::Crowded => FilterError::Overloaded("too many streams wait for the tunnel".into()),
            Self::Status(Status::Refused | Status::UnknownDestination | Status::Version) => {
                FilterError::Refused(format!("the sidecar of {peer} says: {}", self.label()).into())
            }
            Self::Dial(why) => FilterError::connect(peer, std::io::Error::other(format!("tunnel: {why}"))),
            _ => FilterError::connect(peer, std::io::Error::other(format!("tunnel: {}", self.label()))),
        }
    }

    /// Whether the fault lies in the connection and not behind it.
    fn is_of_connection(self) -> bool {
        matches!(self, Self::OpenTimeout | Self::Silent | Self::Lost | Self::Protocol)
    }
}

/// The time limits of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection of the pool.
    pub pending: Duration,
    /// For the connection to give a stream.
    pub open: Duration,
    /// For the status.
    pub answer: Duration,
}

/// Opens a stream on a connection of the pool. Of what the client sends meanwhile it passes on what it can.
///
/// # Errors
/// Nothing that the client has sent is lost then: the opening still has it.
pub(crate) async fn open(
    pool: &std::sync::Arc<PeerPool>,
    header: &Header,
    opening: &Opening,
    limits: Limits,
    patient: bool,
) -> Result<TunnelStream, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let place = pool.place(limits.pending, patient).await?;
        let opened = on(&place, header, opening, limits).await;
        let failure = match opened {
            Ok((send, receive, sent)) => {
                place.answered(true);
                return Ok(TunnelStream::new(send, receive, sent, place));
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::Status(Status::Draining) | Failure::Lost => place.leave(),
            Failure::Silent => place.dead(),
            failure => place.answered(!failure.is_of_connection()),
        }
        let again = matches!(failure, Failure::Status(Status::Draining) | Failure::Lost);
        if !again || tries == TRIES {
            return Err(failure);
        }
    }
}

/// Opens a stream on one connection.
async fn on(
    place: &Place,
    header: &Header,
    opening: &Opening,
    limits: Limits,
) -> Result<(SendStream, RecvStream, usize), Failure> {
    let connection = place.connection();
    let (mut send, mut receive) = match timeout(limits.open, connection.open_bi()).await {
        Ok(Ok(halves)) => halves,
        Ok(Err(_)) => return Err(Failure::Lost),
        Err(_) => return Err(Failure::OpenTimeout),
    };
    let opened = converse(connection, &mut send, &mut receive, header, opening, limits).await;
    match opened {
        Ok(sent) => Ok((send, receive, sent)),
        Err(failure) => {
            // Fails when the stream is over already.
            let _ = send.reset(1_u32.into());
            let _ = receive.stop(1_u32.into());
            Err(failure)
        }
    }
}

/// Sends the header and what the client has sent, until the status comes. Returns how much of the client was sent.
async fn converse(
    connection: &Connection,
    send: &mut SendStream,
    receive: &mut RecvStream,
    header: &Header,
    opening: &Opening,
    limits: Limits,
) -> Result<usize, Failure> {
    let start = Instant::now();
    let mut pulse = Pulse::owed(connection, start);
    let mut looks = interval_at(start + limits.open / 2, (limits.open / 4).max(Duration::from_millis(1)));
    let (mut out, mut at, mut taken, mut stopped) = (header.encode(), 0, 0, false);
    loop {
        let rest = out.get(at..).unwrap_or_default();
        tokio::select! {
            biased;
            status = receive.read_chunk(1, true) => {
                let status = match status {
                    Ok(Some(chunk)) => chunk.bytes.first().copied().and_then(Status::of),
                    Ok(None) | Err(quinn::ReadError::Reset(_)) => None,
                    Err(_) => return Err(Failure::Lost),
                };
                return match status {
                    Some(Status::Ok) if !stopped && (rest.is_empty() || taken > 0) => Ok(taken - rest.len()),
                    Some(Status::Ok) | None => Err(Failure::Protocol),
                    Some(status) => Err(Failure::Status(status)),
                };
            }
            written = send.write(rest), if !rest.is_empty() => match written {
                Ok(written) => at += written,
                // The status, if there is one, says why.
                Err(quinn::WriteError::Stopped(_)) => (at, stopped) = (out.len(), true),
                Err(_) => return Err(Failure::Lost),
            },
            more = opening.more(taken), if rest.is_empty() && !stopped => {
                taken += more.len();
                (out, at) = (more, 0);
            }
            now = looks.tick() => {
                // Even a lost header is acknowledged by then.
                if pulse.of(connection, now) >= limits.open + connection.rtt().saturating_mul(4) {
                    return Err(Failure::Silent);
                }
            }
            () = sleep_until(start + limits.answer) => return Err(Failure::AnswerTimeout),
        }
    }
}

/// Asks the other side whether it takes streams at all.
///
/// # Errors
/// When it does not.
pub(crate) async fn probe(connection: &Connection, class: super::header::Class) -> Result<(), Failure> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|_| Failure::Lost)?;
    send.write_all(&Header::probe(class).encode()).await.map_err(|_| Failure::Lost)?;
    // Cannot fail on a stream that was just opened.
    let _ = send.finish();
    let mut status = [0];
    receive.read_exact(&mut status).await.map_err(|_| Failure::Lost)?;
    match status.first().copied().and_then(Status::of) {
        Some(Status::Ok) => Ok(()),
        Some(status) => Err(Failure::Status(status)),
        None => Err(Failure::Protocol),
    }
}
