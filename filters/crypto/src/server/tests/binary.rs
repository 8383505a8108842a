//! What is asked in `QDC1`.

use std::collections::BTreeMap;

use qudag_core::offload::{Digest, Fingerprint, HEADER, Header, NewKey, Verdict, encode_status};
use qudag_filter_common::testing::until;

use super::*;

fn key_id(key: &[u8]) -> [u8; 32] {
    blake3::hash(key).into()
}

#[tokio::test]
async fn signatures_get_their_verdicts() {
    let sidecar = Sidecar::plain().await;
    let mut client = sidecar.welcome().await;
    let all = Signed::all();
    let damaged: Vec<_> = all.iter().cloned().map(Signed::damaged).collect();
    let mut operations: Vec<_> = all.iter().chain(&damaged).map(Signed::check).collect();
    operations.push(Signature { signature: &[1, 2, 3], ..operations[0] });
    operations.push(Signature { key: Key::Id([1; 32]), ..operations[0] });
    operations.push(Signature {
        content: Content::Message { context: b"context", message: &all[0].message },
        ..operations[0]
    });
    client.ask(1, &operations).await;
    let expected = [
        vec![Verdict::Valid; all.len()],
        vec![Verdict::Mismatch; all.len()],
        vec![Verdict::Length, Verdict::UnknownKey, Verdict::Context],
    ];
    assert_eq!(client.reply().await, Some((1, Reply::Verdicts(expected.concat()))));
}

#[tokio::test]
async fn keys_are_registered_and_named() {
    let mut sidecar = Sidecar::start(json!({"crypto_offload": {"enabled": true}}), json!({})).await;
    let mut client = sidecar.welcome().await;
    let signed = Signed::one();
    let id = key_id(&signed.key);
    client.ask(1, &[NewKey { key: &signed.key }]).await;
    assert_eq!(client.reply().await, Some((1, Reply::Keys(vec![id]))));
    let named = Signature { key: Key::Id(id), ..signed.check() };
    client.ask(2, &[named]).await;
    assert_eq!(client.reply().await, Some((2, Reply::Verdicts(vec![Verdict::Valid]))));

    // The same connection, when the filter is off.
    let listener = sidecar.inner.addresses[0].to_string();
    sidecar.inner.reload(json!({"bind": listener}), json!({}));
    client.ask(3, &[NewKey { key: &signed.key }]).await;
    let (id, code, _) = client.error().await;
    assert_eq!((id, code), (3, "refused"));
    client.ask(4, &[named]).await;
    assert_eq!(client.reply().await, Some((4, Reply::Verdicts(vec![Verdict::UnknownKey]))));
}

#[tokio::test]
async fn data_is_hashed_and_the_status_is_told() {
    let sidecar = Sidecar::plain().await;
    let mut client = sidecar.welcome().await;
    let hash = |length| {
        let mut hash = vec![0; length];
        blake3::Hasher::new().update(b"data").finalize_xof().fill(&mut hash);
        hash.into_boxed_slice()
    };
    client.ask(1, &[Digest { data: &b"data"[..], length: 32 }, Digest { data: b"data", length: 1024 }]).await;
    assert_eq!(client.reply().await, Some((1, Reply::Hashes(vec![hash(32), hash(1024)]))));

    let mut status = Vec::new();
    encode_status(2, &mut status);
    client.send(&status).await;
    let Some((2, Reply::Status(json))) = client.reply().await else { panic!("a status") };
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["backend"], "portable");
    assert!(status["crypto_offload"].is_null());
}

