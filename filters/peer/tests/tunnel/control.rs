//! What sidecars tell each other.

use qudag_filter_common::testing::{PATIENCE, metric, until};
use qudag_filter_peer::SidecarStatus;
use qudag_filter_peer::exchange::message::{Intake, Message, State};
use qudag_filter_peer::tunnel::header::{Class, Header, Status};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, timeout};

use crate::hostile::connect;
use crate::support::*;

fn told(sidecar: &Sidecar) -> Option<SidecarStatus> {
    sidecar.upstream.as_ref().unwrap().sidecars().into_iter().next()
}

#[tokio::test]
async fn both_sides_tell_who_they_are() {
    let mut pair = Pair::start("told", Unusual::default()).await;
    for (sidecar, of) in [(&pair.a, "b"), (&pair.b, "a")] {
        let complete = || told(sidecar).is_some_and(|told| told.version.is_some() && told.rtt_ms.is_some());
        until("the other side has told", complete).await;
        let told = told(sidecar).unwrap();
        assert_eq!((told.name, told.connected), (peer("told", of), true));
        assert_eq!(told.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!((told.tunnel_version, told.peer_id), (Some(1), None));
        assert!(told.capabilities.iter().any(|it| it == std::env::consts::ARCH), "{:?}", told.capabilities);
        assert!(told.heard_seconds_ago < 60.0);
    }
    assert_eq!(told(&pair.a).unwrap().destinations, ["node"]);
    assert!(told(&pair.b).unwrap().destinations.is_empty(), "A has no listener of the tunnel");
    let peer = format!("peer=\"{}\"", peer("told", "b"));
    assert!(metric("qudag_sidecar_peer_exchange_rtt_seconds", &[&peer]) > 0.0);

    // Without the filter the connections go, and what was heard stays.
    pair.reload(serde_json::json!({}));
    until("nothing is heard any more", || !told(&pair.a).unwrap().connected).await;
    assert!(told(&pair.a).unwrap().version.is_some());
}

#[tokio::test]
async fn news_are_told_at_once() {
    let pair = Pair::start("news", Unusual::default()).await;
    until("B has told", || told(&pair.a).is_some_and(|told| told.destinations == ["node"])).await;
    let mut pair = pair;
    let mut listeners = pair.listeners_b.clone();
    listeners["destinations"] = serde_json::json!({ "metrics": "127.0.0.1:9" });
    pair.b.reload(listeners, serde_json::json!({}));
    until("B has told again", || told(&pair.a).is_some_and(|told| told.destinations == ["metrics", "node"]))
        .await;
}

/// A control stream as sidecar A opens it.
async fn control(connection: &Connection) -> (SendStream, RecvStream) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&Header::control(Class::Interactive).encode()).await.unwrap();
    let mut status = [9];
    timeout(PATIENCE, receive.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(Status::of(status[0]), Some(Status::Ok));
    (send, receive)
}

/// What the other side says until it resets the stream.
async fn until_reset(receive: &mut RecvStream) -> Vec<Message> {
    let (now, mut messages) = (Instant::now().into_std(), Vec::new());
    let mut intake = Intake::new(now);
    let reading = async {
        while let Ok(Some(chunk)) = receive.read_chunk(4096, true).await {
            messages.extend(intake.take(&chunk.bytes, now).unwrap());
        }
    };
    timeout(PATIENCE, reading).await.unwrap();
    messages
}

/// How often a control stream that came was given up for a reason, in this process.
fn given_up(outcome: &str) -> f64 {
    metric("qudag_sidecar_peer_control_streams_total", &["side=\"in\"", &format!("outcome=\"{outcome}\"")])
}

#[tokio::test]
async fn garbage_ends_the_control_stream_and_nothing_else() {
    let pair = Pair::start("babble", Unusual::default()).await;
    let (_endpoint, connection) = connect(&pair).await;
    let (mut send, mut receive) = control(&connection).await;
    send.write_all(&Message::State(State { tunnel: 1, ..State::default() }).encode()).await.unwrap();
    send.write_all(&Message::Echo(77).encode()).await.unwrap();
    // What comes together with garbage is lost.
    let answered = async {
        let mut said = Vec::new();
        while !said.ends_with(&Message::Answer(77).encode()) {
            said.extend(receive.read_chunk(4096, true).await.unwrap().unwrap().bytes);
        }
        Intake::new(Instant::now().into_std()).take(&said, Instant::now().into_std()).unwrap()
    };
    let said = timeout(PATIENCE, answered).await.unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until_reset(&mut receive).await;
    assert!(
        said.iter().any(|it| matches!(it, Message::State(state) if !state.sidecar.is_empty())),
        "{said:?}"
    );
    assert!(given_up("garbage") >= 1.0);
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&Header::to(Class::Interactive, "node".parse().unwrap()).encode()).await.unwrap();
    let mut greeting = [9, 9];
    timeout(PATIENCE, receive.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(greeting, *b"\0t");
}

#[tokio::test]
async fn a_flood_ends_the_control_stream() {
    let pair = Pair::start("flood", Unusual::default()).await;
    let (_endpoint, connection) = connect(&pair).await;
    let (mut send, mut receive) = control(&connection).await;
    // Fails as soon as it is too much.
    let _ = send.write_all(&Message::Echo(1).encode().repeat(1000)).await;
    let said = until_reset(&mut receive).await;
    let answers = said.iter().filter(|it| matches!(it, Message::Answer(_))).count();
    assert!(answers <= 40, "{answers} answers");
    assert!(given_up("too_much") >= 1.0);
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_control_streams() {
    let pair = Pair::start("drained", Unusual::default()).await;
    until("A has told", || told(&pair.b).is_some_and(|told| told.connected)).await;
    pair.b.drain.stop();
    until("the connection is closed", || told(&pair.b).is_some_and(|told| !told.connected)).await;
    let live = || {
        pair.a.upstream.as_ref().unwrap().statuses().iter().map(|pool| pool.connections.len()).sum::<usize>()
    };
    until("A has no connection", || live() == 0).await;
}
