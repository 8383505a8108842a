//! Batches of a sidecar without vector units go through the tunnel to one that has them.

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
use std::thread::JoinHandle;
use std::time::Duration;

use qudag_kit::wait::PATIENCE;
use qudag_kit::{Pki, Setup, TestSidecar, eventually, ports};
use qudag_offload_client::{By, Client, Content, Edition, Fallback, Key, Options, Signature, Verdict};
use serde_json::Value;
use tempfile::TempDir;

/// How many signatures a batch has: enough for a tunnel between two programs that share two processors, and are not optimized.
const BATCH: usize = 512;

/// Signatures of the library that QuDAG signs with: key, message, signature. Every second one is damaged.
fn signatures() -> Vec<[Vec<u8>; 3]> {
    let signed = qudag_mldsa::testing::signatures()
        .map(|one| [one.key.to_vec(), one.message.to_vec(), one.signature.to_vec()]);
    let both = signed.flat_map(|good| {
        let mut bad = good.clone();
        bad[2][7] ^= 1;
        [good, bad]
    });
    both.collect::<Vec<_>>().into_iter().cycle().take(BATCH).collect()
}

fn check([key, message, signature]: &[Vec<u8>; 3]) -> Signature<&[u8]> {
    Signature {
        key: Key::Public(key),
        edition: Edition::Draft,
        content: Content::Message { context: &[], message },
        signature,
    }
}

/// Has the batch done by a sidecar, which has to be right about every signature.
fn ask(client: &mut Client, signatures: &[[Vec<u8>; 3]]) -> Result<(), String> {
    let operations: Vec<_> = signatures.iter().map(check).collect();
    let answer = client.verify(&operations).map_err(|why| why.to_string())?;
    assert!(matches!(answer.by, By::Sidecar));
    let wrong = answer
        .value
        .iter()
        .enumerate()
        .find(|(place, verdict)| **verdict != [Verdict::Valid, Verdict::Mismatch][place % 2]);
    match (answer.value.len(), wrong) {
        (BATCH, None) => Ok(()),
        (number, wrong) => Err(format!("{number} verdicts, {wrong:?}")),
    }
}

/// Two sidecars on this host with the tunnel between them: A is without vector units, B uses the best that the processor has.
struct World {
    a: TestSidecar,
    b: TestSidecar,
    folder: TempDir,
    yaml_a: String,
    _pki: Pki,
}

