//! Between what the chain takes and gives and the bytes of `QDC1`, from the side of a client.

use bytes::BytesMut;
use qudag_core::offload::{self as wire, encode_routed};
use qudag_mldsa::{Backend, Edition, Rejected};
use serde::Deserialize;

use super::rule::Queue;
use crate::{Content, FingerprintCheck, KeyRef, Operations, SignatureCheck, Verdict};

/// Appends a batch as a request that is passed on; `None` where `QDC1` has no such request, or another sidecar could not answer it.
pub(super) fn encode(id: u32, operations: &Operations, to: &mut BytesMut) -> Option<()> {
    match operations {
        Operations::Signatures(checks) => {
            let checks: Vec<_> = checks.iter().map(signature).collect::<Option<_>>()?;
            encode_routed(id, &checks, to).ok()
        }
        Operations::Fingerprints(checks) => {
            let checks: Vec<_> = checks.iter().map(fingerprint).collect::<Option<_>>()?;
            encode_routed(id, &checks, to).ok()
        }
        Operations::Keys(_) | Operations::Hashes(_) | Operations::Status => None,
    }
}

/// Whether every key is given itself. Ids are known where the keys were registered, and nowhere else.
pub(super) fn has_all_keys(operations: &Operations) -> bool {
    let public = |key: &KeyRef| matches!(key, KeyRef::Public(_));
    match operations {
        Operations::Signatures(checks) => checks.iter().all(|check| public(&check.key)),
        Operations::Fingerprints(checks) => checks.iter().all(|check| public(&check.key)),
        Operations::Keys(_) | Operations::Hashes(_) | Operations::Status => false,
    }
}

fn key(key: &KeyRef) -> Option<wire::Key<&[u8]>> {
    match key {
        KeyRef::Id(_) => None,
        KeyRef::Public(key) => Some(wire::Key::Public(&key.0)),
    }
}

fn signature(check: &SignatureCheck) -> Option<wire::Signature<&[u8]>> {
    Some(wire::Signature {
        key: key(&check.key)?,
        edition: match check.edition {
            Edition::Draft => wire::Edition::Draft,
            Edition::Final => wire::Edition::Final,
        },
        content: match &check.content {
            Content::Mu(mu) => wire::Content::Mu(&mu.0),
            Content::Message { context, message } => wire::Content::Message { context, message },
        },
        signature: &check.signature,
    })
}

fn fingerprint(check: &FingerprintCheck) -> Option<wire::Fingerprint<&[u8]>> {
    Some(wire::Fingerprint {
        key: key(&check.key)?,
        data: &check.data,
        fingerprint: &check.fingerprint[..],
        signature: &check.signature,
    })
}

/// The verdicts of a reply; `None` unless there is one for each of `operations`. No key is unknown, since all were sent.
pub(super) fn verdicts(verdicts: &[wire::Verdict], operations: usize) -> Option<Vec<Verdict>> {
    if verdicts.len() != operations {
        return None;
    }
    let verdict = |verdict: &wire::Verdict| match verdict {
        wire::Verdict::Valid => Some(Verdict::Valid),
        wire::Verdict::Length => Some(Verdict::Invalid(Rejected::Length)),
        wire::Verdict::Context => Some(Verdict::Invalid(Rejected::Context)),
        wire::Verdict::Hints => Some(Verdict::Invalid(Rejected::Hints)),
        wire::Verdict::Range => Some(Verdict::Invalid(Rejected::Range)),
        wire::Verdict::Mismatch => Some(Verdict::Invalid(Rejected::Mismatch)),
        wire::Verdict::OtherData => Some(Verdict::OtherData),
        wire::Verdict::UnknownKey => None,
    };
    verdicts.iter().map(verdict).collect()
}

/// What another sidecar says that is in force there for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    /// Its backend; `None` for one that is not known here.
    pub(super) backend: Option<Backend>,
    /// What waits there.
    pub(super) queue: Queue,
}

impl Capability {
    /// Reads the reply to a request for the status. What is not needed here may be there or not.
    pub(super) fn read(status: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Status {
            backend: String,
            crypto_offload: Option<Offload>,
        }
        #[derive(Deserialize)]
        struct Offload {
            threads: u32,
            queued: usize,
        }
        let status: Status = serde_json::from_str(status).ok()?;
        let queue = status.crypto_offload.map_or(Queue { operations: 0, threads: 1 }, |offload| Queue {
            operations: offload.queued,
            threads: offload.threads,
        });
        Some(Self { backend: status.backend.parse().ok(), queue })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_far_as_it_is_needed() {
        let read = Capability::read;
        let queue = |operations, threads| Queue { operations, threads };
        let busy = r#"{"backend": "avx2", "simd_crypto": 1, "crypto_offload": {"threads": 2, "queued": 7, "keys": 1}}"#;
        assert_eq!(read(busy), Some(Capability { backend: Some(Backend::Avx2), queue: queue(7, 2) }));
        let newer = r#"{"backend": "neon", "crypto_offload": null}"#;
        assert_eq!(read(newer), Some(Capability { backend: None, queue: queue(0, 1) }));
        for none in ["", "{}", r#"{"backend": 1}"#, r#"{"backend": "avx2", "crypto_offload": {}}"#] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn verdicts_are_as_many_as_were_asked_for_and_of_known_keys() {
        use wire::Verdict as Wire;
        assert_eq!(
            verdicts(&[Wire::Valid, Wire::Range], 2),
            Some(vec![Verdict::Valid, Verdict::Invalid(Rejected::Range)])
        );
        assert_eq!(verdicts(&[Wire::Valid], 2), None);
        assert_eq!(verdicts(&[Wire::Valid, Wire::UnknownKey], 2), None);
    }
}
