//! Logging in: the start-up packet, and SCRAM-SHA-256 (RFC 5802, RFC 7677) or a password in clear text where the other side asks
//! for it.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use bytes::{BufMut, BytesMut};
use data_encoding::BASE64;

/// Who logs in, and where.
#[derive(Clone)]
pub struct Login {
    /// The role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The database.
    pub database: String,
}

impl Default for Login {
    /// The user of the kit's server.
    fn default() -> Self {
        Self {
            user: "qudag".into(),
            password: qudag_kit::postgres::PASSWORD.into(),
            database: "qudag".into(),
        }
    }
}

impl Login {
    /// The start-up packet of protocol 3.0.
    pub fn startup(&self) -> BytesMut {
        let mut packet = BytesMut::new();
        packet.put_u32(0);
        packet.put_u32(3 << 16);
        for (key, value) in
            [("user", &*self.user), ("database", &*self.database), ("application_name", "qudag-e2e")]
        {
            for word in [key, value] {
                packet.put_slice(word.as_bytes());
                packet.put_u8(0);
            }
        }
        packet.put_u8(0);
        let length = packet.len() as u32;
        packet[..4].copy_from_slice(&length.to_be_bytes());
        packet
    }
}

/// The client's side of one SCRAM exchange.
pub(super) struct Scram {
    nonce: String,
    expected: Vec<u8>,
}

const NAME: &[u8] = b"SCRAM-SHA-256\0";

impl Scram {
    pub(super) fn new() -> Self {
        let mut nonce = [0; 18];
        rand::fill(&mut nonce).unwrap();
        Self { nonce: BASE64.encode(&nonce), expected: Vec::new() }
    }

    /// The body of SASLInitialResponse.
    pub(super) fn first(&self) -> BytesMut {
        let message = format!("n,,{}", self.bare());
        let mut body = BytesMut::from(NAME);
        body.put_u32(message.len() as u32);
        body.put_slice(message.as_bytes());
        body
    }

    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// The body of SASLResponse to the server's first message.
    pub(super) fn last(&mut self, password: &str, server_first: &str) -> BytesMut {
        let part = |key: &str| {
            let found = server_first.split(',').find_map(|part| part.strip_prefix(key));
            found.unwrap_or_else(|| panic!("no {key} in {server_first}"))
        };
        let salt = BASE64.decode(part("s=").as_bytes()).unwrap();
        let times: NonZeroU32 = part("i=").parse().unwrap();
        let nonce = part("r=");
        assert!(nonce.starts_with(&self.nonce), "the server's nonce does not begin with ours");
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, times, &salt, password.as_bytes(), &mut salted);
        let sign = |key: &[u8], text: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
        };
        let key = sign(&salted, b"Client Key");
        let without_proof = format!("c=biws,r={nonce}");
        let all = format!("{},{server_first},{without_proof}", self.bare());
        let signature = sign(digest::digest(&digest::SHA256, &key).as_ref(), all.as_bytes());
        let proof: Vec<u8> = key.iter().zip(&signature).map(|(key, sign)| key ^ sign).collect();
        self.expected = sign(&sign(&salted, b"Server Key"), all.as_bytes());
        BytesMut::from(format!("{without_proof},p={}", BASE64.encode(&proof)).as_bytes())
    }

    /// Whether the server proved that it knows the password too.
    pub(super) fn proven(&self, server_final: &str) -> bool {
        server_final == format!("v={}", BASE64.encode(&self.expected))
    }
}
