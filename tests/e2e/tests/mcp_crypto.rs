//! Calls of the node's MCP tool for cryptography are answered by the sidecar, and nothing else is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use data_encoding::BASE64;
use fips204_draft::ml_dsa_65::KG;
use fips204_draft::traits::{KeyGen, SerDes, Signer};
use qudag_kit::http::{self, Client};
use qudag_kit::{HttpNode, TestSidecar};
use serde_json::{Value, json};

fn yaml(node: &HttpNode, settings: &str) -> String {
    format!(
        "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  http:\n    mcp_crypto: {{ {settings} }}\n",
        node.addr()
    )
}

fn verify(message: &[u8], signature: &[u8], key: &[u8]) -> Value {
    let arguments = json!({
        "operation": "verify",
        "algorithm": "ml-dsa",
        "data": BASE64.encode(message),
        "signature": BASE64.encode(signature),
        "publicKey": BASE64.encode(key),
    });
    json!({"name": "crypto", "arguments": arguments})
}

#[tokio::test]
async fn signatures_are_judged_by_the_sidecar_over_both_protocols_and_both_paths() {
    let node = HttpNode::start().await;
    let sidecar = TestSidecar::start(&yaml(&node, "enabled: true")).await;
    let door = sidecar.listener("http").await;
    let (key, secret) = KG::try_keygen_vt().unwrap();
    let (signature, key) = (secret.try_sign_ct(b"a message").unwrap(), key.into_bytes());
    let (good, forged) = (verify(b"a message", &signature, &key), verify(b"another one", &signature, &key));
    let mut clients = [Client::http1(door).await.unwrap(), Client::http2(door).await.unwrap()];
    for client in &mut clients {
        for (call, valid) in [(&good, true), (&forged, false)] {
            let reply = client.post("/mcp/tools/call", &call.to_string()).await.unwrap();
            assert_eq!(reply.status, 200);
            assert_eq!(reply.headers["content-type"], "application/json");
            assert_eq!(
                (&reply.json()["success"], &reply.json()["result"]["valid"]),
                (&json!(true), &json!(valid))
            );
            let request = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call});
            let reply = client.post("/mcp/rpc", &request.to_string()).await.unwrap().json();
            assert_eq!(
                (&reply["id"], &reply["result"]["structuredContent"]["valid"]),
                (&json!(7), &json!(valid))
            );
        }
        let sign = json!({"name": "crypto", "arguments": {"operation": "sign", "data": ""}}).to_string();
        let reply = client.post("/mcp/tools/call", &sign).await.unwrap();
        assert_eq!((reply.status.as_u16(), &reply.json()["success"]), (403, &json!(false)));
        assert!(client.is_reusable());
    }
    assert_eq!(node.requests(), 0);
    let judged = async |outcome| {
        sidecar
            .metric("qudag_sidecar_mcp_crypto_total", &[("operation", "verify"), ("outcome", outcome)])
            .await
    };
    assert_eq!((judged("valid").await, judged("invalid").await), (4.0, 4.0));
}

#[tokio::test]
async fn what_does_not_concern_the_tool_is_the_nodes() {
    let node = HttpNode::start().await;
    let sidecar = TestSidecar::start(&yaml(&node, "enabled: true, mode: block, max_body: 16KiB")).await;
    let door = sidecar.listener("http").await;
    // The node of the tests sends a body back as it came.
    for (path, body) in [
        ("/mcp/rpc", r#"{ "jsonrpc": "2.0", "id": 1,  "method": "tools/list" }"#),
        ("/mcp/tools/call", r#"{"name": "dag", "arguments": {"operation": "get_tips"}}"#),
        ("/mcp/tools/call", "no JSON"),
    ] {
        assert_eq!(http::post(door, path, body).await.unwrap().text(), body);
    }
    assert_eq!(http::get(door, "/mcp/tools").await.unwrap().json()["tools"][0], "crypto");
    let passed = node.requests();
    assert_eq!(passed, 4);

    let call = verify(b"", b"", b"").to_string();
    let reply = http::post(door, "/mcp/tools/call", &call).await.unwrap();
    assert_eq!(reply.status, 403);
    assert!(reply.json()["error"].as_str().unwrap().contains("blocked"));
    // What is too long to be looked into could be anything.
    let long = format!("{}{call}", " ".repeat(16 << 10));
    assert_eq!(http::post(door, "/mcp/tools/call", &long).await.unwrap().status, 413);
    assert_eq!(node.requests(), passed);

    sidecar.toggle("http.mcp_crypto", false).await;
    assert_eq!(http::post(door, "/mcp/tools/call", &call).await.unwrap().text(), call);
    assert_eq!(http::post(door, "/mcp/tools/call", &long).await.unwrap().text(), long);
}
