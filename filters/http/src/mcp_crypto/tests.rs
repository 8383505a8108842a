//! The filter between MCP clients and a node whose tool calls everything valid.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::{BASE64, HEXLOWER};
use fips204_draft::ml_dsa_65::KG;
use fips204_draft::traits::{KeyGen, SerDes, Signer};
use proptest::prelude::*;
use qudag_filter_common::testing::{env, wrong_places};
use serde_json::{Value, json};

use super::*;

const MESSAGE: &[u8] = b"what was signed";

/// A key, its signature of [`MESSAGE`], and one of the fingerprint of it; in base64.
static SIGNED: LazyLock<[String; 3]> = LazyLock::new(|| {
    let (public, secret) = KG::try_keygen_vt().unwrap();
    let mut fingerprint = [0; 64];
    blake3::Hasher::new().update(MESSAGE).finalize_xof().fill(&mut fingerprint);
    let sign = |message: &[u8]| BASE64.encode(&secret.try_sign_ct(message).unwrap());
    [BASE64.encode(&public.into_bytes()), sign(MESSAGE), sign(&fingerprint)]
});

/// What the mock says.
const MOCK: &[u8] = br#"{"success":true,"result":{"valid":true}}"#;

/// The filter before a node that counts its requests and checks that they are as they were sent.
struct Filter {
    chain: Svc<Http>,
    reached: Arc<AtomicUsize>,
}

impl Filter {
    fn new(settings: Value) -> Self {
        let settings: McpCrypto = serde_json::from_value(settings).unwrap();
        assert_eq!(settings.check(&ConfigPath::root()), []);
        let reached = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reached);
        let node = service_fn::<Http, _, _>(move |call: HttpCall| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                let (parts, body) = call.request.into_parts();
                let length = body.size_hint().exact();
                let sent = parts.headers.get("x-length").map(|value| value.to_str().unwrap().to_owned());
                assert_eq!(length.map(|length| length.to_string()), sent, "the length is known, as it was");
                Ok(Response::new(full(Bytes::from_static(MOCK))))
            }
        });
        let state = settings.state(&env(), None).unwrap();
        Self { chain: settings.wrap(state, node), reached }
    }

    /// Status and body of a reply; `None` when it is the node's.
    async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Option<(u16, Value)> {
        let body = body.into();
        let request = Request::builder().method(method).uri(path).header("x-length", body.len());
        let call = HttpCall { request: request.body(full(body)).unwrap(), client: None };
        let before = self.reached.load(Ordering::SeqCst);
        let reply = self.chain.clone().oneshot(call).await.unwrap();
        let status = reply.status().as_u16();
        let length = reply.headers().get(CONTENT_LENGTH).cloned();
        let bytes = reply.into_body().collect().await.unwrap().to_bytes();
        if self.reached.load(Ordering::SeqCst) > before {
            assert_eq!(bytes, MOCK);
            return None;
        }
        assert_eq!(length.unwrap(), bytes.len().to_string());
        Some((status, serde_json::from_slice(&bytes).unwrap()))
    }

    /// A plain call of the tool.
    async fn call(&self, arguments: Value) -> (u16, Value) {
        let body = json!({"name": "crypto", "arguments": arguments}).to_string();
        self.send("POST", "/mcp/tools/call", body).await.expect("a reply of the sidecar")
    }

    /// The result of a call that is answered.
    async fn result(&self, arguments: Value) -> Value {
        let (status, mut body) = self.call(arguments).await;
        assert_eq!((status, &body["success"]), (200, &json!(true)), "{body}");
        body["result"].take()
    }
}

fn verify(more: &Value) -> Value {
    let [key, signature, _] = &*SIGNED;
    let mut arguments = json!({"operation": "verify", "data": BASE64.encode(MESSAGE), "signature": signature, "publicKey": key});
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    arguments
}

