//! The names of nodes.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Serialize, Serializer};

/// The multihash code of the data itself.
const ITSELF: u8 = 0x00;
/// The multihash code of SHA-256.
const OF_SHA256: u8 = 0x12;
/// The longest key that is its own hash.
const MOST_ITSELF: usize = 42;

/// A libp2p peer id: the multihash of a node's public key
/// (<https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>), 44 bytes at most. Its text is base58.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Box<[u8]>);

/// The bytes or the text are no [`PeerId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id")]
pub struct NotAPeerId;

impl PeerId {
    /// The longest one in bytes.
    pub const MOST: usize = MOST_ITSELF + 2;

    /// The id of a public key in its protobuf form.
    pub fn of_key(key: &[u8]) -> Self {
        let (code, hash) = if key.len() <= MOST_ITSELF {
            (ITSELF, key.to_vec())
        } else {
            (OF_SHA256, digest(&SHA256, key).as_ref().to_vec())
        };
        // 42 bytes at most.
        let mut bytes = vec![code, hash.len() as u8];
        bytes.extend(hash);
        Self(bytes.into())
    }

    /// The id of these bytes.
    ///
    /// # Errors
    /// When they are no multihash of a kind that peer ids have.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, NotAPeerId> {
        let [code, length, hash @ ..] = bytes else { return Err(NotAPeerId) };
        let right = match *code {
            ITSELF => (1..=MOST_ITSELF).contains(&hash.len()),
            OF_SHA256 => hash.len() == 32,
            _ => false,
        };
        if right && usize::from(*length) == hash.len() { Ok(Self(bytes.into())) } else { Err(NotAPeerId) }
    }

    /// The multihash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Which k-bucket of a node's Kademlia table the other one belongs to: the position of the highest bit in which the SHA-256 of both differ,
    /// 0 to 255; `None` for the same id.
    pub fn bucket(&self, other: &Self) -> Option<u32> {
        let (one, two) = (digest(&SHA256, &self.0), digest(&SHA256, &other.0));
        let differ = one.as_ref().iter().zip(two.as_ref()).map(|(one, two)| one ^ two);
        let mut from_top = 0;
        for byte in differ {
            from_top += byte.leading_zeros();
            if byte != 0 {
                return 255_u32.checked_sub(from_top);
            }
        }
        None
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(&self.0).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = NotAPeerId;

    fn from_str(text: &str) -> Result<Self, NotAPeerId> {
        // 44 bytes have 61 letters at most.
        if text.len() > 64 {
            return Err(NotAPeerId);
        }
        bs58::decode(text).into_vec().map_err(|_| NotAPeerId).and_then(|bytes| Self::of_bytes(&bytes))
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_ids_are_read_and_written() {
        // The test vectors of the specification: an Ed25519 key, and an RSA key's hash.
        let key = "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
        let key = data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap();
        assert_eq!(PeerId::of_key(&key).to_string(), "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq");
        for text in [
            "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        ] {
            assert_eq!(text.parse::<PeerId>().unwrap().to_string(), text);
        }
        for wrong in ["", "1", "12D3KooW0", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5", &"1".repeat(65)]
        {
            assert_eq!(wrong.parse::<PeerId>(), Err(NotAPeerId), "{wrong}");
        }
    }

    #[test]
    fn buckets_are_distances() {
        let id = |byte: u8| PeerId::of_key(&[byte; 36]);
        assert_eq!(id(1).bucket(&id(1)), None);
        let buckets: Vec<_> = (2..200).filter_map(|byte| id(1).bucket(&id(byte))).collect();
        assert_eq!(buckets.len(), 198);
        let far = buckets.iter().filter(|bucket| **bucket == 255).count();
        assert!((60..140).contains(&far), "half of all ids are as far as can be: {far}");
        assert_eq!(id(1).bucket(&id(7)), id(7).bucket(&id(1)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key in prop::collection::vec(any::<u8>(), 1..100)) {
            let id = PeerId::of_key(&key);
            prop_assert_eq!(PeerId::of_bytes(id.as_bytes()), Ok(id.clone()));
            prop_assert_eq!(id.to_string().parse(), Ok(id.clone()));
            prop_assert!(id.as_bytes().len() <= PeerId::MOST);
        }

        #[test]
        fn any_bytes_are_an_id_or_not(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(id) = PeerId::of_bytes(&bytes) {
                prop_assert_eq!(id.as_bytes(), &bytes[..]);
            }
        }
    }
}
