//! What verifying costs, beside the node's own library and others. One JSON object a line.

mod floor;
mod socket;

use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::signature::{ML_DSA_65, ParsedPublicKey};
use clap::{Parser, ValueEnum};
use libcrux_ml_dsa::ml_dsa_65;
use qudag_crypto::fingerprint::Fingerprint;
use qudag_crypto_peers::measure::{Figure, Way, measure};
use qudag_crypto_peers::{Signed, Signer};
use qudag_mldsa::{
    Backend, Content, Edition, ExpandedKey, Job, Key, PublicKey, Scratch, verify, verify_batch,
};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use socket::Sidecar;

/// Measures the verifier of the sidecar beside qudag-crypto 0.5.1, aws-lc-rs and libcrux.
#[derive(Parser)]
struct Args {
    /// Fewer rounds.
    #[arg(long)]
    quick: bool,
    /// The crypto socket of a sidecar: the same is measured over it.
    #[arg(long, value_name = "PATH", requires = "server")]
    socket: Option<PathBuf>,
    /// The sidecar's process.
    #[arg(long, value_name = "PID")]
    server: Option<u32>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Measures nothing: answers at PATH what comes over the socket, as fast as can be.
    #[arg(long, value_name = "PATH", hide = true)]
    floor: Option<PathBuf>,
    /// Measures nothing: writes signatures of qudag-crypto to FILE, for tests that do without it.
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
    /// With --signatures: such whose z is out of range.
    #[arg(long, requires = "signatures")]
    out_of_range: bool,
    /// Measures nothing: writes fingerprints of qudag-crypto to FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "signatures")]
    fingerprints: Option<PathBuf>,
}

/// A part of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The verifier in this process, and what else is in libraries.
    Engine,
    /// The same over the socket.
    Socket,
}

const SIZES: [(usize, &str); 3] = [(32, "32 B"), (1024, "1 kB"), (64 << 10, "64 kB")];
const BATCHES: [usize; 6] = [2, 4, 8, 16, 32, 64];

fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut random = StdRng::seed_from_u64(1);
    if let Some(file) = args.signatures {
        return write_signatures(&file, args.out_of_range, &mut random);
    }
    if let Some(file) = args.fingerprints {
        return write_fingerprints(&file, &mut random);
    }
    if let Some(path) = args.floor {
        return floor::serve(&path);
    }
    let rounds = if args.quick { 10 } else { 200 };
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let signers: Vec<_> = (0..64).map(|_| Signer::new(&mut random)).collect();
    let expanded: Vec<_> = signers.iter().map(|signer| signer.key.expand(Backend::best())).collect();
    if wanted(Part::Engine) {
        engine(rounds, &signers, &expanded, &mut random);
    }
    if let (true, Some(socket), Some(process)) = (wanted(Part::Socket), args.socket, args.server) {
        let signed: Vec<_> = signers.iter().map(|signer| signer.sign(32, &mut random)).collect();
        let sidecar = Sidecar { socket, process };
        sidecar.follow()?;
        sidecar.figures(rounds, &signed, &expanded).into_iter().for_each(tell);
    }
    Ok(())
}

fn engine(rounds: usize, signers: &[Signer], expanded: &[Box<ExpandedKey>], random: &mut StdRng) {
    for (length, size) in SIZES {
        let signed: Vec<_> = signers.iter().map(|signer| signer.sign(length, random)).collect();
        tell(singly(size, rounds, &signed, expanded));
        for count in BATCHES {
            if length == 32 || count == 8 {
                tell(batches(size, count, rounds, &signed, expanded));
            }
        }
    }
    tell(of_the_standard(rounds, random));
    tell(two_processors(rounds, signers, expanded, random));
    tell(hashes_and_ciphers(rounds, random));
}

/// Sixteen, each: the public key, the length of the message in four bytes (little-endian), the message, the signature.
fn write_signatures(file: &Path, out_of_range: bool, random: &mut StdRng) -> io::Result<()> {
    let mut out = Vec::new();
    for length in [0, 1, 8, 32, 64, 70, 71, 72, 73, 135, 136, 137, 272, 500, 1000, 4096] {
        let signer = Signer::new(random);
        let mut one = signer.sign(length, random);
        if out_of_range {
            one.signature = signer.unbounded().sign(&one.message, random);
        }
        out.extend_from_slice(&one.key.0);
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&one.message);
        out.extend_from_slice(&one.signature);
    }
    std::fs::write(file, out)
}

