//! Calls that reach the node.

use super::*;

#[tokio::test]
async fn bytes_pass_untouched_over_tcp_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let body = br#" {"params" : {"x":"\u00e9", "n": 1.50},"id":"00000000-0000-4000-8000-000000000001" ,"method":"get_peer_info"} "#;
    for (node, bind) in [
        ("127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".to_owned()),
        (unix(folder.path(), "node"), unix(folder.path(), "sidecar").to_string()),
        ("[::1]:0".parse().unwrap(), unix(folder.path(), "other").to_string()),
    ] {
        let node = NodeServer::start(node, Manner::Node, true).await;
        let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"bind": bind})).await;
        let mut client = sidecar.client().await;
        for _ in 0..3 {
            client.send(body).await;
            assert_eq!(client.frame().await.unwrap(), answer(body).unwrap());
        }
        assert!(node.seen.lock().unwrap().iter().all(|seen| seen == &body[..]));
        assert_eq!(node.connections(), 3);
    }
}

#[tokio::test]
async fn fifty_requests_at_once_are_answered_in_order() {
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::plain(&node).await;
    let mut client = sidecar.client().await;
    let methods = ["get_status", "list_peers", "get_peer_info", "add_peer", "test_network", "unknown"];
    let requests: Vec<_> =
        (0..50).map(|n| request(n, methods[n as usize % methods.len()], &json!({"n": n}))).collect();
    let pipeline: Vec<u8> = requests.iter().flat_map(|body| framed(body)).collect();
    for part in pipeline.chunks(997) {
        client.stream.write_all(part).await.unwrap();
    }
    for body in &requests {
        assert_eq!(client.frame().await.unwrap(), answer(body).unwrap());
    }
    assert_eq!(node.connections(), 50);
}