#[tokio::test]
async fn a_fingerprint_of_other_data_is_seen() {
    let sidecar = Sidecar::plain().await;
    let mut client = sidecar.welcome().await;
    let signed = Signed::one();
    let mut fingerprint = [0; 64];
    blake3::Hasher::new().update(b"data").finalize_xof().fill(&mut fingerprint);
    let one = Fingerprint {
        key: Key::Public(&signed.key[..]),
        data: b"data",
        fingerprint: &fingerprint,
        signature: &signed.signature,
    };
    client.ask(1, &[one, Fingerprint { data: b"other", ..one }]).await;
    let expected = vec![Verdict::Mismatch, Verdict::OtherData];
    assert_eq!(client.reply().await, Some((1, Reply::Verdicts(expected))));
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let sidecar = Sidecar::start(json!({}), json!({"max_in_flight": 4})).await;
    let mut client = sidecar.client().await;
    let signed = Signed::one();
    let damaged = signed.clone().damaged();
    let mut expected = BTreeMap::new();
    let mut bytes = Vec::new();
    for id in 1..=40 {
        let (one, verdict) =
            if id % 3 == 0 { (&damaged, Verdict::Mismatch) } else { (&signed, Verdict::Valid) };
        bytes.extend(encoded(id, &[one.check()]));
        expected.insert(id, Reply::Verdicts(vec![verdict]));
    }
    client.send(&bytes).await;
    client.stream.shutdown().await.unwrap();
    assert!(matches!(client.reply().await, Some((0, Reply::Welcome(_)))));
    let mut replies = BTreeMap::new();
    while let Some((id, reply)) = client.reply().await {
        assert!(replies.insert(id, reply).is_none());
    }
    assert_eq!(replies, expected);
}

#[tokio::test]
async fn what_cannot_be_read_is_explained_and_the_connection_goes_on() {
    let sidecar = Sidecar::start(json!({}), json!({"max_operations": 2})).await;
    let mut client = sidecar.welcome().await;
    let header = Header { length: 3, id: 9, sort: 4, flags: 0, count: 1 };
    let hash = Digest { data: &b"data"[..], length: 32 };
    let with_wrong_length = {
        let mut bytes = encoded(9, &[hash]);
        bytes[HEADER] = 0xff;
        bytes
    };
    for (bytes, code, text) in [
        (frame(Header { sort: 77, ..header }, b"abc"), "malformed", "unknown sort of request"),
        (frame(Header { flags: 2, ..header }, b"abc"), "malformed", "unknown flags"),
        (frame(header, b"abc"), "malformed", "the body is too short for so many operations"),
        (with_wrong_length, "malformed", "operations[0]: a hash has 1 to 1024 bytes"),
        (encoded(9, &[hash; 3]), "too_large", "3 operations, where at most 2 are allowed"),
    ] {
        client.send(&bytes).await;
        assert_eq!(client.error().await, (9, code, text.to_owned()));
    }
    client.ask(10, &[hash]).await;
    assert!(matches!(client.reply().await, Some((10, Reply::Hashes(_)))));
    let of_unreadable = |outcome: &str| {
        let labels = [r#"request="unreadable""#, &format!(r#"outcome="{outcome}""#)];
        testing::metric("qudag_sidecar_crypto_requests_total", &labels)
    };
    until("the requests are counted", || {
        of_unreadable("malformed") >= 4.0 && of_unreadable("too_large") >= 1.0
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_is_too_long_or_cut_off_ends_the_connection() {
    let sidecar = Sidecar::start(json!({}), json!({"max_request": "16KiB"})).await;
    let hash = Digest { data: &b"data"[..], length: 32 };
    let mut client = sidecar.welcome().await;
    client.ask(1, &[hash]).await;
    client.ask(2, &[Digest { data: &[0; 20_000][..], length: 32 }]).await;
    assert!(matches!(client.reply().await, Some((1, Reply::Hashes(_)))));
    let (id, code, text) = client.error().await;
    assert_eq!((id, code), (2, "too_large"));
    assert!(text.contains("at most 16384 are allowed"), "{text}");
    assert_eq!(client.reply().await, None);

    let mut client = sidecar.welcome().await;
    let bytes = [encoded(1, &[hash]), encoded(2, &[hash])].concat();
    client.send(&bytes[..bytes.len() - 1]).await;
    client.stream.shutdown().await.unwrap();
    assert!(matches!(client.reply().await, Some((1, Reply::Hashes(_)))));
    let (id, code, text) = client.error().await;
    assert_eq!((id, code), (0, "malformed"));
    assert!(text.contains("ended after"), "{text}");
    assert_eq!(client.reply().await, None);
}
