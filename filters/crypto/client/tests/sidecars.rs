//! The client with sidecars that do not do what they should. The real one is in `tests/e2e`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use qudag_core::offload::{Digest, Frame, HEADER, Header, Limits, PREAMBLE, Reply, Request};
use qudag_offload_client::{
    Answer, By, Client, Code, Content, Edition, Error, Fallback, Fingerprint, Key, Options, PUBLIC_KEY_BYTES,
    Refusal, SIGNATURE_BYTES, Signature, Verdict,
};
use tempfile::TempDir;

/// What a sidecar does with a request.
#[derive(Clone)]
enum Act {
    /// What the real one does with data to hash.
    Hash,
    Say(Reply),
    /// With another id.
    Confuse,
    Close,
    Nothing,
    /// One byte at a time, slower than any deadline.
    Trickle,
}

struct Sidecar {
    path: PathBuf,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Sidecar {
    /// One that does these things with its requests, one after the other, whatever connection they come on, and then hashes.
    fn start(limits: Limits, acts: &[Act]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("crypto.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let sidecar = Self {
            path,
            connections: Arc::clone(&connections),
            requests: Arc::clone(&requests),
            _folder: folder,
        };
        let acts = acts.to_vec();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (acts, requests) = (acts.clone(), Arc::clone(&requests));
                std::thread::spawn(move || serve(stream.unwrap(), limits, &acts, &requests));
            }
        });
        sidecar
    }

    fn client(&self, fallback: Fallback) -> Client {
        let options = Options { fallback, deadline: Duration::from_millis(500) };
        Client::connect_with(&self.path, options).unwrap()
    }
}

/// Serves one connection until it ends.
fn serve(mut stream: UnixStream, limits: Limits, acts: &[Act], requests: &AtomicUsize) -> Option<()> {
    let mut preamble = [0; 4];
    stream.read_exact(&mut preamble).ok()?;
    assert_eq!(preamble, PREAMBLE);
    let mut out = Vec::new();
    Reply::Welcome(limits).encode(0, &mut out);
    stream.write_all(&out).ok()?;
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).ok()?;
        let header = Header::read(&header);
        let mut body = vec![0; header.body()];
        stream.read_exact(&mut body).ok()?;
        assert!(header.count <= limits.operations && header.length <= limits.body);
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let mut out = Vec::new();
        let frame = Frame { header, body: Bytes::from(body) };
        match acts.get(number).unwrap_or(&Act::Hash) {
            Act::Hash => hashes(frame).encode(header.id, &mut out),
            Act::Say(reply) => reply.encode(header.id, &mut out),
            Act::Confuse => hashes(frame).encode(header.id + 1, &mut out),
            Act::Close => return None,
            Act::Nothing => std::thread::park_timeout(Duration::from_secs(3)),
            Act::Trickle => {
                hashes(frame).encode(header.id, &mut out);
                for byte in &out {
                    stream.write_all(&[*byte]).ok()?;
                    std::thread::park_timeout(Duration::from_millis(100));
                }
                return None;
            }
        }
        stream.write_all(&out).ok()?;
    }
}

fn hashes(frame: Frame) -> Reply {
    let Request::Hashes(all) = Request::read(frame).unwrap() else { panic!("not to be hashed") };
    let hash = |one: Digest<Bytes>| {
        let mut hash = vec![0; one.length.into()].into_boxed_slice();
        hash.copy_from_slice(&blake(&one.data, one.length.into()));
        hash
    };
    Reply::Hashes(all.map(|one| hash(one.unwrap())).collect())
}

fn blake(data: &[u8], length: usize) -> Vec<u8> {
    let mut hash = vec![0; length];
    blake3::Hasher::new().update(data).finalize_xof().fill(&mut hash);
    hash
}

const ROOMY: Limits = Limits { body: 1 << 20, operations: 100, in_flight: 1 };