#[tokio::test]
async fn a_client_that_has_finished_sending_gets_its_replies() {
    let node = NodeServer::slow().await;
    let sidecar = Sidecar::plain(&node).await;
    let mut client = sidecar.client().await;
    for n in 0..5 {
        client.send(&request(n, "get_status", &json!(n))).await;
    }
    client.stream.write_all(&[0, 0]).await.unwrap();
    client.stream.shutdown().await.unwrap();
    until("all calls are with the node", || node.under_way() == 5).await;
    node.release.send(true).unwrap();
    for n in 0..5 {
        assert_eq!(client.reply().await.unwrap()["result"][1], n);
    }
    assert_eq!(client.frame().await, None);
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_allowed() {
    let node = NodeServer::slow().await;
    let sidecar = Sidecar::start(node.address.clone(), json!({}), json!({"max_in_flight": 3})).await;
    let mut client = sidecar.client().await;
    for n in 0..10 {
        client.send(&request(n, "get_status", &json!(n))).await;
    }
    until("three calls are with the node", || node.under_way() == 3).await;
    node.release.send(true).unwrap();
    for n in 0..10 {
        assert_eq!(client.reply().await.unwrap()["result"][1], n);
    }
    assert_eq!(node.peak.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn changing_calls_take_effect_in_order() {
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::plain(&node).await;
    let mut client = sidecar.client().await;
    let methods =
        ["get_status", "add_peer", "list_peers", "list_peers", "remove_peer", "ban_peer", "get_status"];
    for (n, method) in (0..).zip(methods.iter().cycle().take(70)) {
        client.send(&request(n, method, &json!(n))).await;
    }
    for n in 0..70 {
        assert_eq!(client.reply().await.unwrap()["result"][1], n);
    }
    let seen = node.seen.lock().unwrap();
    let seen: Vec<Value> = seen.iter().map(|body| serde_json::from_slice(body).unwrap()).collect();
    for (place, request) in seen.iter().enumerate() {
        let (number, method) = (request["params"].as_u64().unwrap(), request["method"].as_str().unwrap());
        if !crate::request::Method::of(method).is_read_only() {
            assert_eq!(number, place as u64, "{method} overtook a call, or was overtaken");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_cancels_what_it_only_wanted_to_know() {
    let node = NodeServer::slow().await;
    let sidecar = Sidecar::plain(&node).await;
    let mut reader = sidecar.client().await;
    reader.send(&request(1, "get_status", &Value::Null)).await;
    let mut changer = sidecar.client().await;
    changer.send(&request(2, "add_peer", &Value::Null)).await;
    until("both calls are with the node", || node.under_way() == 2).await;
    reader.stream.reset();
    changer.stream.reset();
    until("the reading call is cancelled", || node.left.load(Ordering::SeqCst) == 1).await;
    assert_eq!(node.under_way(), 1);
    node.release.send(true).unwrap();
    until("the changing call is done", || node.under_way() == 0).await;
    assert_eq!(node.left.load(Ordering::SeqCst), 1);
    assert_eq!(sidecar.0.drain.finish(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_drain_answers_what_has_come() {
    let node = NodeServer::slow().await;
    let sidecar = Sidecar::plain(&node).await;
    let (mut idle, mut busy) = (sidecar.client().await, sidecar.client().await);
    busy.send(&request(1, "get_status", &Value::Null)).await;
    busy.send(&request(2, "add_peer", &Value::Null)).await;
    until("the first call is with the node", || node.under_way() == 1).await;
    sidecar.0.drain.stop();
    assert_eq!(idle.frame().await, None);
    node.release.send(true).unwrap();
    assert_eq!(busy.reply().await.unwrap()["error"], Value::Null);
    assert_eq!(busy.reply().await.unwrap()["error"], Value::Null);
    assert_eq!(busy.frame().await, None);
    assert_eq!(sidecar.0.drain.finish(PATIENCE).await, 0);
}

#[tokio::test]
async fn only_what_can_be_repeated_is_retried() {
    let retry = json!({"retry": {"enabled": true, "attempts": 3, "backoff": "1ms"}});
    for (method, attempts) in [
        ("get_status", 3),
        ("list_peers", 3),
        ("get_peer_info", 3),
        ("get_network_stats", 3),
        ("test_network", 1),
        ("add_peer", 1),
        ("stop", 1),
        ("new", 1),
    ] {
        let node = NodeServer::tcp(Manner::Closes(2)).await;
        let sidecar = Sidecar::start(node.address.clone(), retry.clone(), json!({})).await;
        let reply = sidecar.call(method).await;
        assert_eq!(node.connections(), attempts, "{method}");
        assert_eq!(reply["error"].is_null(), attempts == 3, "{method}: {reply}");
    }
}

#[tokio::test]
async fn a_failing_node_is_left_alone_and_a_refusing_one_is_not_failing() {
    let breaker = json!({"circuit_breaker": {"enabled": true, "failures": 3, "open": "60s"}});
    let node = NodeServer::tcp(Manner::Closes(usize::MAX)).await;
    let sidecar = Sidecar::start(node.address.clone(), breaker.clone(), json!({})).await;
    for _ in 0..3 {
        assert_eq!(sidecar.call("get_status").await["error"]["data"]["reason"], "upstream");
    }
    let error = &sidecar.call("get_status").await["error"];
    assert_eq!((&error["code"], &error["data"]["reason"]), (&json!(-32006), &json!("breaker_open")));
    assert!(error["data"]["retry_after_ms"].as_u64().unwrap() > 0);
    assert_eq!(node.connections(), 3);

    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::start(node.address.clone(), breaker, json!({})).await;
    for _ in 0..5 {
        assert_eq!(sidecar.call("unknown").await["error"]["code"], -32601);
    }
}

#[tokio::test]
async fn a_client_over_its_rate_is_told_when_to_come_back() {
    let limit = json!({"rate_limit": {"enabled": true, "total": {"rate": 1, "burst": 2}}});
    let node = NodeServer::tcp(Manner::Node).await;
    let sidecar = Sidecar::start(node.address.clone(), limit, json!({})).await;
    let mut client = sidecar.client().await;
    for n in 0..20 {
        client.send(&request(n, "get_status", &Value::Null)).await;
    }
    let mut passed = 0;
    for n in 0..20 {
        let reply = client.reply().await.unwrap();
        assert_eq!(reply["id"], format!("00000000-0000-4000-8000-{n:012x}"));
        if reply["error"].is_null() {
            passed += 1;
            continue;
        }
        assert_eq!(reply["error"]["code"], -32005);
        assert!((1..=1000).contains(&reply["error"]["data"]["retry_after_ms"].as_u64().unwrap()));
    }
    assert!((2..20).contains(&passed), "{passed}");
    assert_eq!(node.connections(), passed);
}