#[tokio::test]
async fn signatures_are_verified_for_real() {
    let filter = Filter::new(json!({}));
    let good = json!({"valid": true, "algorithm": "ml-dsa-65-ipd"});
    for more in [
        json!({}),
        json!({"algorithm": "ml-dsa"}),
        json!({"algorithm": "ml-dsa-65-ipd"}),
        json!({"data": null, "message": str::from_utf8(MESSAGE).unwrap()}),
        json!({"publicKey": null, "public_key": SIGNED[0]}),
    ] {
        assert_eq!(filter.result(verify(&more)).await, good, "{more}");
    }
    let mut altered = BASE64.decode(SIGNED[1].as_bytes()).unwrap();
    altered[9] ^= 1;
    for (more, algorithm, reason) in [
        (json!({"data": BASE64.encode(b"something else")}), "ml-dsa-65-ipd", "the signature does not match"),
        (json!({"signature": BASE64.encode(&altered)}), "ml-dsa-65-ipd", "the signature does not match"),
        (json!({"signature": SIGNED[2]}), "ml-dsa-65-ipd", "the signature does not match"),
        (json!({"signature": "AAAA"}), "ml-dsa-65-ipd", "a signature has 3309 bytes"),
        (json!({"algorithm": "ml-dsa-65"}), "ml-dsa-65", "the signature does not match"),
    ] {
        let expected = json!({"valid": false, "algorithm": algorithm, "reason": reason});
        assert_eq!(filter.result(verify(&more)).await, expected, "{more}");
    }
    let final_by_default = Filter::new(json!({"alg": "ml-dsa-65"}));
    assert_eq!(final_by_default.result(verify(&json!({}))).await["valid"], false);
    assert_eq!(final_by_default.result(verify(&json!({"algorithm": "ml-dsa-65-ipd"}))).await["valid"], true);
}

#[tokio::test]
async fn hashes_and_fingerprints_are_real() {
    let filter = Filter::new(json!({}));
    let hash = blake3::hash(MESSAGE);
    let data = BASE64.encode(MESSAGE);
    assert_eq!(
        filter.result(json!({"operation": "hash", "data": data})).await,
        json!({"hash": BASE64.encode(hash.as_bytes()), "algorithm": "blake3"})
    );
    let hex = json!({"operation": "hash", "algorithm": "blake3", "data": data, "format": "hex"});
    assert_eq!(filter.result(hex).await["hash"], hash.to_hex().to_string());
    let fingerprint = json!({"operation": "fingerprint", "data": data, "format": "hex"});
    let fingerprint = filter.result(fingerprint).await["fingerprint"].as_str().unwrap().to_owned();
    // What comes first of the longer output is the shorter one.
    assert_eq!((fingerprint.len(), &fingerprint[..64]), (128, hash.to_hex().as_str()));
    let [key, of_message, of_fingerprint] = &*SIGNED;
    for (signature, valid) in [(of_fingerprint, true), (of_message, false)] {
        let signed =
            json!({"operation": "fingerprint", "data": data, "signature": signature, "publicKey": key});
        assert_eq!(filter.result(signed).await["valid"], valid);
    }
}

#[tokio::test]
async fn what_is_not_done_says_so() {
    let filter = Filter::new(json!({}));
    for operation in ["sign", "generate_keys", "encrypt", "decrypt", "anything"] {
        let (status, body) = filter.call(json!({"operation": operation, "privateKey": "secret"})).await;
        assert_eq!((status, &body["success"]), (403, &json!(false)));
        let why = body["error"].as_str().unwrap();
        assert!(
            why.starts_with(&format!("{operation:?} is not answered")) && !why.contains("\"secret\""),
            "{why}"
        );
    }
    for (arguments, why) in [
        (json!({}), "`operation` is missing"),
        (Value::Null, "`operation` is missing"),
        (json!("verify"), "`operation` is missing"),
        (json!({"operation": 7}), "`operation` is missing"),
        (verify(&json!({"data": null})), "`data` is missing"),
        (verify(&json!({"data": "%"})), "`data` is not base64"),
        (verify(&json!({"data": 7})), "`data` is not a string"),
        (verify(&json!({"message": "x"})), "`data` and `message` are both there"),
        (verify(&json!({"signature": null})), "`signature` is missing"),
        (verify(&json!({"signature": "%"})), "`signature` is not base64"),
        (verify(&json!({"publicKey": null})), "`publicKey` is missing"),
        (verify(&json!({"public_key": ""})), "`publicKey` and `public_key` are both there"),
        (
            verify(&json!({"publicKey": "AAAA"})),
            "`publicKey`: 3 bytes, where a public key of ML-DSA-65 has 1952",
        ),
        (verify(&json!({"publicKey": null, "signature": null})), "`signature` and `publicKey` are missing"),
        (
            verify(&json!({"algorithm": "ML-DSA-65"})),
            "unknown `algorithm` \"ML-DSA-65\": the algorithms are ml-dsa-65-ipd and ml-dsa-65",
        ),
        (
            json!({"operation": "hash", "data": "", "algorithm": "sha3"}),
            "unknown `algorithm` \"sha3\" of a hash: it is blake3",
        ),
        (
            json!({"operation": "hash", "data": "", "format": "pem"}),
            "unknown `format` \"pem\": base64 and hex are",
        ),
    ] {
        let (status, body) = filter.call(arguments).await;
        assert_eq!((status, body), (400, json!({"success": false, "error": why})));
    }
}

