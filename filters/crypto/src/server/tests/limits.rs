//! How much there may be, how long it may take, and how it ends.

use std::time::Duration;

use qudag_core::offload::{Code, Digest, Verdict};
use qudag_filter_common::testing::until;
use tokio::time::Instant;

use super::*;

fn used() -> f64 {
    testing::metric("qudag_sidecar_crypto_request_bytes", &[])
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let sidecar = Sidecar::start(json!({}), json!({"max_connections": 1})).await;
    let first = sidecar.welcome().await;
    let mut second = sidecar.client().await;
    let Some((0, Reply::Error(refusal))) = second.reply().await else { panic!("an error") };
    assert_eq!((refusal.code, refusal.message.as_str()), (Code::Overloaded, "overloaded: connections"));
    assert_eq!(second.reply().await, None);
    drop((first, second));
    let deadline = Instant::now() + PATIENCE;
    while !matches!(sidecar.client().await.reply().await, Some((0, Reply::Welcome(_)))) {
        assert!(Instant::now() < deadline, "the seat is not given back");
    }
}

#[tokio::test]
async fn who_says_nothing_for_long_is_closed() {
    let sidecar = Sidecar::start(json!({}), json!({"idle_timeout": "100ms"})).await;
    let hash = encoded(1, &[Digest { data: &b"data"[..], length: 32 }]);
    // Nothing; the beginning of a preamble; a preamble; a part of a frame, a byte at a time; a head of HTTP; a part of a body.
    for start in [&b""[..], b"QD"] {
        let mut stream = sidecar.connect().await;
        stream.write_all(start).await.unwrap();
        assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    }
    assert_eq!(sidecar.welcome().await.reply().await, None);
    let mut slow = sidecar.welcome().await;
    for byte in &hash[..hash.len() - 1] {
        if slow.stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(slow.reply().await, None);
    let mut stream = sidecar.connect().await;
    stream.write_all(b"GET /v1/crypto/st").await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    let mut stream = sidecar.connect().await;
    let head =
        "POST /v1/keys HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
}

#[tokio::test]
async fn who_takes_no_replies_is_not_read_from_and_closed() {
    let sidecar = Sidecar::start(json!({}), json!({"idle_timeout": "300ms"})).await;
    let mut client = sidecar.welcome().await;
    let request = encoded(1, &[Digest { data: &b"data"[..], length: 1024 }; 1000]);
    let send = async {
        let mut sent = 0_usize;
        while client.stream.write_all(&request).await.is_ok() {
            sent += 1;
        }
        sent
    };
    let sent = timeout(PATIENCE, send).await.expect("the connection ends");
    assert!(sent < 100, "{sent} MB of replies wait");
}

#[tokio::test]
async fn memory_is_waited_for_and_shared_with_others() {
    // Room for one request, of any connection of this process, which is one program.
    let limits = json!({"max_request": "16KiB", "max_memory": "20KiB", "idle_timeout": "20s"});
    let sidecar = Sidecar::start(json!({}), limits).await;
    let request = encoded(1, &[Digest { data: &[7; 16_000][..], length: 32 }]);
    let (begin, end) = request.split_at(100);
    let mut first = sidecar.welcome().await;
    first.send(begin).await;
    until("the first one has its memory", || used() >= 16_000.0).await;
    let mut second = sidecar.welcome().await;
    second.send(&request).await;
    let waits = || testing::metric("qudag_sidecar_crypto_memory_waits_total", &[]);
    until("the second one waits", || waits() >= 1.0).await;
    assert!(timeout(Duration::from_millis(50), second.stream.read_u8()).await.is_err());
    first.send(end).await;
    for client in [&mut first, &mut second] {
        assert!(matches!(client.reply().await, Some((1, Reply::Hashes(_)))));
    }
    // Whoever goes in the middle of a request leaves nothing behind.
    let mut third = sidecar.welcome().await;
    third.send(begin).await;
    until("the third one has its memory", || used() >= 16_000.0).await;
    drop(third);
    until("all is given back", || used() < 16_000.0).await;
    first.send(&request).await;
    assert!(matches!(first.reply().await, Some((1, Reply::Hashes(_)))));
}

#[tokio::test]
async fn a_drain_answers_what_has_come_and_what_is_on_its_way() {
    let sidecar = Sidecar::plain().await;
    let signed = Signed::one();
    let request = encoded(1, &[signed.check()]);
    let (begin, end) = request.split_at(request.len() / 2);
    let mut idle = sidecar.welcome().await;
    idle.send(&request).await;
    assert!(idle.reply().await.is_some());
    let mut busy = sidecar.welcome().await;
    busy.send(begin).await;
    let mut cut = sidecar.welcome().await;
    cut.send(begin).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    sidecar.inner.drain.stop();
    assert_eq!(idle.reply().await, None);
    busy.send(end).await;
    assert_eq!(busy.reply().await, Some((1, Reply::Verdicts(vec![Verdict::Valid]))));
    assert_eq!(busy.reply().await, None);
    let (id, code, _) = cut.error().await;
    assert_eq!((id, code), (0, "draining"));
    assert_eq!(sidecar.inner.drain.finish(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_generation_without_the_listener_says_so() {
    let sidecar = Sidecar::plain().await;
    let mut client = sidecar.welcome().await;
    sidecar.inner.switch_off();
    client.ask(1, &[Digest { data: &b"data"[..], length: 32 }]).await;
    let (id, code, _) = client.error().await;
    assert_eq!((id, code), (1, "draining"));
    let mut late = sidecar.client().await;
    let (id, code, _) = late.error().await;
    assert_eq!((id, code), (0, "draining"));
}
