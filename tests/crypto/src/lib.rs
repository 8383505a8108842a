//! The node's signatures, for what verifies them.

pub mod measure;
pub mod unbounded;

use qudag_crypto::{MlDsaKeyPair, MlDsaPublicKey};
use qudag_mldsa::PublicKey;
use rand::RngCore;
use rand::rngs::StdRng;

use crate::unbounded::Unbounded;

/// A signature as a QuDAG node makes it, with what verifies it.
pub struct Signed {
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
    pub node_key: MlDsaPublicKey,
    pub key: PublicKey,
}

/// A key pair of the node's library, and its public key as both sides hold it.
///
/// # Panics
/// When the library makes something other than an ML-DSA-65 key.
pub struct Signer {
    pair: MlDsaKeyPair,
    pub node_key: MlDsaPublicKey,
    pub key: PublicKey,
}

impl Signer {
    pub fn new(random: &mut StdRng) -> Self {
        let pair = MlDsaKeyPair::generate(random).expect("a key pair");
        let node_key = MlDsaPublicKey::from_bytes(pair.public_key()).expect("its own key");
        let key = PublicKey(pair.public_key().try_into().expect("1952 bytes"));
        Self { pair, node_key, key }
    }

    /// This key pair in the hands of one who makes signatures whose z is out of range.
    pub fn unbounded(&self) -> Unbounded {
        Unbounded::new(self.pair.secret_key(), &self.key)
    }

    /// Signs a message of random bytes.
    pub fn sign(&self, length: usize, random: &mut StdRng) -> Signed {
        let mut message = vec![0; length];
        random.fill_bytes(&mut message);
        let signature = self.pair.sign(&message, random).expect("a signature");
        Signed { message, signature, node_key: self.node_key.clone(), key: self.key.clone() }
    }
}
