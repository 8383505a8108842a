//! The pool of buffers under connections.

use std::sync::Arc;

use qudag_filter_common::BufferPool;
use qudag_filter_common::testing::{metric, until};
use serde_json::{Value, json};

use crate::support::*;

fn with(memory: Value) -> Value {
    json!({ "connection_pooling": { "enabled": true }, "memory_pooling": memory })
}

fn pool(sidecar: &Sidecar) -> Arc<BufferPool> {
    Arc::clone(&sidecar.states.memory_pooling.as_ref().unwrap().state)
}

#[tokio::test(flavor = "multi_thread")]
async fn buffers_come_back_from_both_ends_of_the_tunnel_and_go_when_the_filter_does() {
    let mut pair = Pair::start("buffers", Unusual::default()).await;
    let listeners_b = pair.listeners_b.clone();
    pair.b.reload(listeners_b.clone(), json!({ "memory_pooling": { "enabled": true } }));
    pair.reload(with(json!({ "enabled": true, "max_bytes": "1MiB" })));
    pair.returns().await;
    let (one, two) = (pool(&pair.a), pool(&pair.b));
    let mut streams = Vec::new();
    for round in 0..4 {
        let (mut tcp, way) = pair.greeted().await.unwrap();
        assert_eq!(way, 't');
        for length in [1, 5_000, 300_000, 1_000_000 + round] {
            echo(&mut tcp, &noise(length)).await.unwrap();
        }
        streams.push(tcp);
    }
    // What was handed to QUIC comes back when it is acknowledged, what streams have after a second without traffic.
    until("buffers are kept", || one.kept() > 0 && two.kept() > 0).await;
    assert!(one.kept() <= 1 << 20);
    let recycled = metric("qudag_sidecar_buffers_taken_total", &["kind=\"peer\"", "result=\"recycled\""]);
    assert!(recycled > 50.0, "{recycled}");

    // A lower limit holds at once, and open streams do not notice.
    pair.reload(with(json!({ "enabled": true, "max_bytes": "64KiB" })));
    assert!(Arc::ptr_eq(&one, &pool(&pair.a)), "the pool outlives reloads");
    until("little is left", || one.kept() <= 64 << 10).await;
    for tcp in &mut streams {
        echo(tcp, &noise(200_000)).await.unwrap();
        assert!(one.kept() <= 64 << 10);
    }

    // Off on one side, then on the other; what is on its way comes back to nobody.
    pair.reload(with(json!({ "enabled": false })));
    until("nothing is left", || one.kept() == 0).await;
    for tcp in &mut streams {
        echo(tcp, &noise(200_000)).await.unwrap();
    }
    assert_eq!(one.kept(), 0);
    pair.b.reload(listeners_b, json!({}));
    until("nothing is left there either", || two.kept() == 0).await;
    for tcp in &mut streams {
        echo(tcp, &noise(200_000)).await.unwrap();
    }
    assert_eq!((one.kept(), two.kept()), (0, 0));

    // On again, for the same streams.
    pair.reload(with(json!({ "enabled": true })));
    echo(&mut streams[0], &noise(500_000)).await.unwrap();
    until("buffers are kept again", || one.kept() > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_rollout_leaves_out_take_no_buffers() {
    let mut pair = Pair::start("plain", Unusual::default()).await;
    pair.reload(with(json!({ "enabled": true, "rollout": 0 })));
    pair.returns().await;
    let (mut tcp, _) = pair.greeted().await.unwrap();
    echo(&mut tcp, &noise(300_000)).await.unwrap();
    drop(tcp);
    until("the stream has ended", || pair.streams() == 0).await;
    assert_eq!(pool(&pair.a).kept(), 0);
    pair.reload(with(json!({ "enabled": true, "rollout": 100 })));
    let (mut tcp, _) = pair.greeted().await.unwrap();
    echo(&mut tcp, &noise(300_000)).await.unwrap();
    until("buffers are kept", || pool(&pair.a).kept() > 0).await;
}
