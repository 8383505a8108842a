//! What all backends have to agree on, with the standard, with other implementations and with each other.

mod batch;
mod damaged;
mod example;
mod hashes;
mod model;
mod signed;
mod timing;
mod twins;
mod vectors;

use fips204::ml_dsa_65;
use fips204::traits::{KeyGen, SerDes, Signer};

use crate::testing::{self, Sample};
use crate::{Backend, Content, Edition, Mu, PublicKey, Rejected, verify};

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

impl From<Sample> for Signed {
    fn from(Sample { key, message, signature }: Sample) -> Self {
        let (message, signature) = (message.to_vec(), signature.to_vec());
        Self { key: PublicKey(*key), edition: Edition::Draft, message, signature }
    }
}

impl Signed {
    /// Those of the library that QuDAG signs with.
    fn drafts() -> Vec<Self> {
        testing::signatures().map(Self::from).collect()
    }

    /// Such that only verifiers accept that do not look at the range of z.
    fn out_of_range() -> Vec<Self> {
        testing::out_of_range().map(Self::from).collect()
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
        Content::Message { context: b"", message: &self.message }.mu(tr, self.edition).unwrap()
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