/// Has three pieces of data hashed, which must be right whoever does it.
fn hash(client: &mut Client) -> Result<By, Error> {
    let data = [&b"a"[..], b"bb", b"ccc"];
    let operations = data.map(|data| Digest { data, length: 40 });
    let Answer { value, by } = client.hash(&operations)?;
    for (data, hash) in data.iter().zip(&value) {
        assert_eq!(hash[..], blake(data, 40));
    }
    assert_eq!(value.len(), 3);
    Ok(by)
}

#[test]
fn batches_are_cut_to_what_the_sidecar_takes() {
    let sidecar = Sidecar::start(Limits { operations: 2, ..ROOMY }, &[]);
    assert!(matches!(hash(&mut sidecar.client(Fallback::Error)), Ok(By::Sidecar)));
    assert_eq!(sidecar.requests.load(Ordering::SeqCst), 2);
    // 8 bytes and the data each: the first two do not fit together.
    let sidecar = Sidecar::start(Limits { body: 18, ..ROOMY }, &[]);
    assert!(matches!(hash(&mut sidecar.client(Fallback::Error)), Ok(By::Sidecar)));
    assert_eq!(sidecar.requests.load(Ordering::SeqCst), 3);
    let sidecar = Sidecar::start(Limits { body: 10, ..ROOMY }, &[]);
    let error = hash(&mut sidecar.client(Fallback::Error)).unwrap_err();
    assert!(matches!(error, Error::TooLong { length: 11, limit: 10 }), "{error}");
    assert!(matches!(hash(&mut sidecar.client(Fallback::InProcess)), Ok(By::InProcess { .. })));
}

#[test]
fn a_broken_connection_is_made_again() {
    let sidecar = Sidecar::start(ROOMY, &[Act::Hash, Act::Close]);
    let mut client = sidecar.client(Fallback::Error);
    for _ in 0..3 {
        assert!(matches!(hash(&mut client), Ok(By::Sidecar)));
    }
    assert_eq!(sidecar.connections.load(Ordering::SeqCst), 2);
    assert_eq!(sidecar.requests.load(Ordering::SeqCst), 4);
    // Once, and not for ever.
    let sidecar = Sidecar::start(ROOMY, &[Act::Close, Act::Close, Act::Close]);
    let error = hash(&mut sidecar.client(Fallback::Error)).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error}");
    assert_eq!(sidecar.requests.load(Ordering::SeqCst), 2);
}