#[tokio::test]
async fn json_rpc_gets_json_rpc() {
    let filter = Filter::new(json!({"tools": ["crypto"]}));
    let request = |arguments: &Value| json!({"jsonrpc": "2.0", "id": "seven", "method": "tools/call", "params": {"name": "crypto", "arguments": arguments}});
    let rpc = async |body: &Value| {
        let (status, reply) = filter.send("POST", "/mcp/rpc", body.to_string()).await.unwrap();
        assert_eq!((status, &reply["jsonrpc"]), (200, &json!("2.0")));
        reply
    };
    let reply = rpc(&request(&verify(&json!({})))).await;
    assert_eq!(reply["id"], "seven");
    let result = &reply["result"];
    let judged = json!({"valid": true, "algorithm": "ml-dsa-65-ipd"});
    assert_eq!(
        (&result["structuredContent"], &result["success"], &result["isError"]),
        (&judged, &json!(true), &json!(false))
    );
    assert_eq!((&result["tool"], &result["output"]), (&json!("crypto"), &result["content"][0]["text"]));
    assert_eq!(serde_json::from_str::<Value>(result["output"].as_str().unwrap()).unwrap(), judged);
    let error = rpc(&request(&json!({"operation": "sign"}))).await;
    assert_eq!(
        (&error["error"]["code"], &error["id"], &error["result"]),
        (&json!(-32001), &json!("seven"), &Value::Null)
    );
    assert_eq!(rpc(&request(&json!({}))).await["error"]["code"], -32602);
    let batch = json!([{"method": "tools/list"}, request(&verify(&json!({})))]);
    let error = rpc(&batch).await;
    assert_eq!((&error["error"]["code"], &error["id"]), (&json!(-32600), &Value::Null));
}

#[tokio::test]
async fn what_is_blocked_never_reaches_the_node() {
    let filter = Filter::new(json!({"mode": "block"}));
    for tool in ["crypto", "qudag_crypto"] {
        let call = json!({"name": tool, "arguments": verify(&json!({}))});
        let (status, body) = filter.send("POST", "/mcp/tools/call", call.to_string()).await.unwrap();
        assert_eq!((status, &body["success"]), (403, &json!(false)));
        assert!(body["error"].as_str().unwrap().contains("blocked"));
        let request = json!({"method": "tools/call", "params": call});
        let (status, body) = filter.send("POST", "/mcp/rpc?x", request.to_string()).await.unwrap();
        assert_eq!((status, &body["error"]["code"]), (200, &json!(-32001)));
        assert_eq!(
            filter.send("POST", "/mcp/rpc", json!([request]).to_string()).await.unwrap().1["error"]["code"],
            -32001
        );
    }
    // The node reads a name that is no UTF-8 elsewhere, and the last of two.
    for body in [
        &b"{\"name\":\"dag\",\"name\":\"crypto\",\"x\":\"\xff\"}"[..],
        br#"{"name":"\u0063rypto"}"#,
        b" \n{\"arguments\":[],\"name\":\"crypto\"}\n",
    ] {
        assert_eq!(filter.send("POST", "/mcp/tools/call", body).await.unwrap().0, 403);
    }
}

