//! Cryptography as programs ask for it: HTTP, the binary protocol, the Rust client and the C header, against the real program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use fips204::ml_dsa_65;
use fips204::traits::{KeyGen, SerDes, Signer};
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use qudag_kit::http::Client as HttpClient;
use qudag_kit::program::Start;
use qudag_kit::wait::PATIENCE;
use qudag_kit::{TestSidecar, eventually, needs_program, within};
use qudag_mldsa::testing::{self, Sample, fingerprints, signatures};
use qudag_offload_client::{
    By, Client, Content, Digest, Edition, Fallback, Fingerprint, Key, Options, Signature, Verdict,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A signature of the library that QuDAG signs with.
#[derive(Clone)]
struct Signed {
    key: Vec<u8>,
    edition: Edition,
    message: Vec<u8>,
    signature: Vec<u8>,
    verdict: Verdict,
}

impl Signed {
    fn drafts() -> Vec<Self> {
        let signed = signatures().map(|Sample { key, message, signature }| Self {
            key: key.to_vec(),
            edition: Edition::Draft,
            message: message.to_vec(),
            signature: signature.to_vec(),
            verdict: Verdict::Valid,
        });
        signed.collect()
    }

    /// By a library for the final standard.
    fn standard() -> Self {
        let (public, secret) = ml_dsa_65::KG::try_keygen().unwrap();
        let message = b"a message of the final standard".to_vec();
        Self {
            key: public.into_bytes().to_vec(),
            edition: Edition::Final,
            signature: secret.try_sign(&message, b"context").unwrap().to_vec(),
            message,
            verdict: Verdict::Valid,
        }
    }

    fn damaged(&self) -> Self {
        let mut damaged = self.clone();
        damaged.signature[9] ^= 4;
        damaged.verdict = Verdict::Mismatch;
        damaged
    }

    /// Valid ones of both editions, each followed by a damaged one.
    fn mixed() -> Vec<Self> {
        let all = Self::drafts().into_iter().chain([Self::standard()]);
        all.flat_map(|one| [one.damaged(), one]).collect()
    }

    fn check(&self) -> Signature<&[u8]> {
        let context = if self.edition == Edition::Final { &b"context"[..] } else { &[] };
        Signature {
            key: Key::Public(&self.key),
            edition: self.edition,
            content: Content::Message { context, message: &self.message },
            signature: &self.signature,
        }
    }

    fn json(&self) -> Value {
        json!({
            "key": BASE64.encode(&self.key),
            "message": BASE64.encode(&self.message),
            "signature": BASE64.encode(&self.signature),
        })
    }
}

struct World {
    sidecar: TestSidecar,
    folder: TempDir,
}

const FILTERS: &str =
    "filters: { crypto: { simd_crypto: { enabled: true }, crypto_offload: { enabled: true } } }";

impl World {
    async fn start() -> Self {
        Self::with("").await
    }

    /// `more` are keys of the listener.
    async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("crypto.sock");
        let yaml =
            format!("listeners: {{ crypto: {{ bind: \"unix:{}\"{more} }} }}\n{FILTERS}\n", socket.display());
        Self { sidecar: TestSidecar::start(&yaml).await, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("crypto.sock")
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The reply to a request by `curl`, without a body or with one.
    async fn curl(&self, path: &str, body: Option<Value>) -> Value {
        let mut curl = Start::new("curl").args(["-sS", "--unix-socket"]).arg(self.socket());
        if let Some(body) = body {
            let file = self.file("body.json", body.to_string().as_bytes());
            curl = curl.args(["--json", &format!("@{}", file.display())]);
        }
        let printed = curl.arg(format!("http://sidecar{path}")).output().await.ok();
        serde_json::from_str(&printed).unwrap_or_else(|why| panic!("{why}: {printed}"))
    }

    fn client(&self) -> Client {
        client(&self.socket())
    }

    /// What the program says when it does what it should.
    async fn is_well(&self) {
        let mut client = self.client();
        let signed = Signed::drafts().remove(1);
        let answer = client.verify(&[signed.check(), signed.damaged().check()]).unwrap();
        assert_eq!(answer.value, [Verdict::Valid, Verdict::Mismatch]);
        assert!(!self.sidecar.log().contains("panicked"), "{}", self.sidecar.log());
    }
}

/// A client that only the sidecar answers.
fn client(socket: &Path) -> Client {
    let options = Options { fallback: Fallback::Error, deadline: Duration::from_secs(20) };
    Client::connect_with(socket, options).unwrap()
}

fn verdicts(all: &[Signed]) -> Vec<Verdict> {
    all.iter().map(|one| one.verdict).collect()
}

#[tokio::test]
async fn a_rust_program_has_everything_done() {
    let world = World::start().await;
    let mut client = world.client();
    let all = Signed::mixed();
    let answer = client.verify(&all.iter().map(Signed::check).collect::<Vec<_>>()).unwrap();
    assert!(matches!(answer.by, By::Sidecar));
    assert_eq!(answer.value, verdicts(&all));

    let ids = client.register(&all.iter().map(|one| &one.key).collect::<Vec<_>>()).unwrap().value;
    let named: Vec<_> =
        all.iter().zip(&ids).map(|(one, id)| Signature { key: Key::Id(*id), ..one.check() }).collect();
    assert_eq!(client.verify(&named).unwrap().value, verdicts(&all));
    // Another program may name them as well; an id that nobody registered is none.
    let mut other = world.client();
    let mut named = named[..2].to_vec();
    named.push(Signature { key: Key::Id([1; 32]), ..named[0] });
    assert_eq!(other.verify(&named).unwrap().value, [Verdict::Mismatch, Verdict::Valid, Verdict::UnknownKey]);

    // More than fits into one request.
    let many = vec![Digest { data: &all[0].key[..], length: 32 }; 10_000];
    let hashes = client.hash(&many).unwrap().value;
    assert_eq!(hashes.len(), many.len());
    assert!(hashes.iter().all(|hash| hash[..] == ids[0]), "the id of a key is its hash");

    let status: Value = serde_json::from_str(&client.status().unwrap()).unwrap();
    assert_eq!(status["crypto_offload"]["registered"], 17, "{status}");
    let signatures = [("protocol", "binary"), ("request", "signatures"), ("outcome", "ok")];
    assert_eq!(world.sidecar.metric("qudag_sidecar_crypto_requests_total", &signatures).await, 3.0);
    world.is_well().await;
}

#[tokio::test]
async fn without_the_sidecar_a_program_does_it_itself() {
    let mut world = World::start().await;
    let all = Signed::mixed();
    let operations: Vec<_> = all.iter().map(Signed::check).collect();
    let options = Options { deadline: Duration::from_secs(20), ..Options::default() };
    let mut client = Client::connect_with(world.socket(), options).unwrap();
    let id = client.register(&[&all[0].key]).unwrap().value[0];
    let mut strict = world.client();
    assert!(matches!(client.verify(&operations).unwrap().by, By::Sidecar));

    world.sidecar.kill();
    let answer = client.verify(&operations).unwrap();
    assert!(matches!(answer.by, By::InProcess { .. }));
    assert_eq!(answer.value, verdicts(&all));
    let named = Signature { key: Key::Id(id), ..operations[1] };
    assert_eq!(client.verify(&[named]).unwrap().value, [Verdict::Valid]);
    let hash = client.hash(&[Digest { data: &all[0].key[..], length: 32 }]).unwrap();
    assert!(matches!(hash.by, By::InProcess { .. }) && hash.value[0][..] == id);
    assert!(strict.verify(&operations).is_err() && client.status().is_err());

    // It is used again when it is there again, and the key's id is as good as before.
    world.sidecar.start_again().await;
    eventually(PATIENCE, "the sidecar is used again", async || {
        let answer = client.verify(&[named]).unwrap();
        assert_eq!(answer.value, [Verdict::Valid]);
        matches!(answer.by, By::Sidecar).then_some(())
    })
    .await;
    assert_eq!(strict.verify(&operations).unwrap().value, verdicts(&all));
}

#[tokio::test]
async fn a_c_program_has_it_done() {
    needs_program!("cc");
    let world = World::start().await;
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../filters/crypto/client");
    let program = world.folder.path().join("verify");
    let compile = Start::new("cc").args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2"]);
    let compile = compile.arg("-I").arg(crate_folder.join("include")).arg("-o").arg(&program);
    compile.arg(crate_folder.join("examples/verify.c")).output().await.ok();

    let signed = Signed::drafts().remove(1);
    let files = |signature: &[u8]| {
        [
            world.file("key", &signed.key),
            world.file("message", &signed.message),
            world.file("signature", signature),
        ]
    };
    let run = async |signature: &[u8]| {
        Start::new(&program).arg(world.socket()).args(files(signature)).output().await
    };
    assert_eq!(run(&signed.signature).await.ok(), "valid valid mismatch\n");
    let damaged = run(&signed.damaged().signature).await;
    assert_eq!((damaged.code, damaged.stdout.as_str()), (1, "mismatch mismatch mismatch\n"));
    assert_eq!(run(b"short").await.stdout, "length length length\n");

    world.sidecar.toggle("crypto.crypto_offload", false).await;
    assert_eq!(run(&signed.signature).await.ok(), "valid - mismatch\n");
    let nowhere = Start::new(&program).arg(world.folder.path().join("none")).args(files(&[])).output().await;
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.stderr.contains("No such file"), "{}", nowhere.stderr);
}

#[tokio::test]
async fn curl_has_it_done_as_the_guide_says() {
    needs_program!("curl");
    let world = World::start().await;
    let signed = Signed::drafts().remove(1);
    let keys = world.curl("/v1/keys", Some(json!({"keys": [BASE64.encode(&signed.key)]}))).await;
    let mut named = signed.json();
    named.as_object_mut().unwrap().remove("key");
    named["key_id"] = keys["keys"][0]["key_id"].clone();
    let operations = json!([signed.json(), signed.damaged().json(), named]);
    let verify = json!({"alg": "ml-dsa-65-ipd", "operations": operations});
    let results = world.curl("/v1/verify:batch", Some(verify)).await;
    let expected = json!([{"valid": true}, {"valid": false, "reason": "mismatch"}, {"valid": true}]);
    assert_eq!(results["results"], expected);
    let hashes = json!({"operations": [{"data": BASE64.encode(&signed.key)}]});
    let hash = world.curl("/v1/hash:batch", Some(hashes)).await["results"][0]["hash"].clone();
    let hash = BASE64.decode(hash.as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(keys["keys"][0]["key_id"], HEXLOWER.encode(&hash));
    assert_eq!(world.curl("/v1/crypto/status", None).await["crypto_offload"]["registered"], 1);
    let error = world
        .curl("/v1/verify:batch", Some(json!({"alg": "ml-dsa-65-ipd", "operations": [{"key": 1}]})))
        .await;
    assert_eq!(error["error"]["at"], "operations[0].key");
}

/// As QuDAG's own library makes them: a hash of 64 bytes, and a signature of that.
#[tokio::test]
async fn fingerprints_of_the_nodes_library_are_verified() {
    needs_program!("curl");
    let mut world = World::start().await;
    let options = Options { deadline: Duration::from_secs(20), ..Options::default() };
    let mut client = Client::connect_with(world.socket(), options).unwrap();
    let mut hash = |data| client.hash(&[Digest { data, length: 64 }]).unwrap().value.remove(0);
    let other = &b"other data"[..];
    let of_other = hash(other);
    let mut operations = Vec::new();
    for testing::Fingerprint { key, data, fingerprint, signature } in fingerprints() {
        assert_eq!(hash(data)[..], fingerprint[..]);
        let key = Key::Public(&key[..]);
        let good = Fingerprint { key, data, fingerprint: &fingerprint[..], signature: &signature[..] };
        operations.push((good, Verdict::Valid));
        operations.push((Fingerprint { data: other, ..good }, Verdict::OtherData));
        operations.push((Fingerprint { data: other, fingerprint: &of_other, ..good }, Verdict::Mismatch));
    }
    let (mut operations, expected): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
    assert_eq!(operations.len(), 12);
    let answer = client.verify_fingerprints(&operations).unwrap();
    assert!(matches!(answer.by, By::Sidecar));
    assert_eq!(answer.value, expected);

    // Every second one with the id of its key.
    let keys: Vec<_> = fingerprints().flat_map(|one| [one.key; 3]).collect();
    let ids = client.register(&keys).unwrap().value;
    let mut json = Vec::new();
    for (place, one) in operations.iter_mut().enumerate() {
        let [data, fingerprint, signature] =
            [one.data, one.fingerprint, one.signature].map(|bytes| BASE64.encode(bytes));
        let mut operation = json!({"data": data, "fingerprint": fingerprint, "signature": signature});
        if place % 2 == 0 {
            operation["key"] = BASE64.encode(keys[place]).into();
        } else {
            operation["key_id"] = HEXLOWER.encode(&ids[place]).into();
            one.key = Key::Id(ids[place]);
        }
        json.push(operation);
    }
    assert_eq!(client.verify_fingerprints(&operations).unwrap().value, expected);
    let results = world.curl("/v1/fingerprint/verify:batch", Some(json!({"operations": json}))).await;
    let expected_json = expected.iter().map(|verdict| match verdict {
        Verdict::Valid => json!({"valid": true}),
        verdict => json!({"valid": false, "reason": verdict.name()}),
    });
    assert_eq!(results["results"], expected_json.collect::<Value>());

    world.sidecar.kill();
    let answer = client.verify_fingerprints(&operations).unwrap();
    assert!(matches!(answer.by, By::InProcess { .. }));
    assert_eq!(answer.value, expected);
}

#[tokio::test]
async fn over_tcp_a_kept_connection_is_used_again() {
    let yaml = format!("listeners: {{ crypto: {{ bind: \"127.0.0.1:0\" }} }}\n{FILTERS}\n");
    let sidecar = TestSidecar::start(&yaml).await;
    let address = sidecar.listener("crypto").await;
    let mut client = HttpClient::http1(address).await.unwrap();
    let all: Vec<_> = Signed::mixed().into_iter().filter(|one| one.edition == Edition::Draft).collect();
    let operations: Vec<_> = all.iter().map(Signed::json).collect();
    let body = json!({"alg": "ml-dsa-65-ipd", "operations": operations}).to_string();
    for _ in 0..3 {
        let request = Request::post("/v1/verify:batch").header(header::CONTENT_TYPE, "application/json");
        let reply = client.request(request.body(Full::from(body.clone())).unwrap()).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let results = reply.json()["results"].as_array().unwrap().clone();
        let valid: Vec<_> = results.iter().map(|result| result["valid"].as_bool().unwrap()).collect();
        let expected: Vec<_> = all.iter().map(|one| one.verdict == Verdict::Valid).collect();
        assert_eq!(valid, expected);
    }
}

/// What comes back when these bytes are sent and nothing more, up to the end of the connection.
async fn said_to(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // A server that has heard enough may have closed already.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut said = Vec::new();
    let _ = within(PATIENCE, "the end of the connection", stream.read_to_end(&mut said)).await;
    said
}

#[tokio::test]
async fn whatever_comes_the_program_goes_on() {
    let world = World::with(", max_request: 64KiB, max_connections: 8, idle_timeout: 500ms").await;
    let socket = world.socket();
    let header = |length: u32, sort: u8, flags: u8, count: u16| {
        let mut header = b"QDC1".to_vec();
        header.extend(length.to_be_bytes());
        header.extend([0, 0, 0, 5, sort, flags]);
        header.extend(count.to_be_bytes());
        header
    };
    // The code of an error stands behind the welcome of 24 bytes and a header of 12.
    for (bytes, code) in [
        (header(u32::MAX, 2, 0, 1), 2),
        (header(64 * 1024 + 1, 2, 0, 1), 2),
        (header(0, 2, 0, 5000), 2),
        (header(0, 2, 0, 1), 1),
        (header(0, 99, 0, 0), 1),
        (header(0, 5, 2, 0), 1),
        (header(3, 5, 0, 0), 1),
        (b"QDC1\0".to_vec(), 1),
        ([header(100, 2, 0, 1), vec![0; 50]].concat(), 1),
    ] {
        let said = said_to(&socket, &bytes).await;
        assert_eq!((said.get(32), said.get(36)), (Some(&255), Some(&code)), "{bytes:?}: {said:?}");
    }
    for bytes in
        [&b""[..], b"Q", b"QDC2", b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET", &[0xff; 5000]]
    {
        said_to(&socket, bytes).await;
    }
    // Every stump of a request, and every bit of its first bytes.
    let signed = Signed::drafts().remove(1);
    let mut whole = header(12 + 1952 + 3309, 2, 0, 1);
    whole.extend([1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x0c, 0xed]);
    whole.extend(&signed.key);
    whole.extend(&signed.signature);
    for length in (0..40).chain((40..whole.len()).step_by(211)) {
        said_to(&socket, &whole[..length]).await;
    }
    for bit in 0..8 * 28 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        said_to(&socket, &flipped).await;
    }
    // Clients that say nothing take all the seats, but not for ever.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
    }
    eventually(PATIENCE, "there is a seat again", async || {
        let said = said_to(&socket, b"GET /v1/crypto/status HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.starts_with("HTTP/1.1 200 ") || said.starts_with("HTTP/1.1 503 "), "{said}");
        said.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
    for stream in &mut silent {
        let read = within(PATIENCE, "a silent client is closed", stream.read(&mut [0])).await;
        assert_eq!(read.unwrap_or(0), 0);
    }
    world.is_well().await;
}

/// One of many programs: batches of several lengths, with keys and with ids, until it is told to stop. Returns how many operations were done.
fn program(socket: &Path, seed: usize, stop: &AtomicBool) -> u64 {
    let all = Signed::mixed();
    let mut client = client(socket);
    let mut ids = None;
    let mut done = 0;
    for round in seed.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if ids.is_none() {
            // Refused while crypto_offload is off.
            let keys: Vec<_> = all.iter().map(|one| &one.key).collect();
            ids = client.register(&keys).ok().map(|answer| answer.value);
        }
        let length = [1, 2, 8, 17][round % 4];
        let some: Vec<_> = (0..length).map(|place| (round * 5 + place * 3) % all.len()).collect();
        let operations: Vec<_> = some
            .iter()
            .map(|place| match &ids {
                Some(ids) if round % 2 == 0 => Signature { key: Key::Id(ids[*place]), ..all[*place].check() },
                _ => all[*place].check(),
            })
            .collect();
        let answer = client.verify(&operations).unwrap_or_else(|why| panic!("round {round}: {why}"));
        let expected: Vec<_> = some.iter().map(|place| all[*place].verdict).collect();
        assert_eq!(answer.value, expected, "round {round}");
        done += length as u64;
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_programs_get_the_right_verdicts_while_filters_come_and_go() {
    let world = World::start().await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let programs: Vec<_> = (0..16)
        .map(|seed| {
            let (socket, stop, done) = (world.socket(), Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || done.fetch_add(program(&socket, seed, &stop), Ordering::Relaxed))
        })
        .collect();
    for round in 0..12 {
        let name = ["crypto.simd_crypto", "crypto.crypto_offload"][round % 2];
        world.sidecar.toggle(name, (round / 2) % 2 == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for program in programs {
        assert!(program.join().is_ok(), "a program has failed: {}", world.sidecar.log());
    }
    assert!(done.load(Ordering::Relaxed) > 500, "{done:?} operations");
    let bad = [("kind", "crypto"), ("outcome", "internal")];
    assert_eq!(world.sidecar.metric("qudag_sidecar_flows_total", &bad).await, 0.0);
    let open = world.sidecar.metric("qudag_sidecar_crypto_connections", &[("protocol", "binary")]).await;
    assert_eq!(open, 0.0, "all programs have gone");
    world.is_well().await;
}