/// Four, each: the public key, the length of the data in four bytes (little-endian), the data, the fingerprint, the signature.
fn write_fingerprints(file: &Path, random: &mut StdRng) -> io::Result<()> {
    let mut out = Vec::new();
    for length in [0, 1, 1024, 5000] {
        let mut data = vec![0; length];
        random.fill_bytes(&mut data);
        let (fingerprint, key) = Fingerprint::generate(&data, random).expect("a fingerprint");
        fingerprint.verify(&key).expect("its own fingerprint");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&data);
        out.extend_from_slice(fingerprint.data());
        out.extend_from_slice(fingerprint.signature());
    }
    std::fs::write(file, out)
}

fn tell(figures: Vec<Figure>) {
    for figure in figures {
        println!("{}", serde_json::to_string(&figure).expect("numbers and strings"));
    }
}

fn single(backend: Backend, key: &ExpandedKey, edition: Edition, message: &[u8], signature: &[u8]) {
    let mu = Content::Message { context: b"", message }.mu(key.tr(), edition).expect("no context");
    verify(backend, key, edition, &mu, signature).expect("a good signature");
}

/// Ours by each backend, and the node's, each signature by itself.
fn singly(size: &str, rounds: usize, signed: &[Signed], expanded: &[Box<ExpandedKey>]) -> Vec<Figure> {
    let all = || signed[..8].iter().zip(expanded).cycle();
    let node = || {
        let mut all = all();
        Way::new("qudag-crypto", 1, move || {
            let (one, _) = all.next().expect("a circle has no end");
            one.node_key.verify(&one.message, &one.signature).expect("a good signature");
        })
    };
    let fresh = Backend::available().rev().map(|backend| {
        let mut all = all();
        Way::new(backend, 1, move || {
            let (one, _) = all.next().expect("a circle has no end");
            let key = one.key.expand(backend);
            single(backend, &key, Edition::Draft, &one.message, &one.signature);
        })
    });
    let cached = Backend::available().rev().map(|backend| {
        let mut all = all();
        Way::new(backend, 1, move || {
            let (one, key) = all.next().expect("a circle has no end");
            single(backend, key, Edition::Draft, &one.message, &one.signature);
        })
    });
    let mut figures = measure(&format!("fresh key, {size}"), rounds, fresh.chain([node()]).collect());
    figures.extend(measure(&format!("cached key, {size}"), rounds, cached.chain([node()]).collect()));
    figures
}

fn jobs<'a>(signed: &'a [Signed], expanded: &'a [Box<ExpandedKey>], fresh: bool) -> Vec<Job<'a>> {
    let jobs = signed.iter().zip(expanded).map(|(one, key)| Job {
        key: if fresh { Key::Fresh(&one.key) } else { Key::Expanded(key) },
        edition: Edition::Draft,
        content: Content::Message { context: b"", message: &one.message },
        signature: &one.signature,
    });
    jobs.collect()
}

/// Several at once, each of another key, beside the node's batch.
fn batches(
    size: &str,
    count: usize,
    rounds: usize,
    signed: &[Signed],
    expanded: &[Box<ExpandedKey>],
) -> Vec<Figure> {
    let signed = &signed[..count];
    let messages: Vec<_> = signed.iter().map(|one| &one.message[..]).collect();
    let signatures: Vec<_> = signed.iter().map(|one| &one.signature[..]).collect();
    let keys: Vec<_> = signed.iter().map(|one| &one.node_key).collect();
    let mut figures = Vec::new();
    for (fresh, name) in [(true, "fresh keys"), (false, "cached keys")] {
        let jobs = jobs(signed, expanded, fresh);
        let mut ways: Vec<_> = Backend::available()
            .rev()
            .map(|backend| {
                let (jobs, mut scratch) = (&jobs, Scratch::new());
                let mut results = vec![Ok(()); count];
                Way::new(backend, count, move || {
                    verify_batch(backend, &mut scratch, jobs, &mut results);
                    assert!(results.iter().all(Result::is_ok));
                })
            })
            .collect();
        ways.push(Way::new("qudag-crypto", count, || {
            qudag_crypto::MlDsaPublicKey::batch_verify(&messages, &signatures, &keys)
                .expect("good signatures");
        }));
        figures.extend(measure(&format!("batch of {count}, {name}, {size}"), rounds, ways));
    }
    figures
}

