//! Calls of the RPC are authenticated by the sidecar before the node sees them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use fips204_draft::ml_dsa_65::{KG, PrivateKey};
use fips204_draft::traits::{KeyGen, SerDes, Signer as _};
use qudag_kit::node::Host;
use qudag_kit::rpc::{self, Server};
use qudag_kit::{HostedNode, TestSidecar, eventually, needs_node};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

const PATIENCE: Duration = Duration::from_secs(20);

/// A client that signs as nodes do.
struct Signer {
    secret: PrivateKey,
    key: Vec<u8>,
}

impl Signer {
    fn new() -> Self {
        let (public, secret) = KG::try_keygen_vt().unwrap();
        Self { secret, key: public.into_bytes().to_vec() }
    }

    /// A call, signed.
    fn call(&self, client: &str, method: &str, mut params: Value) -> Value {
        let mut call = rpc::request(method, Value::Null);
        let message = format!("{method}:{}", call["id"].as_str().unwrap());
        let signature = self.secret.try_sign_ct(message.as_bytes()).unwrap();
        params["client_id"] = client.into();
        params["signature"] = HEXLOWER.encode(&signature).into();
        call["params"] = params;
        call
    }
}

/// A server of frames that answers each call with itself, and counts the connections.
struct Echo {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let call: Value = serde_json::from_slice(&rpc::receive(&mut stream).await.unwrap()).unwrap();
                let reply = json!({"id": call["id"], "result": call, "error": null});
                rpc::send(&mut stream, reply.to_string().as_bytes()).await.unwrap();
            }
        });
        Self { address, calls, _task: AbortOnDropHandle::new(task) }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn yaml(node: &str, auth: &str) -> String {
    format!(
        "node: {{ rpc: \"{node}\" }}\nlisteners:\n  rpc: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  rpc:\n    rpc_auth: {{ enabled: true, {auth} }}\n"
    )
}

/// The reply to a call over a connection of its own.
async fn call(server: &Server, call: &Value) -> Value {
    let reply = rpc::call_bytes(server, call).await.unwrap();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["id"], call["id"]);
    reply
}

/// The message of a refusal.
fn refusal(reply: &Value) -> &str {
    assert_eq!((&reply["error"]["code"], &reply["result"]), (&json!(-32001), &Value::Null), "{reply}");
    assert_eq!(reply["error"]["data"], json!({"by": "qudag-sidecar", "reason": "refused"}));
    reply["error"]["message"].as_str().unwrap()
}

async fn verdicts(sidecar: &TestSidecar, verdict: &str) -> f64 {
    sidecar.metric("qudag_sidecar_rpc_auth_total", &[("verdict", verdict)]).await
}

#[tokio::test]
async fn signed_calls_reach_the_node_once_and_as_they_are() {
    let (node, ann) = (Echo::start().await, Signer::new());
    let clients = format!("clients: {{ ann: {{ inline: \"{}\" }} }}", BASE64.encode(&ann.key));
    let sidecar = TestSidecar::start(&yaml(&node.address.to_string(), &clients)).await;
    let server = Server::Tcp(sidecar.listener("rpc").await);

    let good = ann.call("ann", "add_peer", json!({"address": "/ip4/192.0.2.1/tcp/1"}));
    assert_eq!(call(&server, &good).await["result"], good);
    assert_eq!(refusal(&call(&server, &good).await), "refused: the id was used before");
    // What was signed says nothing of the parameters.
    let mut other = good.clone();
    other["params"]["address"] = "/ip4/192.0.2.66/tcp/1".into();
    assert_eq!(refusal(&call(&server, &other).await), "refused: the id was used before");
    let eve = Signer::new().call("ann", "stop", json!({}));
    assert_eq!(refusal(&call(&server, &eve).await), "refused: the signature does not match");
    assert!(refusal(&call(&server, &rpc::request("stop", json!({}))).await).contains("required"));
    assert_eq!(node.calls(), 1, "what is refused costs the node nothing");

    // What was seen is known after a reload and after a toggle.
    let wider = format!("{clients}, replay: {{ window: 10m }}");
    sidecar.reload_with(&yaml(&node.address.to_string(), &wider)).await.ok();
    assert_eq!(refusal(&call(&server, &good).await), "refused: the id was used before");
    sidecar.toggle("rpc.rpc_auth", false).await;
    assert_eq!(call(&server, &good).await["result"], good, "off means absent");
    sidecar.toggle("rpc.rpc_auth", true).await;
    assert_eq!(refusal(&call(&server, &good).await), "refused: the id was used before");

    for (verdict, count) in [("signature", 1.0), ("replayed", 4.0), ("mismatch", 1.0), ("missing", 1.0)] {
        assert_eq!(verdicts(&sidecar, verdict).await, count, "{verdict}");
    }
    assert_eq!(sidecar.metric("qudag_sidecar_rpc_auth_ids", &[]).await, 1.0);
}

#[tokio::test]
async fn a_key_file_is_followed_and_ids_with_a_time_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ann.pub");
    let (node, old, new) = (Echo::start().await, Signer::new(), Signer::new());
    std::fs::write(&file, HEXLOWER.encode(&old.key)).unwrap();
    let auth = format!("methods: changing, clients: {{ ann: {{ file: \"{}\" }} }}", file.display());
    let sidecar = TestSidecar::start(&yaml(&node.address.to_string(), &auth)).await;
    let server = Server::Tcp(sidecar.listener("rpc").await);
    let passes = async |signer: &Signer| {
        call(&server, &signer.call("ann", "stop", json!({}))).await["error"].is_null()
    };
    assert!(passes(&old).await && !passes(&new).await);
    assert!(call(&server, &rpc::request("get_status", json!({}))).await["error"].is_null());
    std::fs::write(&file, &new.key).unwrap();
    eventually(PATIENCE, "the new key is in use", async || passes(&new).await.then_some(())).await;
    assert!(!passes(&old).await);

    let timed = yaml(&node.address.to_string(), &format!("{auth}, replay: {{ require_time: true }}"));
    sidecar.reload_with(&timed).await.ok();
    let timeless = new.call("ann", "stop", json!({}));
    assert_eq!(refusal(&call(&server, &timeless).await), "refused: the id has to be a UUID of version 7");
}

