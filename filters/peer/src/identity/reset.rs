//! What a process needs to end the connections of the one before it, which was killed: stateless resets (RFC 9000 section 10.3).
//!
//! Both keys are derived from the identity's private key, so that the next process has them without a file. After a rotation they are
//! others: connections from before it are then noticed by their silence.

use std::sync::Arc;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use quinn::EndpointConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;

use super::follow::Shared;

/// Derived from a private key.
pub(super) struct ResetSecret {
    /// Signs the tokens.
    tokens: Key,
    /// Marks connection IDs as this sidecar's own, so that other packets are not answered.
    ids: u64,
}

impl ResetSecret {
    /// The private key is the key of a pseudo-random function, whose outputs say nothing about it or each other.
    pub(super) fn of(private_key: &[u8]) -> Self {
        let root = Key::new(HMAC_SHA256, private_key);
        let derived = |label: &[u8]| sign(&root, label);
        let tokens = Key::new(HMAC_SHA256, derived(b"qst/1 stateless reset tokens").as_ref());
        let ids = derived(b"qst/1 connection ids");
        let ids = ids.as_ref().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        Self { tokens, ids }
    }
}

/// An endpoint's configuration with the keys of an identity; tokens follow its changes.
/// Comes with what makes its connection IDs.
pub(super) fn endpoint_config(shared: &Arc<Shared>) -> (EndpointConfig, HashedConnectionIdGenerator) {
    let mut config = EndpointConfig::new(Arc::new(Tokens(Arc::clone(shared))));
    let ids = shared.current.load().reset.ids;
    let generator = move || HashedConnectionIdGenerator::from_key(ids);
    config.cid_generator(move || Box::new(generator()));
    (config, generator())
}

struct Tokens(Arc<Shared>);

impl HmacKey for Tokens {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        let signed = sign(&self.0.current.load().reset.tokens, data);
        for (to, from) in out.iter_mut().zip(signed.as_ref()) {
            *to = *from;
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        verify(&self.0.current.load().reset.tokens, data, signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_secrets_and_another_one_others() {
        let token = |secret: &ResetSecret| sign(&secret.tokens, b"id").as_ref().to_vec();
        let [one, again, other] = [b"one", b"one", b"two"].map(|key| ResetSecret::of(key));
        assert_eq!((token(&one), one.ids), (token(&again), again.ids));
        assert!(token(&one) != token(&other) && one.ids != other.ids);
    }
}
