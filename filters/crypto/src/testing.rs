//! What several tests need.

use std::sync::Arc;

use bytes::Bytes;
use qudag_filter_api::FlowKey;
use qudag_mldsa::{Backend, Edition, PUBLIC_KEY_BYTES, PublicKey, Rejected, SIGNATURE_BYTES};

use crate::{Content, CryptoCall, KeyRef, Operations, SignatureCheck, Verdict};

/// Signatures of the library that QuDAG signs with, of different keys and messages.
pub(crate) fn signatures() -> Vec<SignatureCheck> {
    let mut bytes = &include_bytes!("../../../qudag-core/mldsa/tests/data/qudag-crypto.signatures")[..];
    let mut signatures = Vec::new();
    while let Some((key, rest)) = bytes.split_first_chunk::<PUBLIC_KEY_BYTES>() {
        let (length, rest) = rest.split_first_chunk().unwrap();
        let (message, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        let (signature, rest) = rest.split_at(SIGNATURE_BYTES);
        signatures.push(SignatureCheck {
            key: KeyRef::Public(Box::new(PublicKey(*key))),
            edition: Edition::Draft,
            content: Content::Message { context: Bytes::new(), message: message.to_vec().into() },
            signature: signature.to_vec().into(),
        });
        bytes = rest;
    }
    signatures
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
