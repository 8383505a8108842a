//! The life of a control stream.

use std::future::Future;
use std::time::Duration;

use metrics::counter;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::message::{Intake, MAX_FRAME, Message, Violation};
use super::{Exchange, Open};
use crate::identity::PeerName;
use crate::tunnel::header::{Class, Header, Status};

/// Between two echoes.
const ECHO: Duration = Duration::from_secs(3);
/// A side of which nothing comes for so long is not there, whatever its connection says.
const SILENCE: Duration = Duration::from_secs(10);
/// Before a stream that ended is opened again.
const AGAIN: Duration = Duration::from_secs(3);
/// For a message to be taken by QUIC: a side that reads nothing is not there either.
const SENT: Duration = Duration::from_secs(5);
/// The code of a stream that is given up.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// How a control stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The other side finished it, or its connection ended.
    Closed,
    /// This side did.
    Done,
    /// Nothing came.
    Silent,
    /// Something came that should not.
    Violation(Violation),
    /// The other side did not take it.
    Refused(Status),
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Done => "done",
            Self::Silent => "silent",
            Self::Violation(violation) => violation.label(),
            Self::Refused(status) => status.label(),
        }
    }

    /// Counts it, and says it where somebody should know.
    fn tell(self, side: &'static str, name: &PeerName) {
        counter!("qudag_sidecar_peer_control_streams_total", "side" => side, "outcome" => self.label())
            .increment(1);
        if let Self::Violation(violation) = self {
            tracing::warn!(peer = %name, %violation, "a control stream was given up");
        }
    }
}

/// Keeps a control stream on a connection that this side has opened, until the connection ends.
pub(crate) async fn call(exchange: &Exchange, connection: &Connection, name: &PeerName, class: Class) {
    loop {
        let end = tokio::select! {
            biased;
            _ = connection.closed() => return,
            end = open(exchange, connection, name, class) => end,
        };
        end.tell("out", name);
        // What does not know or not keep to these rules is not asked again.
        if matches!(end, End::Violation(_) | End::Refused(_)) {
            return;
        }
        tokio::select! {
            _ = connection.closed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn open(exchange: &Exchange, connection: &Connection, name: &PeerName, class: Class) -> End {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return End::Closed };
    let header = Header::control(class);
    let mut status = [0];
    let asked = async {
        send.write_all(&header.encode()).await.ok()?;
        receive.read_exact(&mut status).await.ok()
    };
    match timeout(SILENCE, asked).await {
        Err(_) => return End::Silent,
        Ok(None) => return End::Closed,
        Ok(Some(())) => {}
    }
    match status.first().copied().and_then(Status::of) {
        Some(Status::Ok) => {
            talk(exchange, name, send, receive, Vec::new(), std::future::pending(), || true).await
        }
        Some(status) => End::Refused(status),
        None => End::Violation(Violation::Garbage),
    }
}

/// Answers on a control stream that a peer has opened, for as long as the peer is `allowed` and until `stop`. `early` came with the header.
pub(crate) async fn answer(
    exchange: &Exchange,
    name: &PeerName,
    mut send: SendStream,
    receive: RecvStream,
    early: Vec<u8>,
    stop: impl Future<Output = ()>,
    allowed: impl Fn() -> bool,
) {
    let end = match timeout(SENT, send.write_all(&[Status::Ok.byte()])).await {
        Ok(Ok(())) => talk(exchange, name, send, receive, early, stop, allowed).await,
        _ => End::Closed,
    };
    end.tell("in", name);
}

/// Sends what there is to tell, and listens.
async fn talk(
    exchange: &Exchange,
    name: &PeerName,
    mut send: SendStream,
    mut receive: RecvStream,
    early: Vec<u8>,
    stop: impl Future<Output = ()>,
    allowed: impl Fn() -> bool,
) -> End {
    let peer = Open::new(exchange, name);
    let stop = std::pin::pin!(stop);
    let conversation = converse(&peer, &mut send, &mut receive, early, allowed);
    let end = tokio::select! {
        biased;
        () = stop => End::Done,
        end = conversation => end,
    };
    match end {
        End::Done => {
            // Fails when the stream is over already.
            let _ = send.finish();
        }
        _ => {
            let _ = send.reset(GIVEN_UP);
        }
    }
    let _ = receive.stop(GIVEN_UP);
    end
}

async fn converse(
    peer: &Open<'_>,
    send: &mut SendStream,
    receive: &mut RecvStream,
    early: Vec<u8>,
    allowed: impl Fn() -> bool,
) -> End {
    let mut own = peer.exchange.own.subscribe();
    own.mark_changed();
    let mut intake = Intake::new(std::time::Instant::now());
    let (mut echo, mut number, mut heard) = (interval(ECHO), 0_u64, Instant::now());
    echo.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut come) = (None, early);
    loop {
        let messages = match intake.take(&come, Instant::now().into_std()) {
            Ok(messages) => messages,
            Err(violation) => return End::Violation(violation),
        };
        let mut out = Vec::new();
        for message in messages {
            match message {
                Message::State(state) => peer.state(state),
                Message::Echo(number) => out.extend(Message::Answer(number).encode()),
                Message::Answer(answer) => {
                    if let Some((_, at)) = asked.take_if(|(number, _)| *number == answer) {
                        let at: Instant = at;
                        peer.echoed(at.elapsed());
                    }
                }
            }
        }
        come.clear();
        if !out.is_empty() && !write(send, &out).await {
            return End::Closed;
        }
        tokio::select! {
            biased;
            read = receive.read_chunk(MAX_FRAME, true) => match read {
                Ok(Some(chunk)) => {
                    heard = Instant::now();
                    peer.heard();
                    come.extend_from_slice(&chunk.bytes);
                }
                Ok(None) | Err(_) => return End::Closed,
            },
            changed = own.changed() => {
                let state = Message::State((**own.borrow_and_update()).clone()).encode();
                if changed.is_err() || !write(send, &state).await {
                    return End::Closed;
                }
            }
            _ = echo.tick() => {
                if !allowed() {
                    return End::Done;
                }
                number = number.wrapping_add(1);
                asked = Some((number, Instant::now()));
                if !write(send, &Message::Echo(number).encode()).await {
                    return End::Closed;
                }
            }
            () = sleep_until(heard + SILENCE) => return End::Silent,
        }
    }
}

async fn write(send: &mut SendStream, bytes: &[u8]) -> bool {
    matches!(timeout(SENT, send.write_all(bytes)).await, Ok(Ok(())))
}