/// Signatures of the final standard, beside libraries that verify those.
fn of_the_standard(rounds: usize, random: &mut StdRng) -> Vec<Figure> {
    let mut seed = [0; 32];
    random.fill_bytes(&mut seed);
    let pair = ml_dsa_65::generate_key_pair(seed);
    let message = [7; 32];
    random.fill_bytes(&mut seed);
    let signature = ml_dsa_65::sign(&pair.signing_key, &message, b"", seed).expect("a signature");
    let (key_bytes, bytes) = (pair.verification_key.as_ref(), signature.as_ref());
    let key = PublicKey(*key_bytes);
    let expanded = key.expand(Backend::best());
    let parsed = ParsedPublicKey::new(&ML_DSA_65, key_bytes).expect("its own key");
    let mut figures = Vec::new();
    for cached in [false, true] {
        let ours = Backend::available().rev().map(|backend| {
            let (key, expanded) = (&key, &expanded);
            Way::new(backend, 1, move || match cached {
                true => single(backend, expanded, Edition::Final, &message, bytes),
                false => single(backend, &key.expand(backend), Edition::Final, &message, bytes),
            })
        });
        let aws = Way::new("aws-lc-rs", 1, || parsed.verify_sig(&message, bytes).expect("a good signature"));
        let libcrux = Way::new("libcrux", 1, || {
            let key = &pair.verification_key;
            ml_dsa_65::verify(key, &message, b"", &signature).expect("a good signature");
        });
        let what = format!("FIPS 204, {} key, 32 B", if cached { "cached" } else { "fresh" });
        figures.extend(measure(&what, rounds, ours.chain([aws, libcrux]).collect()));
    }
    figures
}

/// The same on two threads: the time of one operation on each.
fn two_processors(
    rounds: usize,
    signers: &[Signer],
    expanded: &[Box<ExpandedKey>],
    random: &mut StdRng,
) -> Vec<Figure> {
    let signed: Vec<_> = signers.iter().map(|signer| signer.sign(32, random)).collect();
    let (signed, rounds) = (&signed[..8], rounds / 4 + 1);
    let both = std::thread::scope(|scope| {
        let work = || {
            let (jobs, mut scratch) = (jobs(signed, expanded, false), Scratch::new());
            let mut results = [Ok(()); 8];
            let ours = Way::new(Backend::best(), 8, move || {
                verify_batch(Backend::best(), &mut scratch, &jobs, &mut results);
                assert_eq!(results, [Ok(()); 8]);
            });
            let node = Way::new("qudag-crypto", 8, || {
                for one in signed {
                    one.node_key.verify(&one.message, &one.signature).expect("a good signature");
                }
            });
            measure("batch of 8, cached keys, on two processors", rounds, vec![ours, node])
        };
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.map(|thread| thread.join().expect("a thread that measures"))
    });
    let [one, other] = both;
    let mean = |(a, b): (Figure, Figure)| Figure {
        cpu: f64::midpoint(a.cpu, b.cpu),
        p50: f64::midpoint(a.p50, b.p50),
        p99: a.p99.max(b.p99),
        ..a
    };
    one.into_iter().zip(other).map(mean).collect()
}

/// For the record: what the sidecar has from libraries.
fn hashes_and_ciphers(rounds: usize, random: &mut StdRng) -> Vec<Figure> {
    let mut data = vec![0; 16 << 10];
    random.fill_bytes(&mut data);
    let mut figures = Vec::new();
    for (length, size) in [(64, "64 B"), (1024, "1 kB"), (16 << 10, "16 kB")] {
        let data = &data[..length];
        let hash = Way::new("blake3", 16, || {
            for _ in 0..16 {
                black_box(blake3::hash(black_box(data)));
            }
        });
        figures.extend(measure(&format!("BLAKE3 of {size}"), rounds, vec![hash]));
        for (name, algorithm) in [("AES-256-GCM", &AES_256_GCM), ("ChaCha20-Poly1305", &CHACHA20_POLY1305)] {
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).expect("32 bytes"));
            let mut sealed = data.to_vec();
            let seal = Way::new("aws-lc-rs", 16, move || {
                for _ in 0..16 {
                    // Nothing is sent: a nonce may be used again.
                    let nonce = Nonce::assume_unique_for_key([0; 12]);
                    let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut sealed);
                    let _ = black_box(tag.expect("a tag"));
                }
            });
            figures.extend(measure(&format!("{name} of {size}"), rounds, vec![seal]));
        }
    }
    figures
}
