//! What several tests need.

use std::sync::Arc;

use bytes::Bytes;
use qudag_filter_api::FlowKey;
use qudag_mldsa::testing::{self, Sample};
use qudag_mldsa::{Backend, Edition, PublicKey, Rejected};

use crate::{Content, CryptoCall, KeyRef, Operations, SignatureCheck, Verdict};

/// Signatures of the library that QuDAG signs with, of different keys and messages.
pub(crate) fn signatures() -> Vec<SignatureCheck> {
    let signatures = testing::signatures().map(|Sample { key, message, signature }| SignatureCheck {
        key: KeyRef::Public(Box::new(PublicKey(*key))),
        edition: Edition::Draft,
        content: Content::Message { context: Bytes::new(), message: Bytes::from_static(message) },
        signature: Bytes::from_static(signature),
    });
    signatures.collect()
}

/// The same signature with one bit changed that makes it one of something else.
pub(crate) fn damaged(mut check: SignatureCheck) -> SignatureCheck {
    let mut signature = check.signature.to_vec();
    signature[7] ^= 1;
    check.signature = signature.into();
    check
}

/// So many signatures, of which each fifth is damaged, and the verdicts about them.
pub(crate) fn mixed(number: usize) -> (Operations, Vec<Verdict>) {
    let all = signatures();
    let one = |place: usize| {
        let check = all[place % all.len()].clone();
        match place % 5 {
            3 => (damaged(check), Verdict::Invalid(Rejected::Mismatch)),
            _ => (check, Verdict::Valid),
        }
    };
    let (checks, verdicts) = (0..number).map(one).unzip();
    (Operations::Signatures(checks), verdicts)
}

/// A call of a program, with the fastest backend that there is.
pub(crate) fn call(operations: Operations) -> CryptoCall {
    CryptoCall { backend: Backend::best(), ..CryptoCall::new(operations, FlowKey::of(b"test"), None) }
}

/// The same with the operations of another one.
pub(crate) fn share(operations: &Arc<Operations>) -> CryptoCall {
    CryptoCall { operations: Arc::clone(operations), ..call(Operations::Status) }
}
