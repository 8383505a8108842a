//! What all backends have to agree on, with the standard, with other implementations and with each other.

mod batch;
mod damaged;
mod hashes;
mod model;
mod signed;
mod timing;
mod twins;
mod vectors;

use fips204::ml_dsa_65;
use fips204::traits::{KeyGen, SerDes, Signer};

use crate::{Backend, Edition, Mu, MuOf, PUBLIC_KEY_BYTES, PublicKey, Rejected, SIGNATURE_BYTES, verify};

/// The backends to test: the one that the environment names, or all that the processor can run.
fn backends() -> Vec<Backend> {
    match Backend::from_environment().unwrap() {
        None => Backend::available().collect(),
        Some(forced) => {
            assert!(forced.is_available(), "this processor cannot run {forced}");
            vec![forced]
        }
    }
}

/// A signature with all that it takes to verify it.
#[derive(Clone, Debug)]
struct Signed {
    key: PublicKey,
    edition: Edition,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// Those of the library that QuDAG signs with, of messages of many lengths (`tests/crypto` writes them).
    fn drafts() -> Vec<Self> {
        Self::read(include_bytes!("../../tests/data/qudag-crypto.signatures"))
    }

    /// Such that only verifiers accept that do not look at the range of z.
    fn out_of_range() -> Vec<Self> {
        Self::read(include_bytes!("../../tests/data/out-of-range.signatures"))
    }

    fn read(mut bytes: &[u8]) -> Vec<Self> {
        let mut signed = Vec::new();
        while let Some((key, rest)) = bytes.split_first_chunk::<PUBLIC_KEY_BYTES>() {
            let (length, rest) = rest.split_first_chunk().unwrap();
            let (message, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
            let (signature, rest) = rest.split_at(SIGNATURE_BYTES);
            let (message, signature) = (message.to_vec(), signature.to_vec());
            signed.push(Self { key: PublicKey(*key), edition: Edition::Draft, message, signature });
            bytes = rest;
        }
        signed
    }

    /// The first of those that is of a message.
    fn draft() -> Self {
        Self::drafts().into_iter().find(|signed| !signed.message.is_empty()).unwrap()
    }

    /// By a library for the final standard.
    fn standard(message: &[u8]) -> Self {
        let (public, secret) = ml_dsa_65::KG::try_keygen().unwrap();
        Self {
            key: PublicKey(public.into_bytes()),
            edition: Edition::Final,
            message: message.to_vec(),
            signature: secret.try_sign(message, b"").unwrap().to_vec(),
        }
    }

    fn mu(&self, tr: &[u8; 64]) -> Mu {
        let mut mu = MuOf::new(tr, self.edition, b"").unwrap();
        mu.update(&self.message);
        mu.finish()
    }

    /// What every backend says.
    fn verify(&self) -> Result<(), Rejected> {
        let results: Vec<_> = backends()
            .into_iter()
            .map(|backend| {
                let key = self.key.expand(backend);
                verify(backend, &key, self.edition, &self.mu(key.tr()), &self.signature)
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0]
    }
}
