//! What is asked in HTTP.

use data_encoding::{BASE64, HEXLOWER};

use super::*;

/// A response, as far as it matters.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: Value,
}

/// Sends bytes and reads one response.
async fn exchange(stream: &mut Stream, bytes: &[u8]) -> Response {
    stream.write_all(bytes).await.unwrap();
    let mut received = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&received).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                if body.len() >= length {
                    assert_eq!(body.len(), length);
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    assert!(head.contains("content-type: application/json"), "{head}");
                    return Response { status, head, body: serde_json::from_str(body).unwrap() };
                }
            }
            let read = stream.read_buf(&mut received).await.unwrap();
            assert!(read > 0, "no response: {text}");
        }
    };
    timeout(PATIENCE, read).await.expect("a response in time")
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: sidecar\r\nContent-Type: application/json\r\n");
    format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn operation(signed: &Signed) -> Value {
    json!({
        "key": BASE64.encode(&signed.key),
        "message": BASE64.encode(&signed.message),
        "signature": BASE64.encode(&signed.signature),
    })
}

#[tokio::test]
async fn everything_can_be_asked_on_one_connection() {
    let sidecar = Sidecar::start(json!({"crypto_offload": {"enabled": true}}), json!({})).await;
    let mut stream = sidecar.connect().await;
    let signed = Signed::one();
    let key = json!({"keys": [BASE64.encode(&signed.key)]}).to_string();
    let reply = exchange(&mut stream, &post("/v1/keys", &key)).await;
    let id = HEXLOWER.encode(blake3::hash(&signed.key).as_bytes());
    assert_eq!((reply.status, reply.body), (200, json!({"keys": [{"key_id": id}]})));

    let mut named = operation(&signed);
    named.as_object_mut().unwrap().remove("key");
    named["key_id"] = id.to_ascii_uppercase().into();
    let mut unknown = named.clone();
    unknown["key_id"] = "00".repeat(32).into();
    let operations = json!([operation(&signed), operation(&signed.clone().damaged()), named, unknown]);
    let body = json!({"alg": "ml-dsa-65-ipd", "operations": operations}).to_string();
    let reply = exchange(&mut stream, &post("/v1/verify:batch", &body)).await;
    let expected = json!({"results": [
        {"valid": true},
        {"valid": false, "reason": "mismatch"},
        {"valid": true},
        {"valid": false, "reason": "unknown_key"},
    ]});
    assert_eq!((reply.status, reply.body), (200, expected));
    // Nothing is guessed: by the final standard it is no signature.
    let body = json!({"alg": "ml-dsa-65", "operations": [operation(&signed)]}).to_string();
    let reply = exchange(&mut stream, &post("/v1/verify:batch", &body)).await;
    assert_eq!(reply.body, json!({"results": [{"valid": false, "reason": "mismatch"}]}));

    let body = json!({"operations": [{"data": "ZGF0YQ=="}, {"data": "ZGF0YQ==", "length": 3}]}).to_string();
    let reply = exchange(&mut stream, &post("/v1/hash:batch", &body)).await;
    let hash = blake3::hash(b"data");
    let hashes = [BASE64.encode(hash.as_bytes()), BASE64.encode(&hash.as_bytes()[..3])];
    assert_eq!(reply.body, json!({"results": [{"hash": hashes[0]}, {"hash": hashes[1]}]}));

    let mut fingerprint = json!({"key": BASE64.encode(&signed.key), "data": "ZGF0YQ==", "signature": ""});
    fingerprint["fingerprint"] = BASE64.encode(&[0; 64]).into();
    let body = json!({"operations": [fingerprint]}).to_string();
    let reply = exchange(&mut stream, &post("/v1/fingerprint/verify:batch", &body)).await;
    assert_eq!((reply.status, &reply.body["results"][0]["valid"]), (200, &json!(false)));

    let reply = exchange(&mut stream, b"GET /v1/crypto/status HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status, &reply.body["backend"]), (200, &json!("portable")));
    assert_eq!(reply.body["crypto_offload"]["registered"], 1);
}

#[tokio::test]
async fn a_message_representative_replaces_the_message() {
    let sidecar = Sidecar::plain().await;
    let mut stream = sidecar.connect().await;
    let signed = Signed::one();
    let key = qudag_mldsa::PublicKey(signed.key.clone().try_into().unwrap());
    let content = qudag_mldsa::Content::Message { context: b"", message: &signed.message };
    let mu = content.mu(&key.tr(qudag_mldsa::Backend::Portable), qudag_mldsa::Edition::Draft).unwrap();
    let mut with_mu = operation(&signed);
    with_mu.as_object_mut().unwrap().remove("message");
    with_mu["mu"] = BASE64.encode(&mu.0).into();
    let body = json!({"alg": "ml-dsa-65-ipd", "operations": [with_mu]}).to_string();
    let reply = exchange(&mut stream, &post("/v1/verify:batch", &body)).await;
    assert_eq!(reply.body, json!({"results": [{"valid": true}]}));
}

#[tokio::test]
async fn what_is_wrong_has_its_status_and_its_place() {
    let sidecar = Sidecar::start(json!({}), json!({"max_operations": 3})).await;
    let signed = Signed::one();
    let good = operation(&signed);
    let wrong = |changes: Value| {
        let mut wrong = good.clone();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(wrong.as_object_mut().unwrap().remove(key)),
                value => wrong[key] = value.clone(),
            }
        }
        json!({"alg": "ml-dsa-65-ipd", "operations": [good, wrong]}).to_string()
    };
    let verify = "/v1/verify:batch";
    for (path, body, status, at, text) in [
        (verify, "{".to_owned(), 400, None, "EOF while parsing"),
        (verify, "[]".to_owned(), 400, None, "expected an object"),
        (
            verify,
            json!({"alg": "ml-dsa-65", "operations": [[]]}).to_string(),
            400,
            Some("operations[0]"),
            "expected an object",
        ),
        (verify, "{} {}".to_owned(), 400, None, "missing field `alg`"),
        (verify, json!({"operations": [good]}).to_string(), 400, None, "missing field `alg`"),
        (
            verify,
            json!({"alg": "ML-DSA-65", "operations": [good]}).to_string(),
            400,
            Some("alg"),
            "ml-dsa-65-ipd",
        ),
        (
            verify,
            json!({"alg": "ml-dsa-65", "operations": []}).to_string(),
            400,
            Some("operations"),
            "at least one",
        ),
        (
            verify,
            json!({"alg": "ml-dsa-65", "operations": [good, good, good, good]}).to_string(),
            413,
            Some("operations"),
            "at most 3",
        ),
        (
            verify,
            json!({"alg": "ml-dsa-65", "operations": [good], "x": 1}).to_string(),
            400,
            Some("x"),
            "unknown field `x`",
        ),
        (verify, wrong(json!({"x": 1})), 400, Some("operations[1].x"), "unknown field `x`"),
        (verify, wrong(json!({"signature": null})), 400, Some("operations[1]"), "missing field `signature`"),
        (verify, wrong(json!({"signature": 7})), 400, Some("operations[1].signature"), "base64"),
        (verify, wrong(json!({"signature": "A"})), 400, Some("operations[1].signature"), "not base64"),
        (verify, wrong(json!({"signature": "AAA"})), 400, Some("operations[1].signature"), "not base64"),
        (verify, wrong(json!({"signature": "A-_="})), 400, Some("operations[1].signature"), "not base64"),
        (
            verify,
            wrong(json!({"key": "AAAA"})),
            400,
            Some("operations[1].key"),
            "1952 bytes are needed, and 3",
        ),
        (verify, wrong(json!({"key": null})), 400, Some("operations[1]"), "`key` or `key_id` is missing"),
        (verify, wrong(json!({"key_id": "00".repeat(32)})), 400, Some("operations[1]"), "exclude each other"),
        (
            verify,
            wrong(json!({"key": null, "key_id": "0g"})),
            400,
            Some("operations[1].key_id"),
            "hexadecimal",
        ),
        (verify, wrong(json!({"message": null})), 400, Some("operations[1]"), "`message` or `mu` is missing"),
        (verify, wrong(json!({"mu": "AAAA"})), 400, Some("operations[1]"), "exclude each other"),
        (verify, wrong(json!({"message": null, "mu": "AAAA"})), 400, Some("operations[1].mu"), "64 bytes"),
        ("/v1/keys", json!({"keys": ["AAAA"]}).to_string(), 400, Some("keys[0]"), "1952 bytes"),
        (
            "/v1/hash:batch",
            json!({"operations": [{"data": "", "length": 0}]}).to_string(),
            400,
            Some("operations[0].length"),
            "1 to 1024",
        ),
        (
            "/v1/hash:batch",
            json!({"operations": [{"data": "", "length": 99999}]}).to_string(),
            400,
            Some("operations[0].length"),
            "u16",
        ),
        ("/v1/keys", json!({"keys": [BASE64.encode(&signed.key)]}).to_string(), 403, None, "crypto_offload"),
        ("/v1/nothing", "{}".to_owned(), 404, None, "POST /v1/verify:batch"),
        ("/v1/verify:batch?alg=x", "{}".to_owned(), 400, None, "no parameters"),
        ("/v1/crypto/status", "{}".to_owned(), 405, None, "takes GET"),
    ] {
        let mut stream = sidecar.connect().await;
        let reply = exchange(&mut stream, &post(path, &body)).await;
        let error = &reply.body["error"];
        assert_eq!((reply.status, error["at"].as_str()), (status, at), "{path} {reply:?}");
        assert!(error["message"].as_str().unwrap().contains(text), "{reply:?}");
        assert!(error["code"].is_string());
        assert_eq!(reply.head.contains("\r\nallow: get"), status == 405, "{reply:?}");
    }
}