impl World {
    async fn start() -> Self {
        let pki = Pki::new().await;
        let (id_a, id_b) = (pki.issue("a").await, pki.issue("b").await);
        let folder = tempfile::tempdir().unwrap();
        let (quic, way) = (ports::free(), ports::free());
        let socket = |name: &str| folder.path().join(format!("{name}.sock")).display().to_string();
        let yaml_b = format!(
            "node: {{ name: b }}
listeners:
  crypto: {{ bind: \"unix:{socket}\" }}
  peer:
    identity: {identity}
    allow: [\"{allowed}\"]
    quic: \"{quic}\"
    destinations: {{ crypto: \"unix:{socket}\" }}
filters: {{ crypto: {{ simd_crypto: {{ enabled: true }}, crypto_offload: {{ enabled: true }} }} }}
",
            socket = socket("b"),
            identity = id_b.yaml(),
            allowed = id_a.name,
        );
        let yaml_a = format!(
            "node: {{ name: a }}
listeners:
  crypto: {{ bind: \"unix:{socket}\" }}
  peer:
    identity: {identity}
    outbound:
      - {{ name: crypto-b, bind: \"{way}\", to: \"127.0.0.1:9\",
          sidecar: {{ to: [\"{quic}\"], name: \"{name}\", destination: crypto, class: bulk, require_tunnel: true }} }}
filters:
  peer: {{ connection_pooling: {{ enabled: true }} }}
  crypto:
    simd_crypto: {{ enabled: true }}
    hardware_routing: {{ enabled: true, sidecars: [{{ address: \"{way}\" }}], timeout: 10s, verify: 2 }}
",
            socket = socket("a"),
            identity = id_a.yaml(),
            name = id_b.name,
        );
        let b = TestSidecar::start(&yaml_b).await;
        let portable = [("QUDAG_CRYPTO_BACKEND", "portable")];
        let a = TestSidecar::with(Setup { yaml: &yaml_a, env: &portable, ..Setup::default() }).await;
        let world = Self { a, b, folder, yaml_a, _pki: pki };
        world.ready().await;
        world
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("a.sock")
    }

    /// What A knows of B.
    async fn other(&self) -> Value {
        self.a.cli_json(&["crypto", "status"]).await["hardware_routing"]["sidecars"][0].clone()
    }

    /// Waits until A knows that B has tested its backends.
    async fn ready(&self) -> Value {
        let best = async || {
            let best = self.b.cli_json(&["crypto", "status"]).await;
            let tested = best["simd_crypto"]["backends"].as_array()?;
            tested.iter().all(|one| one["state"] != "untested").then(|| best["backend"].clone())
        };
        let best = eventually(PATIENCE, "B has tested its backends", best).await;
        let known = async || {
            let other = self.other().await;
            (other["state"] == "ready" && other["backend"] == best).then_some(other)
        };
        eventually(PATIENCE, "B is known to A", known).await
    }

    /// Whether B has something better than A: on a processor without vector units there is nothing to route.
    async fn is_better(&self) -> bool {
        self.other().await["backend"] != "portable"
    }

    async fn routed(&self) -> f64 {
        self.a.metric("qudag_sidecar_crypto_routed_operations_total", &[("outcome", "answered")]).await
    }

    async fn more_is_routed(&self, what: &str) {
        if self.is_better().await {
            let before = self.routed().await;
            let more = async || (self.routed().await > before).then_some(());
            eventually(PATIENCE, what, more).await;
        }
    }

    /// Programs of A that ask all the time.
    fn load(&self, programs: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let programs = (0..programs).map(|_| {
            let (socket, stop, done) = (self.socket(), Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || program(&socket, &stop, &done))
        });
        Load { programs: programs.collect(), stop, done }
    }
}

fn client(socket: &Path) -> Client {
    let options = Options { fallback: Fallback::Error, deadline: Duration::from_secs(20) };
    Client::connect_with(socket, options).unwrap()
}

fn program(socket: &Path, stop: &AtomicBool, done: &AtomicU64) -> Result<(), String> {
    let (mut client, signatures) = (client(socket), signatures());
    while !stop.load(Ordering::Relaxed) {
        ask(&mut client, &signatures)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

struct Load {
    programs: Vec<JoinHandle<Result<(), String>>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Load {
    /// Ends it: no batch has failed or was answered wrong.
    fn stop_clean(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for program in self.programs {
            assert_eq!(program.join().unwrap(), Ok(()));
        }
        let done = self.done.load(Ordering::Relaxed);
        println!("{done} batches");
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_verified_by_the_other_sidecars_processor() {
    let world = World::start().await;
    let (mut client, signatures) = (client(&world.socket()), signatures());
    let valid = [("sort", "signature"), ("result", "valid")];
    let done =
        async |sidecar: &TestSidecar| sidecar.metric("qudag_sidecar_crypto_operations_total", &valid).await;
    // On a busy machine the way may take longer than the work here, once or twice.
    let mut batches = 0.0;
    while world.routed().await == 0.0 {
        ask(&mut client, &signatures).unwrap();
        batches += 1.0;
        if !world.is_better().await {
            break;
        }
        assert!(batches < 200.0, "nothing is routed");
    }
    let other = world.other().await;
    println!("{batches} batches, {other}");
    let status: Value = serde_json::from_str(&client.status().unwrap()).unwrap();
    assert_eq!(status["backend"], "portable");
    assert_eq!(status["hardware_routing"]["sidecars"][0]["state"], "ready", "{status}");
    // Half of the signatures are valid; each batch was done in one place.
    let there = if world.is_better().await { BATCH as f64 / 2.0 } else { 0.0 };
    let here = batches * BATCH as f64 / 2.0 - there;
    assert_eq!((world.routed().await, done(&world.b).await), (there * 2.0, there));
    assert_eq!(done(&world.a).await, here);
    if world.is_better().await {
        let backend = other["backend"].as_str().unwrap();
        assert_eq!(world.b.metric("qudag_sidecar_crypto_backend", &[("backend", backend)]).await, 1.0);
        let through = [("side", "in"), ("outcome", "ok")];
        assert!(world.b.metric("qudag_sidecar_peer_streams_total", &through).await >= 1.0);
    }
    // Small batches stay with A.
    let few: Vec<_> = signatures[..16].iter().map(check).collect();
    assert_eq!(client.verify(&few).unwrap().value.len(), 16);
    assert_eq!(done(&world.a).await, here + 8.0);
    let small = [("reason", "small")];
    assert_eq!(world.a.metric("qudag_sidecar_crypto_routing_kept_total", &small).await, 1.0);
    let text = world.a.cli(&["crypto", "status"]).await.ok();
    assert!(text.contains("SIDECAR") && text.contains("ready"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_takes_no_batch_with_it() {
    let mut world = World::start().await;
    let load = world.load(3);
    world.more_is_routed("batches are routed").await;
    for _ in 0..2 {
        world.b.kill();
        let gone = async || (world.other().await["state"] == "unreachable").then_some(());
        eventually(PATIENCE, "A sees that B is gone", gone).await;
        world.b.start_again().await;
        world.ready().await;
        world.more_is_routed("batches are routed again").await;
    }
    assert!(load.stop_clean() > 0);
    let wrong = [("result", "different")];
    assert_eq!(world.a.metric("qudag_sidecar_crypto_routing_checks_total", &wrong).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_is_toggled_under_load() {
    let world = World::start().await;
    let load = world.load(3);
    for round in 0..6 {
        world.more_is_routed("batches are routed").await;
        world.a.toggle("crypto.hardware_routing", false).await;
        assert!(world.a.cli_json(&["crypto", "status"]).await["hardware_routing"].is_null());
        // Reloads in between change nothing of that.
        if round % 2 == 0 {
            world.a.reload_with(&world.yaml_a.replace("verify: 2", &format!("verify: {round}"))).await.ok();
        }
        world.a.toggle("crypto.hardware_routing", true).await;
        world.ready().await;
    }
    assert!(load.stop_clean() > 0);
}
