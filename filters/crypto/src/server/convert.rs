//! Between the bytes of the binary protocol and what the chain takes and gives.

use bytes::Bytes;
use qudag_core::offload::{self as wire, Malformed, Reply, Request};
use qudag_filter_api::FilterError;
use qudag_mldsa::{Edition, Mu, PublicKey, Rejected};

use super::refusal;
use crate::{Content, CryptoReply, FingerprintCheck, KeyId, KeyRef, Operations, SignatureCheck, Verdict};

/// The operations of a request.
pub(super) fn operations(request: Request) -> Result<Operations, Malformed> {
    Ok(match request {
        Request::Keys(keys) => Operations::Keys(all(keys, |new| exact(&new.key).map(PublicKey))?),
        Request::Signatures(signatures) => Operations::Signatures(all(signatures, signature)?),
        Request::Fingerprints(fingerprints) => Operations::Fingerprints(all(fingerprints, fingerprint)?),
        Request::Hashes(digests) => {
            Operations::Hashes(all(digests, |digest| Ok((digest.data, digest.length)))?)
        }
        Request::Status => Operations::Status,
    })
}

fn all<O, T>(
    operations: wire::Operations<O>,
    convert: impl Fn(O) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed>
where
    wire::Operations<O>: Iterator<Item = Result<O, Malformed>>,
{
    // No more than a request's bytes can hold, and one for the error that may follow.
    let mut converted = Vec::with_capacity(operations.size_hint().1.unwrap_or_default());
    for operation in operations {
        converted.push(convert(operation?)?);
    }
    Ok(converted)
}

/// Bytes of a length that the decoder has checked.
fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed::Frame("a part has the wrong length"))
}

fn key(key: wire::Key<Bytes>) -> Result<KeyRef, Malformed> {
    Ok(match key {
        wire::Key::Id(id) => KeyRef::Id(KeyId(id)),
        wire::Key::Public(key) => KeyRef::Public(Box::new(PublicKey(exact(&key)?))),
    })
}

fn signature(one: wire::Signature<Bytes>) -> Result<SignatureCheck, Malformed> {
    Ok(SignatureCheck {
        key: key(one.key)?,
        edition: match one.edition {
            wire::Edition::Draft => Edition::Draft,
            wire::Edition::Final => Edition::Final,
        },
        content: match one.content {
            wire::Content::Mu(mu) => Content::Mu(Box::new(Mu(exact(&mu)?))),
            wire::Content::Message { context, message } => Content::Message { context, message },
        },
        signature: one.signature,
    })
}

fn fingerprint(one: wire::Fingerprint<Bytes>) -> Result<FingerprintCheck, Malformed> {
    Ok(FingerprintCheck {
        key: key(one.key)?,
        data: one.data,
        fingerprint: Box::new(exact(&one.fingerprint)?),
        signature: one.signature,
    })
}

/// The reply that a program gets.
pub(super) fn reply(result: Result<CryptoReply, FilterError>) -> Reply {
    match result {
        Ok(CryptoReply::Keys(ids)) => Reply::Keys(ids.into_iter().map(|id| id.0).collect()),
        Ok(CryptoReply::Verdicts(verdicts) | CryptoReply::Routed(verdicts)) => {
            Reply::Verdicts(verdicts.into_iter().map(verdict).collect())
        }
        Ok(CryptoReply::Hashes(hashes)) => Reply::Hashes(hashes),
        Ok(CryptoReply::Status(status)) => match serde_json::to_string(&status) {
            Ok(json) => Reply::Status(json),
            Err(why) => Reply::Error(refusal::binary(&FilterError::Internal(why.to_string().into()))),
        },
        Err(error) => Reply::Error(refusal::binary(&error)),
    }
}

/// A verdict as both protocols name it.
pub(super) fn verdict(verdict: Verdict) -> wire::Verdict {
    match verdict {
        Verdict::Valid => wire::Verdict::Valid,
        Verdict::Invalid(Rejected::Length) => wire::Verdict::Length,
        Verdict::Invalid(Rejected::Context) => wire::Verdict::Context,
        Verdict::Invalid(Rejected::Hints) => wire::Verdict::Hints,
        Verdict::Invalid(Rejected::Range) => wire::Verdict::Range,
        Verdict::Invalid(Rejected::Mismatch) => wire::Verdict::Mismatch,
        Verdict::OtherData => wire::Verdict::OtherData,
        Verdict::UnknownKey => wire::Verdict::UnknownKey,
    }
}