#[tokio::test]
async fn everything_else_passes_as_it_is() {
    let filter = Filter::new(json!({"max_body": "16KiB"}));
    let call = json!({"name": "crypto", "arguments": {"operation": "verify"}}).to_string();
    for (method, path, body) in [
        ("GET", "/mcp/tools", ""),
        ("GET", "/mcp/tools/call", &call),
        ("PUT", "/mcp/tools/call", &call),
        ("POST", "/mcp/tools/calls", &call),
        ("POST", "/mcp/tools/call/", &call),
        ("POST", "/mcp/tools/call", r#"{"name":"dag","arguments":{"name":"crypto"}}"#),
        ("POST", "/mcp/tools/call", r#"{"name":["crypto"]}"#),
        ("POST", "/mcp/tools/call", "not JSON: \"crypto\""),
        ("POST", "/mcp/tools/call", ""),
        ("POST", "/mcp/rpc", r#"{"id":1,"method":"tools/list"}"#),
        ("POST", "/mcp/rpc", r#"{"id":1,"method":"tools/call","params":{"name":"dag"}}"#),
        ("POST", "/mcp/rpc", r#"{"id":1,"method":"prompts/get","params":{"name":"crypto"}}"#),
        ("POST", "/mcp/rpc", r#"[{"method":"tools/list"}]"#),
        ("POST", "/other", &"x".repeat(17 * 1024)),
    ] {
        assert_eq!(filter.send(method, path, body.to_owned()).await, None, "{method} {path} {body:.60}");
    }
    assert_eq!(filter.send("POST", "/mcp/rpc", vec![b' '; 16 * 1024 + 1]).await.unwrap().0, 413);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_bounded_and_its_errors_are_passed_on() {
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    let body =
        |pieces: Vec<Result<Frame<Bytes>, FilterError>>| Body::new(StreamBody::new(stream::iter(pieces)));
    let piece = |length| Ok(Frame::data(Bytes::from(vec![b' '; length])));
    assert_eq!(whole(body(vec![piece(5), piece(5)]), 10).await.unwrap().unwrap().len(), 10);
    assert_eq!(whole(body(vec![piece(5), piece(6)]), 10).await.unwrap(), None);
    assert!(whole(body(vec![piece(5), Err(FilterError::ClientGone)]), 10).await.is_err());
}

#[test]
fn mistakes_have_their_place() {
    let wrong = |settings: Value| wrong_places(&settings.to_string(), McpCrypto::check);
    assert!(wrong(json!({})).is_empty());
    assert_eq!(wrong(json!({"tools": [], "max_body": "1KiB"})), ["tools", "max_body"]);
    assert_eq!(wrong(json!({"tools": [""], "max_body": "9MiB"})), ["tools", "max_body"]);
    assert!(serde_json::from_value::<McpCrypto>(json!({"mode": "mock"})).is_err());
}

proptest! {
    /// Whatever the arguments are, there is an answer, and none says valid.
    #[test]
    fn any_arguments_are_answered(
        operation in proptest::sample::select(vec!["verify", "hash", "fingerprint", "x"]),
        values in proptest::collection::vec(("data|message|signature|publicKey|public_key|algorithm|format", "[A-Za-z0-9+/=-]{0,12}"), 0..6),
    ) {
        let mut arguments = json!({"operation": operation});
        for (name, value) in values {
            arguments[name] = value.into();
        }
        let body = json!({"name": "crypto", "arguments": arguments}).to_string();
        let asked = asked(Door::Call, body.as_bytes(), &["crypto".to_owned()]).unwrap();
        let reply = answer(&McpCrypto::default(), &asked);
        prop_assert_ne!(&reply.body["result"]["valid"], &json!(true));
        prop_assert!(reply.body["success"].is_boolean());
    }
}

#[test]
fn digits_are_base64_unless_they_must_be_a_key() {
    let hash = |data: &str| {
        let arguments = json!({"operation": "hash", "data": data, "format": "hex"});
        let body = json!({"name": "crypto", "arguments": arguments}).to_string();
        let asked = asked(Door::Call, body.as_bytes(), &["crypto".to_owned()]).unwrap();
        answer(&McpCrypto::default(), &asked).body["result"]["hash"].as_str().unwrap().to_owned()
    };
    assert_eq!(hash("00ff"), HEXLOWER.encode(blake3::hash(&BASE64.decode(b"00ff").unwrap()).as_bytes()));
}
