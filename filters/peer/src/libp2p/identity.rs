//! What a node says of itself in a Noise handshake.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::PeerId;
use super::protobuf::{Value, fields, write_bytes};

/// What the signature says before the static key.
const DOMAIN: &[u8] = b"noise-libp2p-static-key:";
/// `KeyType` of Ed25519 keys.
const OF_ED25519: u64 = 1;

/// Why a node's identity is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnIdentity {
    /// The payload of the handshake is not as it should be.
    #[error("the node's identity is malformed")]
    Malformed,
    /// QuDAG's nodes have Ed25519 keys.
    #[error("the node's key is not an Ed25519 key")]
    OtherKey,
    /// The node has not signed the key of the handshake.
    #[error("the node's signature is wrong")]
    Signature,
}

/// The peer id that a payload of the handshake proves for the owner of the static key `of`.
///
/// # Errors
/// When it proves none.
pub fn read_identity(payload: &[u8], of: &[u8]) -> Result<PeerId, NotAnIdentity> {
    let mut key: &[u8] = &[];
    let mut signature: &[u8] = &[];
    for field in fields(payload).ok_or(NotAnIdentity::Malformed)? {
        match field {
            (1, Value::Bytes(value)) => key = value,
            (2, Value::Bytes(value)) => signature = value,
            _ => {}
        }
    }
    let (mut kind, mut public): (_, &[u8]) = (0, &[]);
    for field in fields(key).ok_or(NotAnIdentity::Malformed)? {
        match field {
            (1, Value::Number(number)) => kind = number,
            (2, Value::Bytes(value)) => public = value,
            _ => {}
        }
    }
    if public.is_empty() {
        return Err(NotAnIdentity::Malformed);
    }
    if kind != OF_ED25519 {
        return Err(NotAnIdentity::OtherKey);
    }
    let signed = [DOMAIN, of].concat();
    let verified = UnparsedPublicKey::new(&ED25519, public).verify(&signed, signature);
    verified.map_err(|_| NotAnIdentity::Signature)?;
    Ok(PeerId::of_key(key))
}

/// A key of our own, for one handshake.
pub struct Identity(Ed25519KeyPair);

impl Identity {
    /// A new one; `None` when the system gives no random numbers.
    pub fn new() -> Option<Self> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
        Ed25519KeyPair::from_pkcs8(document.as_ref()).ok().map(Self)
    }

    /// The public key in its protobuf form.
    pub fn key(&self) -> Vec<u8> {
        // A number of one byte, `KeyType`, and then the key.
        let mut key = vec![1 << 3, OF_ED25519 as u8];
        write_bytes(&mut key, 2, self.0.public_key().as_ref());
        key
    }

    /// Its peer id.
    pub fn peer_id(&self) -> PeerId {
        PeerId::of_key(&self.key())
    }

    /// The payload of a handshake with the static key `of`.
    pub fn payload(&self, of: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        write_bytes(&mut payload, 1, &self.key());
        write_bytes(&mut payload, 2, self.0.sign(&[DOMAIN, of].concat()).as_ref());
        payload
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_is_proved_for_one_key_only() {
        let identity = Identity::new().unwrap();
        let payload = identity.payload(&[7; 32]);
        assert_eq!(read_identity(&payload, &[7; 32]), Ok(identity.peer_id()));
        assert_eq!(read_identity(&payload, &[8; 32]), Err(NotAnIdentity::Signature));
        assert_eq!(read_identity(&payload[..payload.len() - 1], &[7; 32]), Err(NotAnIdentity::Malformed));
        assert_eq!(read_identity(&[], &[7; 32]), Err(NotAnIdentity::Malformed));
        let mut other = payload.clone();
        // The kind of the key: the second byte of the key, which begins behind two bytes of the field.
        other[3] = 2;
        assert_eq!(read_identity(&other, &[7; 32]), Err(NotAnIdentity::OtherKey));
    }

    proptest! {
        #[test]
        fn nothing_else_proves_anything(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..108, bit in 0_u8..8) {
            prop_assert!(read_identity(&bytes, &[7; 32]).is_err());
            let identity = Identity::new().unwrap();
            let mut payload = identity.payload(&[7; 32]);
            let at = at % payload.len();
            payload[at] ^= 1 << bit;
            prop_assert_ne!(read_identity(&payload, &[7; 32]), Ok(identity.peer_id()));
        }
    }
}