#[tokio::test]
async fn a_configuration_without_keys_is_refused_with_its_place() {
    let finished =
        TestSidecar::refused(&yaml("127.0.0.1:1", "clients: { ann: { file: /nowhere/ann.pub } }")).await;
    assert_eq!(finished.code, 78, "{}", finished.stderr);
    assert!(finished.stderr.contains("/nowhere/ann.pub"), "{}", finished.stderr);
    assert!(finished.stderr.contains("filters.rpc.rpc_auth.clients.ann"), "{}", finished.stderr);
}

/// The real node asks for a token itself, so that what it says shows what it got.
#[tokio::test]
async fn the_real_node_gets_the_credentials_too() {
    needs_node!();
    let dir = tempfile::tempdir().unwrap();
    let (socket, token, ann) = (dir.path().join("rpc.sock"), dir.path().join("token"), Signer::new());
    std::fs::write(&token, "sesame\n").unwrap();
    let host = Host { rpc_unix: Some(&socket), rpc_token: Some("sesame"), ..Host::default() };
    let _node = HostedNode::start(&host).await;
    let auth = format!(
        "tokens: [{{ file: \"{}\" }}], clients: {{ ann: {{ inline: \"{}\" }} }}",
        token.display(),
        HEXLOWER.encode(&ann.key)
    );
    let sidecar = TestSidecar::start(&yaml(&format!("unix:{}", socket.display()), &auth)).await;
    let server = Server::Tcp(sidecar.listener("rpc").await);
    let with = |token: &str| rpc::request("get_status", json!({"auth_token": token}));
    assert_eq!(call(&server, &with("sesame")).await["result"]["is_running"], true);
    assert_eq!(refusal(&call(&server, &with("guess")).await), "refused: the token is not known");
    // The node was told of no client's key: what passes the sidecar is refused by the node, in its own words.
    let signed = ann.call("ann", "get_status", json!({}));
    let direct = call(&node_itself(&socket), &signed).await;
    assert_eq!(direct["error"]["code"], -32001);
    assert_eq!(call(&server, &signed).await, direct);
    // With both, the node takes the token.
    let both = ann.call("ann", "get_status", json!({"auth_token": "sesame"}));
    assert_eq!(call(&server, &both).await["result"]["is_running"], true);
    assert_eq!(verdicts(&sidecar, "signature").await, 1.0);
    assert_eq!(verdicts(&sidecar, "token").await, 2.0);
}

/// The real node knows the same key, so that what it says of a signature stands beside what the sidecar says.
#[tokio::test]
async fn the_sidecar_and_the_real_node_agree_about_signatures() {
    needs_node!();
    let dir = tempfile::tempdir().unwrap();
    let (socket, key, ann) = (dir.path().join("rpc.sock"), dir.path().join("ann.pub"), Signer::new());
    std::fs::write(&key, &ann.key).unwrap();
    let host = Host { rpc_unix: Some(&socket), rpc_key: Some(("ann", &key)), ..Host::default() };
    let _node = HostedNode::start(&host).await;
    let auth = format!("clients: {{ ann: {{ file: \"{}\" }} }}", key.display());
    let sidecar = TestSidecar::start(&yaml(&format!("unix:{}", socket.display()), &auth)).await;
    let server = Server::Tcp(sidecar.listener("rpc").await);

    let good = ann.call("ann", "get_status", json!({}));
    assert_eq!(call(&server, &good).await["result"]["is_running"], true, "both take it");
    let mut of_another_method = ann.call("ann", "get_status", json!({}));
    of_another_method["method"] = "list_peers".into();
    let mut altered = ann.call("ann", "get_status", json!({}));
    let mut signature = HEXLOWER.decode(altered["params"]["signature"].as_str().unwrap().as_bytes()).unwrap();
    signature[9] ^= 4;
    altered["params"]["signature"] = HEXLOWER.encode(&signature).into();
    let wrong = [
        (Signer::new().call("ann", "get_status", json!({})), "the signature does not match"),
        (of_another_method, "the signature does not match"),
        (altered, "the signature does not match"),
        (ann.call("eve", "get_status", json!({})), "the client is not known"),
        (rpc::request("get_status", json!({})), "authentication is required"),
    ];
    for (wrong, why) in &wrong {
        let reply = call(&server, wrong).await;
        assert!(refusal(&reply).starts_with(&format!("refused: {why}")), "{reply}");
    }
    sidecar.toggle("rpc.rpc_auth", false).await;
    for (wrong, why) in &wrong {
        let error = &call(&server, wrong).await["error"];
        assert_eq!(
            *error,
            json!({"code": -32001, "message": "Authentication required", "data": null}),
            "{why}"
        );
    }
    assert_eq!(call(&server, &good).await["result"]["is_running"], true, "a node takes it again and again");
    sidecar.toggle("rpc.rpc_auth", true).await;
    assert_eq!(refusal(&call(&server, &good).await), "refused: the id was used before");
}

fn node_itself(socket: &Path) -> Server {
    Server::Unix(socket.to_owned())
}
