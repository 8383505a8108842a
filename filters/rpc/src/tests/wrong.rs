//! Clients and nodes that are wrong, slow or gone.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

#[tokio::test]
async fn what_the_node_would_not_read_is_answered_and_the_connection_kept() {
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::plain(&node).await;
    let mut client = sidecar.client().await;
    for (body, code) in
        [("nonsense", -32700), ("", -32700), ("{}", -32600), (r#"{"id":7,"method":"get_status"}"#, -32600)]
    {
        client.send(body.as_bytes()).await;
        let reply = client.reply().await.unwrap();
        assert_eq!((&reply["error"]["code"], &reply["result"]), (&json!(code), &Value::Null), "{body}");
    }
    assert_eq!(node.connections(), 0);
    client.send(&request(1, "get_status", &Value::Null)).await;
    assert!(client.reply().await.unwrap()["error"].is_null());
}

#[tokio::test]
async fn a_frame_that_is_too_long_is_refused_behind_the_replies_before_it() {
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"max_frame": "1KiB"})).await;
    let mut client = sidecar.client().await;
    client.send(&request(1, "get_status", &json!("x".repeat(900)))).await;
    client.send(&vec![b' '; 1025]).await;
    client.send(&request(2, "get_status", &Value::Null)).await;
    assert!(client.reply().await.unwrap()["error"].is_null());
    let reply = client.reply().await.unwrap();
    assert_eq!(
        (&reply["error"]["code"], &reply["id"]),
        (&json!(-32600), &json!("00000000-0000-0000-0000-000000000000"))
    );
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.frame().await, None);

    let sidecar = Sidecar::plain(&node).await;
    let mut client = sidecar.client().await;
    client.stream.write_all(&(10 * 1024 * 1024 + 1_u32).to_be_bytes()).await.unwrap();
    assert_eq!(client.reply().await.unwrap()["error"]["code"], -32600);
    let mut client = sidecar.client().await;
    let most = 10 * 1024 * 1024 - request(3, "get_status", &json!("")).len();
    client.send(&request(3, "get_status", &json!("x".repeat(most - 200)))).await;
    assert!(client.reply().await.unwrap()["error"].is_null());
}

#[tokio::test]
async fn every_failure_of_the_node_is_an_error_frame() {
    let silent = NodeServer::tcp(Manner::Silent).await;
    let breaks = NodeServer::tcp(Manner::Breaks).await;
    let closes = NodeServer::tcp(Manner::Closes(usize::MAX)).await;
    let nobody = "unix:/nonexistent/rpc.sock".parse().unwrap();
    for (node, code, reason) in [
        (&silent.address, -32007, "timeout"),
        (&breaks.address, -32006, "upstream"),
        (&closes.address, -32006, "upstream"),
        (&nobody, -32006, "connect"),
        (&"node.invalid:1".parse().unwrap(), -32006, "resolve"),
    ] {
        let sidecar = Sidecar::start(node.clone(), json!({}), json!({"request_timeout": "100ms"})).await;
        let reply = sidecar.call("get_status").await;
        assert_eq!(reply["id"], "00000000-0000-4000-8000-000000000001");
        assert_eq!(
            (&reply["error"]["code"], &reply["error"]["data"]["reason"]),
            (&json!(code), &json!(reason)),
            "{reply}"
        );
    }
    until("the silent node is left", || silent.left.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn idle_and_slow_clients_are_closed_and_waiting_ones_are_not() {
    let node = NodeServer::slow().await;
    let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"idle_timeout": "400ms"})).await;
    let mut idle = sidecar.client().await;
    assert_eq!(timeout(PATIENCE, idle.stream.read(&mut [0; 9])).await.unwrap().unwrap(), 0);
    let mut slow = sidecar.client().await;
    for byte in framed(b"{}").iter().take(5) {
        // One more byte does not buy more time; a closed connection refuses it in the end.
        let _ = slow.stream.write_all(&[*byte]).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(timeout(PATIENCE, slow.stream.read(&mut [0; 9])).await.unwrap().unwrap_or(0), 0);
    let mut waiting = sidecar.client().await;
    waiting.send(&request(1, "get_status", &Value::Null)).await;
    until("the call is with the node", || node.under_way() == 1).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    node.release.send(true).unwrap();
    assert!(waiting.reply().await.unwrap()["error"].is_null());
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"max_connections": 1})).await;
    let mut first = sidecar.client().await;
    first.send(&request(1, "get_status", &Value::Null)).await;
    assert!(first.reply().await.unwrap()["error"].is_null());
    assert_eq!(sidecar.call("get_status").await["error"]["data"]["reason"], "overloaded");
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while !sidecar.call("get_status").await["error"].is_null() {
        assert!(Instant::now() < deadline, "the place is never free again");
    }
}

#[test]
fn garbage_harms_nobody() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (node, sidecar) = runtime.block_on(async {
        let node = NodeServer::tcp(Manner::Node).await;
        let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"max_frame": "1KiB"})).await;
        (node, sidecar)
    });
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(|body| framed(&body)),
        "[\\[\\]{}\":,a-z0-9]{0,40}".prop_map(|body| framed(body.as_bytes())),
        Just(framed(&request(1, "get_status", &Value::Null))),
    ];
    let mut runner = TestRunner::new(ProptestConfig { cases: 96, ..ProptestConfig::default() });
    runner
        .run(&proptest::collection::vec(piece, 1..6), |pieces| {
            runtime.block_on(async {
                let mut client = sidecar.client().await;
                let _ = client.stream.write_all(&pieces.concat()).await;
                let _ = client.stream.shutdown().await;
                while let Some(reply) = client.reply().await {
                    assert!(reply["error"]["code"].is_i64() || reply["error"].is_null(), "{reply}");
                }
            });
            Ok(())
        })
        .unwrap();
    assert!(runtime.block_on(sidecar.call("get_status"))["error"].is_null());
    drop(node);
}