#[tokio::test]
async fn only_json_of_a_limited_length_over_http_1_1_is_read() {
    let sidecar = Sidecar::start(json!({}), json!({"max_request": "16KiB"})).await;
    let length = format!("Content-Length: {}\r\n", 16 * 1024 + 1);
    let json = "Content-Type: application/json\r\n";
    let chunks = format!("5000\r\n{}\r\n0\r\n\r\n", " ".repeat(0x5000));
    for (version, head, body, status, code) in [
        ("1.1", "Content-Length: 0\r\n", "", 415, "unsupported_media_type"),
        ("1.1", "Content-Type: text/plain\r\nContent-Length: 0\r\n", "", 415, "unsupported_media_type"),
        (
            "1.1",
            "Content-Type: application/json; charset=latin1\r\nContent-Length: 0\r\n",
            "",
            415,
            "unsupported_media_type",
        ),
        (
            "1.1",
            "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n",
            "",
            415,
            "unsupported_media_type",
        ),
        (
            "1.1",
            "Content-Type: APPLICATION/JSON; charset=UTF-8\r\nContent-Length: 2\r\n",
            "{}",
            400,
            "malformed",
        ),
        ("1.1", &format!("{json}{length}"), "", 413, "too_large"),
        ("1.1", &format!("{json}Transfer-Encoding: chunked\r\n"), &chunks, 413, "too_large"),
        ("1.0", &format!("{json}Content-Length: 2\r\n"), "{}", 505, "version"),
    ] {
        let mut stream = sidecar.connect().await;
        let request = format!("POST /v1/hash:batch HTTP/{version}\r\nHost: a\r\n{head}\r\n{body}");
        let reply = exchange(&mut stream, request.as_bytes()).await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (status, &json!(code)), "{reply:?}");
    }
}

#[tokio::test]
async fn refusals_say_when_to_come_back() {
    let limit = json!({"rate_limit": {"enabled": true, "per_client": {"rate": 1, "burst": 1}}});
    let sidecar = Sidecar::start(limit, json!({"max_connections": 1})).await;
    let mut stream = sidecar.connect().await;
    let status = b"GET /v1/crypto/status HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(exchange(&mut stream, status).await.status, 200);
    let reply = exchange(&mut stream, status).await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (429, &json!("rate_limited")));
    assert!(reply.head.contains("retry-after: 1"), "{reply:?}");
    let mut second = sidecar.connect().await;
    let reply = exchange(&mut second, status).await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (503, &json!("overloaded")));
    assert!(reply.head.contains("retry-after: 1"), "{reply:?}");
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
}
