//! Signatures with changes, verified by every backend, each by itself and all in a batch. What `portable` says of one is what everybody
//! has to say.
//!
//! The input is cut at its zero bytes into one signature each, up to nine. Of a piece the first byte chooses the signature that is changed (one
//! of a node, or one whose z is out of range) and what it is taken for, each further three bytes a place and what is added to it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qudag_mldsa::testing::{self, Sample};
use qudag_mldsa::{
    Backend, Content, Edition, Job, Key, PublicKey, Rejected, Scratch, matches_in_any_range, verify,
    verify_batch,
};

#[derive(Clone)]
struct Signed {
    key: PublicKey,
    message: Vec<u8>,
    signature: Vec<u8>,
    edition: Edition,
    fresh: bool,
}

static SIGNED: LazyLock<Vec<Signed>> = LazyLock::new(|| {
    let samples = testing::signatures().chain(testing::out_of_range());
    let signed = samples.map(|Sample { key, message, signature }| Signed {
        key: PublicKey(*key),
        message: message.to_vec(),
        signature: signature.to_vec(),
        edition: Edition::Draft,
        fresh: false,
    });
    signed.collect()
});

impl Signed {
    /// One that a piece of the input describes, and whether it is a good one.
    fn changed(piece: &[u8]) -> Option<(Self, bool)> {
        let (choice, changes) = piece.split_first()?;
        let mut signed = SIGNED.get(usize::from(choice % 32))?.clone();
        signed.fresh = choice & 0x20 != 0;
        if choice & 0x40 != 0 {
            signed.edition = Edition::Final;
        }
        if choice & 0x80 != 0 {
            signed.signature.pop();
        }
        let original = signed.clone();
        for change in changes.chunks_exact(3) {
            let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
            let mut bytes = signed.signature.iter_mut().chain(&mut signed.key.0).chain(&mut signed.message);
            if let Some(byte) = bytes.nth(place) {
                *byte = byte.wrapping_add(change[2]);
            }
        }
        let good = choice & 0xc0 == 0 && choice % 32 < 16;
        let same = signed.key == original.key
            && signed.signature == original.signature
            && signed.message == original.message;
        Some((signed, good && same))
    }
}

fuzz_target!(|input: &[u8]| {
    let changed: Vec<_> = input.split(|byte| *byte == 0).filter_map(Signed::changed).take(9).collect();
    let judged: Vec<_> = changed.iter().map(|(signed, _)| judge(Backend::Portable, signed)).collect();
    for ((_, good), (verdict, _)) in changed.iter().zip(&judged) {
        assert_eq!(*good, verdict.is_ok());
    }
    for backend in Backend::available() {
        for ((signed, _), portable) in changed.iter().zip(&judged) {
            assert_eq!(judge(backend, signed), *portable, "{backend}");
        }
        let keys: Vec<_> = changed.iter().map(|(signed, _)| signed.key.expand(backend)).collect();
        let jobs: Vec<_> = changed
            .iter()
            .zip(&keys)
            .map(|((signed, _), key)| Job {
                key: if signed.fresh { Key::Fresh(&signed.key) } else { Key::Expanded(key) },
                edition: signed.edition,
                content: Content::Message { context: b"", message: &signed.message },
                signature: &signed.signature,
            })
            .collect();
        let mut results = vec![Ok(()); jobs.len()];
        verify_batch(backend, &mut Scratch::new(), &jobs, &mut results);
        let expected: Vec<_> = judged.iter().map(|(verdict, _)| *verdict).collect();
        assert_eq!(results, expected, "{backend}, together");
    }
});

/// What a backend says of a signature by itself, with the range of z and without.
fn judge(backend: Backend, signed: &Signed) -> (Result<(), Rejected>, bool) {
    let key = signed.key.expand(backend);
    assert!(key == signed.key.expand(Backend::Portable), "{backend}: another key");
    let content = Content::Message { context: b"", message: &signed.message };
    let mu = content.mu(key.tr(), signed.edition).expect("no context");
    (
        verify(backend, &key, signed.edition, &mu, &signed.signature),
        matches_in_any_range(backend, &key, signed.edition, &mu, &signed.signature),
    )
}
