//! How much faster each backend verifies than what QuDAG nodes call, `pqcrypto-dilithium` with AVX2: CPU time per operation, both in turn in
//! one process, medians. `cargo run --release -p qudag-mldsa --example ratios [rounds [part of a name]]`
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a program for developers"
)]

use std::cell::RefCell;
use std::hint::black_box;

use pqcrypto_dilithium::dilithium3;
use pqcrypto_traits::sign::{DetachedSignature, PublicKey as _};
use qudag_mldsa::{Backend, Content, Edition, Job, Key, MuOf, PublicKey, Scratch, verify, verify_batch};
use rustix::time::{ClockId, clock_gettime};

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Microseconds of CPU time of `count` operations, each.
fn micros(count: usize, mut operation: impl FnMut()) -> f64 {
    let begin = cpu_seconds();
    for _ in 0..count {
        operation();
    }
    (cpu_seconds() - begin) / count as f64 * 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(200, |rounds| rounds.parse().unwrap());
    let message = [7; 32];
    let keys: Vec<_> = (0..8).map(|_| dilithium3::keypair()).collect();
    let signatures: Vec<_> =
        keys.iter().map(|(_, secret)| dilithium3::detached_sign(&message, secret)).collect();
    let public: Vec<_> = keys.iter().map(|(key, _)| PublicKey(key.as_bytes().try_into().unwrap())).collect();
    let expanded: Vec<_> = public.iter().map(|key| key.expand(Backend::best())).collect();

    let scratch = RefCell::new(Scratch::new());

    let node = || {
        for (signature, (key, _)) in signatures.iter().zip(&keys) {
            dilithium3::verify_detached_signature(signature, &message, key).unwrap();
        }
    };
    let cached = |backend: Backend| {
        for (signature, key) in signatures.iter().zip(&expanded) {
            let mut mu = MuOf::new(key.tr(), Edition::Draft, b"").unwrap();
            mu.update(&message);
            verify(backend, key, Edition::Draft, &mu.finish(), signature.as_bytes()).unwrap();
        }
    };
    let fresh = |backend: Backend| {
        for (signature, key) in signatures.iter().zip(&public) {
            let key = key.expand(backend);
            let mut mu = MuOf::new(key.tr(), Edition::Draft, b"").unwrap();
            mu.update(&message);
            verify(backend, &key, Edition::Draft, &mu.finish(), signature.as_bytes()).unwrap();
        }
    };

    let batch = |backend: Backend, fresh: bool| {
        let jobs: [Job<'_>; 8] = std::array::from_fn(|i| Job {
            key: if fresh { Key::Fresh(&public[i]) } else { Key::Expanded(&expanded[i]) },
            edition: Edition::Draft,
            content: Content::Message { context: b"", message: &message },
            signature: signatures[i].as_bytes(),
        });
        let mut results = [Ok(()); 8];
        verify_batch(backend, &mut scratch.borrow_mut(), &jobs, &mut results);
        assert_eq!(results, [Ok(()); 8]);
    };

    let cases: Vec<(String, Box<dyn Fn() + '_>)> = Backend::available()
        .flat_map(|backend| {
            let (cached, fresh, batch) = (&cached, &fresh, &batch);
            [
                (format!("{backend} cached"), Box::new(move || cached(black_box(backend))) as Box<dyn Fn()>),
                (format!("{backend} fresh"), Box::new(move || fresh(black_box(backend)))),
                (format!("{backend} batch-8 cached"), Box::new(move || batch(black_box(backend), false))),
                (format!("{backend} batch-8 fresh"), Box::new(move || batch(black_box(backend), true))),
            ]
        })
        .filter(|(name, _)| std::env::args().nth(2).is_none_or(|part| name.contains(&part)))
        .collect();
    let mut times = vec![vec![]; cases.len()];
    let mut node_times = vec![];
    for _ in 0..rounds {
        node_times.push(micros(4, node) / 8.0);
        for (times, (_, case)) in times.iter_mut().zip(&cases) {
            times.push(micros(4, case) / 8.0);
        }
    }
    let node = median(&mut node_times);
    println!("{:24} {node:8.2} µs", "pqcrypto-dilithium");
    for (times, (name, _)) in times.iter_mut().zip(&cases) {
        let time = median(times);
        println!("{name:24} {time:8.2} µs  {:6.2} ×", node / time);
    }
}
