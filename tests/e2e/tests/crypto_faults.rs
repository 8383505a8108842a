//! Implementations of cryptography that die, fail their test or judge wrong: programs notice nothing of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use qudag_kit::program::Start;
use qudag_kit::sidecar::Setup;
use qudag_kit::wait::PATIENCE;
use qudag_kit::{TestSidecar, eventually};
use qudag_mldsa::testing::{Sample, signatures};
use qudag_offload_client::{
    Client, Content, Edition, Fallback, Key, Options, SIGNATURE_BYTES, Signature, Verdict,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const FAULT: &str = "QUDAG_CRYPTO_FAULT";

/// A signature of the library that QuDAG signs with, and the same damaged.
struct Signed {
    good: Sample,
    damaged: [u8; SIGNATURE_BYTES],
}

impl Signed {
    fn new() -> Self {
        let good = signatures().next().unwrap();
        let mut damaged = *good.signature;
        damaged[9] ^= 4;
        Self { good, damaged }
    }

    fn checks(&self) -> [Signature<&[u8]>; 2] {
        [self.good.signature, &self.damaged].map(|signature| Signature {
            key: Key::Public(&self.good.key[..]),
            edition: Edition::Draft,
            content: Content::Message { context: &[], message: self.good.message },
            signature: &signature[..],
        })
    }
}

/// Programs that verify signatures without a pause and look at every answer.
struct Programs {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Programs {
    fn start(socket: &Path) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |_| {
            let (stop, answers, socket) = (Arc::clone(&stop), Arc::clone(&answers), socket.to_owned());
            std::thread::spawn(move || {
                let options = Options { fallback: Fallback::Error, deadline: PATIENCE };
                let mut client = Client::connect_with(socket, options).unwrap();
                let signed = Signed::new();
                while !stop.load(Ordering::Relaxed) {
                    let verdicts = client.verify(&signed.checks()).expect("an answer").value;
                    assert_eq!(verdicts, [Verdict::Valid, Verdict::Mismatch]);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..2).map(start).collect();
        Self { stop, answers, threads }
    }

    /// Waits for some more answers, and for the end.
    async fn end(self) {
        let seen = self.answers.load(Ordering::Relaxed);
        eventually(PATIENCE, "answers go on", async || {
            let more = self.answers.load(Ordering::Relaxed) > seen + 20;
            (more || self.threads.iter().any(JoinHandle::is_finished)).then_some(())
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request was dropped and no verdict was wrong");
        }
    }
}

async fn selftest(fault: &str, args: &[&str]) -> (bool, Value) {
    let start = Start::new(TestSidecar::binary()).args(["crypto", "selftest", "--in-process", "--json"]);
    let finished = start.args(args.iter().copied()).env(FAULT, fault).output().await;
    (finished.code == 0, serde_json::from_str(&finished.stdout).unwrap_or_default())
}

/// The fastest implementation of this processor, and the one after it; `None`, with a word why, where there is nothing to be seen.
async fn fastest() -> Option<(String, String)> {
    if selftest("wrong-answer:portable", &["--backend", "portable"]).await.0 {
        qudag_kit::skip::note("a program that is built with debug assertions");
        return None;
    }
    let (_, answer) = selftest("", &[]).await;
    let names: Vec<_> =
        answer["backends"].as_array().unwrap().iter().map(|backend| &backend["name"]).collect();
    let [.., next, best] = names[..] else {
        qudag_kit::skip::note("a processor with AVX2");
        return None;
    };
    Some((best.as_str().unwrap().to_owned(), next.as_str().unwrap().to_owned()))
}

struct World {
    sidecar: TestSidecar,
    socket: PathBuf,
    _folder: TempDir,
}

impl World {
    async fn start(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("crypto.sock");
        let yaml = format!(
            "listeners: {{ crypto: {{ bind: \"unix:{}\" }} }}\n\
             filters: {{ crypto: {{ simd_crypto: {{ enabled: true, shadow: 100 }}, crypto_offload: {{ enabled: true }} }} }}\n",
            socket.display()
        );
        let sidecar = TestSidecar::with(Setup { yaml: &yaml, env, ..Setup::default() }).await;
        Self { sidecar, socket, _folder: folder }
    }

    async fn crypto(&self) -> Value {
        self.sidecar.admin("GET", "/crypto", json!(null)).await.ok()
    }

    /// What is said of an implementation when all are tested.
    async fn tested(&self, backend: &str) -> Value {
        let find = |answer: &Value| {
            let backends = answer["simd_crypto"]["backends"].as_array().unwrap();
            backends.iter().find(|one| one["name"] == backend).unwrap().clone()
        };
        eventually(PATIENCE, "the implementations are tested", async || {
            let answer = self.crypto().await;
            let backends = answer["simd_crypto"]["backends"].as_array().unwrap();
            let tested = !backends.iter().any(|backend| backend["state"] == "untested");
            tested.then(|| find(&answer))
        })
        .await
    }

    async fn demotions(&self, backend: &str, reason: &str) -> f64 {
        let labels = [("backend", backend), ("reason", reason)];
        self.sidecar.metric("qudag_sidecar_crypto_demotions_total", &labels).await
    }
}

/// The fastest implementation does not pass its self-test.
async fn a_failed_self_test(fault: &str, reason: &str, words: &str) {
    let Some((best, next)) = fastest().await else { return };
    let world = World::start(&[(FAULT, &format!("{fault}:{best}"))]).await;
    let programs = Programs::start(&world.socket);
    let backend = world.tested(&best).await;
    assert_eq!(backend["state"], "failed");
    assert!(backend["why"].as_str().unwrap().contains(words), "{backend}");
    assert_eq!(world.crypto().await["backend"], *next);
    // Again, on demand.
    let failed = world.sidecar.cli(&["crypto", "selftest", "--json"]).await;
    assert_eq!(failed.code, 1);
    assert!(failed.stdout.contains(words), "{}", failed.stdout);
    assert_eq!(world.demotions(&best, reason).await, 2.0);
    assert_eq!(world.sidecar.metric("qudag_sidecar_crypto_backend", &[("backend", &next)]).await, 1.0);
    programs.end().await;
    let log = world.sidecar.log();
    assert!(log.contains("did not pass its test") && !log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn an_illegal_instruction_ends_the_self_test_and_nothing_else() {
    a_failed_self_test("illegal-instruction", "signal", "illegal instruction").await;
}

#[tokio::test]
async fn a_wrong_known_answer_leaves_the_next_best_implementation() {
    a_failed_self_test("wrong-answer", "wrong_answer", "judged a signature").await;
}

#[tokio::test]
async fn a_wrong_verdict_is_never_told_to_a_program() {
    let Some((best, next)) = fastest().await else { return };
    let world = World::start(&[(FAULT, &format!("wrong-verdict:{best}"))]).await;
    let programs = Programs::start(&world.socket);
    let demoted = eventually(PATIENCE, "the implementation is demoted", async || {
        let backend = world.tested(&best).await;
        (backend["state"] == "demoted").then_some(backend)
    })
    .await;
    assert!(demoted["why"].as_str().unwrap().contains("portable judges"), "{demoted}");
    assert_eq!(world.crypto().await["backend"], *next);
    assert_eq!(world.demotions(&best, "shadow").await, 1.0);
    let checks = async |result| {
        world.sidecar.metric("qudag_sidecar_crypto_shadow_checks_total", &[("result", result)]).await
    };
    assert!(checks("different").await >= 1.0);
    programs.end().await;
    // It passes its self-test as before, which changes nothing.
    let answer = world.sidecar.cli(&["crypto", "selftest"]).await;
    assert_eq!(answer.code, 1);
    assert!(answer.stdout.contains("demoted"), "{}", answer.stdout);
    let log = world.sidecar.log();
    assert!(log.contains("is not used any more") && !log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn sound_implementations_pass_and_one_can_be_forced() {
    let Some((best, _)) = fastest().await else { return };
    let world = World::start(&[]).await;
    assert_eq!(world.tested(&best).await["state"], "passed");
    let answer = world.sidecar.cli_json(&["crypto", "selftest"]).await;
    assert_eq!(answer["backend"], *best);
    let one = world.sidecar.cli_json(&["crypto", "selftest", "--backend", &best]).await;
    assert_eq!(one["simd_crypto"], answer["simd_crypto"]);
    // The state outlives a reload; without the filter the portable implementation is left.
    let generation = world.sidecar.generation().await;
    world.sidecar.toggle("simd_crypto", false).await;
    let off = world.crypto().await;
    assert_eq!((&off["backend"], &off["simd_crypto"]), (&json!("portable"), &json!(null)));
    assert!(world.sidecar.generation().await > generation);
    let refused = world.sidecar.cli(&["crypto", "selftest"]).await;
    assert_eq!(refused.code, 1);
    world.sidecar.toggle("simd_crypto", true).await;
    assert_eq!(world.crypto().await["backend"], *best);

    let forced = World::start(&[("QUDAG_CRYPTO_BACKEND", "portable")]).await;
    assert_eq!(forced.tested(&best).await["state"], "passed");
    assert_eq!(forced.crypto().await["backend"], "portable");
    let programs = Programs::start(&forced.socket);
    programs.end().await;
}