#[test]
fn nothing_is_waited_for_longer_than_the_deadline() {
    for act in [Act::Nothing, Act::Trickle] {
        let sidecar = Sidecar::start(ROOMY, &[act.clone(), act]);
        let start = Instant::now();
        let error = hash(&mut sidecar.client(Fallback::Error)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let mut client = sidecar.client(Fallback::InProcess);
        assert!(matches!(hash(&mut client), Ok(By::InProcess { why: Error::Timeout { .. } })));
        assert!(start.elapsed() < Duration::from_millis(2_500), "{:?}", start.elapsed());
        // The next call does not wait for it again.
        assert!(matches!(hash(&mut client), Ok(By::InProcess { why: Error::Waiting { .. } })));
        std::thread::park_timeout(Duration::from_millis(60));
        assert!(matches!(hash(&mut client), Ok(By::Sidecar)));
    }
}

#[test]
fn what_is_no_answer_is_not_believed() {
    let short = Act::Say(Reply::Hashes(vec![vec![0; 40].into(); 2]));
    let other_length = Act::Say(Reply::Hashes(vec![vec![0; 41].into(); 3]));
    let other_sort = Act::Say(Reply::Verdicts(vec![Verdict::Valid; 3]));
    for act in [Act::Confuse, short, other_length, other_sort] {
        let sidecar = Sidecar::start(ROOMY, &[act]);
        let error = hash(&mut sidecar.client(Fallback::Error)).unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{error}");
    }
}

#[test]
fn a_refusal_is_told_or_made_up_for() {
    for code in Code::ALL {
        let refusal = Refusal { code, retry_after: Some(Duration::from_millis(7)), message: "no".into() };
        let act = Act::Say(Reply::Error(refusal.clone()));
        let sidecar = Sidecar::start(ROOMY, &[act.clone(), act]);
        let mut client = sidecar.client(Fallback::Error);
        let Err(Error::Refused(refused)) = hash(&mut client) else { panic!("{code:?}") };
        assert_eq!(refused, refusal);
        let by = hash(&mut sidecar.client(Fallback::InProcess));
        // What cannot be read there would be wrong here as well.
        assert_eq!(matches!(by, Ok(By::InProcess { why: Error::Refused(_) })), code != Code::Malformed);
        assert!(matches!(hash(&mut client), Ok(By::Sidecar)), "the connection goes on, or a new one is made");
    }
}

#[test]
fn a_forgotten_key_is_sent_along() {
    let unknown = Act::Say(Reply::Verdicts(vec![Verdict::Valid, Verdict::UnknownKey]));
    let key = vec![7; PUBLIC_KEY_BYTES];
    let id: [u8; 32] = blake3::hash(&key).into();
    let registered = Act::Say(Reply::Keys(vec![id]));
    let again = Act::Say(Reply::Verdicts(vec![Verdict::Mismatch]));
    let sidecar = Sidecar::start(ROOMY, &[registered, unknown, again]);
    let mut client = sidecar.client(Fallback::Error);
    assert_eq!(client.register(&[&key]).unwrap().value, [id]);
    let one = Signature {
        key: Key::Id(id),
        edition: Edition::Draft,
        content: Content::Mu(&[0; 64][..]),
        signature: &[0; SIGNATURE_BYTES][..],
    };
    assert_eq!(client.verify(&[one, one]).unwrap().value, [Verdict::Valid, Verdict::Mismatch]);
    assert_eq!(sidecar.requests.load(Ordering::SeqCst), 3);
}

#[test]
fn without_a_sidecar_the_program_says_what_a_sidecar_would() {
    let nowhere =
        Client::connect_with("/nonexistent", Options { fallback: Fallback::Error, ..Options::default() });
    assert!(matches!(nowhere.err(), Some(Error::Connect { .. })));
    let mut client = Client::connect("/nonexistent").unwrap();
    assert!(!client.is_connected() && client.status().is_err());
    let key = vec![7; PUBLIC_KEY_BYTES];
    let (id, other) = (client.register(&[&key]).unwrap().value[0], [0; 32]);
    let one = |key, content, signature| Signature { key, edition: Edition::Draft, content, signature };
    let (mu, context) =
        (Content::Mu(&[0; 64][..]), Content::Message { context: &b"c"[..], message: &b""[..] });
    let operations = [
        one(Key::Id(id), mu, &[0; SIGNATURE_BYTES][..]),
        one(Key::Id(other), mu, &[0; SIGNATURE_BYTES]),
        one(Key::Public(&key), mu, &[0; 5]),
        one(Key::Public(&key), context, &[0; SIGNATURE_BYTES]),
    ];
    let verdicts = client.verify(&operations).unwrap().value;
    // The z of nothing but zeros is γ₁ everywhere.
    let expected = [Verdict::Range, Verdict::UnknownKey, Verdict::Length, Verdict::Context];
    assert_eq!(verdicts, expected);
    let fingerprint = Fingerprint {
        key: Key::Id(id),
        data: &b"data"[..],
        fingerprint: &blake(b"data", 64),
        signature: &[0; SIGNATURE_BYTES],
    };
    let fingerprints = [fingerprint, Fingerprint { data: b"other", ..fingerprint }];
    let verdicts = client.verify_fingerprints(&fingerprints).unwrap().value;
    assert_eq!(verdicts, [Verdict::Range, Verdict::OtherData]);
    let short = one(Key::Public(&key[1..]), mu, &[]);
    assert!(matches!(client.verify(&[short]), Err(Error::Unencodable(_))));
    assert!(client.verify::<&[u8]>(&[]).unwrap().value.is_empty());
}
