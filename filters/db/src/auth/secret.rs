//! What proves who somebody is.

use std::fmt;
use std::sync::OnceLock;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::HEXLOWER;
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::scram::{ClientKey, SCRAM_SHA_256, ScramError, Verifier};

/// How an MD5 hash begins in `pg_authid` and on the wire.
const MD5: &[u8] = b"md5";

/// A password, in whatever encoding it was written. Never shown, and overwritten when it is dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<Box<[u8]>>);

impl Password {
    /// Keeps it.
    pub fn new(password: &[u8]) -> Self {
        Self(Zeroizing::new(password.into()))
    }

    /// The password itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Password {}

/// The hexadecimal digits of the MD5 hash of some bytes.
fn md5(parts: [&[u8]; 2]) -> Zeroizing<[u8; 32]> {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut digits = Zeroizing::new([0; 32]);
    // Both lengths are those of the hash.
    HEXLOWER.encode_mut(&Zeroizing::new(<[u8; 16]>::from(hash.finalize()))[..], &mut *digits);
    digits
}

/// What `pg_authid.rolpassword` has behind `md5`: 32 hexadecimal digits of the MD5 hash of password and user. It is as good as the password
/// wherever MD5 is asked for.
#[derive(Clone)]
pub struct Md5Hash(Zeroizing<[u8; 32]>);

impl Md5Hash {
    /// That of a user's password.
    pub fn of_password(password: &[u8], user: &[u8]) -> Self {
        Self(md5([password, user]))
    }

    /// Reads one with its `md5`, as PostgreSQL knows one (`get_password_type`).
    pub fn read(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 32] = text.strip_prefix(MD5)?.try_into().ok()?;
        let hexadecimal = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        hexadecimal.then(|| Self(Zeroizing::new(*digits)))
    }

    /// What answers AuthenticationMD5Password.
    pub fn response(&self, salt: [u8; 4]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([MD5, &*md5([&*self.0, &salt])].concat())
    }

    /// Whether a client's answer is right.
    pub fn verify(&self, salt: [u8; 4], response: &[u8]) -> bool {
        verify_slices_are_equal(&self.response(salt), response).is_ok()
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash")
    }
}

impl PartialEq for Md5Hash {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.0, &*other.0).is_ok()
    }
}

impl Eq for Md5Hash {}

/// What logs in as a user at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing: the server has to trust the sidecar.
    Trust,
    /// The user's password.
    Password(Password),
    /// The MD5 hash of password and user.
    Md5(Md5Hash),
    /// What the client's SCRAM exchange gave away.
    Key(ClientKey),
}

/// What is known of a user.
#[derive(Debug)]
pub(super) enum Stored {
    /// The password, and the verifier that is made of it for clients.
    Plain(Password, OnceLock<Verifier>),
    /// Its MD5 hash.
    Md5(Md5Hash),
    /// Its verifier.
    Scram(Verifier),
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain(one, _), Self::Plain(other, _)) => one == other,
            (Self::Md5(one), Self::Md5(other)) => one == other,
            (Self::Scram(one), Self::Scram(other)) => one == other,
            _ => false,
        }
    }
}

impl Stored {
    /// Reads a secret as it stands in a file or in `pg_authid`; `None` for an empty one, with which nobody logs in.
    ///
    /// # Errors
    /// When it begins as a verifier and is none.
    pub(super) fn read(secret: &[u8]) -> Result<Option<Self>, ScramError> {
        if secret.is_empty() {
            return Ok(None);
        }
        if let Some(hash) = Md5Hash::read(secret) {
            return Ok(Some(Self::Md5(hash)));
        }
        if secret.strip_prefix(SCRAM_SHA_256.as_bytes()).is_some_and(|rest| rest.starts_with(b"$")) {
            let text = std::str::from_utf8(secret).map_err(|_| ScramError::Malformed)?;
            return text.parse().map(|verifier| Some(Self::Scram(verifier)));
        }
        Ok(Some(Self::Plain(Password::new(secret), OnceLock::new())))
    }

    /// What of it logs in at a server.
    pub(super) fn identity(&self) -> Option<Identity> {
        match self {
            Self::Plain(password, _) => Some(Identity::Password(password.clone())),
            Self::Md5(hash) => Some(Identity::Md5(hash.clone())),
            Self::Scram(_) => None,
        }
    }

    /// Whether the verifier is there already.
    pub(super) fn has_verifier(&self) -> bool {
        match self {
            Self::Plain(_, made) => made.get().is_some(),
            Self::Md5(_) | Self::Scram(_) => true,
        }
    }

    /// The verifier that a client proves itself with; of a password it is made once, in milliseconds.
    ///
    /// # Errors
    /// Where there is none: of an MD5 hash, or without randomness.
    pub(super) fn verifier(&self) -> Result<Verifier, ScramError> {
        match self {
            Self::Plain(password, made) => match made.get() {
                Some(verifier) => Ok(verifier.clone()),
                None => {
                    let verifier = Verifier::new(password)?;
                    Ok(made.get_or_init(|| verifier).clone())
                }
            },
            Self::Md5(_) => Err(ScramError::Refused),
            Self::Scram(verifier) => Ok(verifier.clone()),
        }
    }

    /// Whether a password is the user's. Computes for milliseconds.
    pub(super) fn verify(&self, user: &[u8], password: &Password) -> bool {
        match self {
            Self::Plain(known, _) => known == password,
            Self::Md5(hash) => *hash == Md5Hash::of_password(password.bytes(), user),
            Self::Scram(verifier) => verifier.verify(password),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_is_that_of_postgresql() {
        // SELECT 'md5' || md5('sesame' || 'ann'), and the answer for a salt.
        let hash = Md5Hash::of_password(b"sesame", b"ann");
        let text = [MD5, &hash.0[..]].concat();
        assert_eq!(text, b"md58092dca165b5f3eb34ed392a6de4a861");
        assert_eq!(Md5Hash::read(&text), Some(hash.clone()));
        let response = hash.response([1, 2, 3, 4]);
        assert_eq!(response.len(), 35);
        assert!(hash.verify([1, 2, 3, 4], &response) && !hash.verify([1, 2, 3, 5], &response));
        for wrong in [&b"md5"[..], b"md58092DCA165B5F3EB34ED392A6DE4A861", b"md58092"] {
            assert_eq!(Md5Hash::read(wrong), None);
        }
    }

    #[test]
    fn secrets_are_told_apart_and_never_shown() {
        let verifier = "SCRAM-SHA-256$4096:AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert!(matches!(Stored::read(verifier.as_bytes()), Ok(Some(Stored::Scram(_)))));
        assert!(Stored::read(b"SCRAM-SHA-256$4096:AAAA$x:y").is_err());
        assert!(matches!(Stored::read(b"md58092dca165b5f3eb34ed392a6de4a861"), Ok(Some(Stored::Md5(_)))));
        assert!(matches!(Stored::read(b"sesame"), Ok(Some(Stored::Plain(..)))));
        assert_eq!(Stored::read(b""), Ok(None));
        let stored = Stored::read(b"sesame").unwrap().unwrap();
        assert!(stored.verify(b"ann", &Password::new(b"sesame")));
        assert!(!stored.verify(b"ann", &Password::new(b"sesam")));
        for shown in [format!("{stored:?}"), format!("{:?}", stored.identity())] {
            assert!(!shown.contains("sesame") && !shown.contains("115"), "{shown}");
        }
        let hash = Stored::Md5(Md5Hash::of_password(b"sesame", b"ann"));
        assert!(
            hash.verify(b"ann", &Password::new(b"sesame")) && !hash.verify(b"bob", &Password::new(b"sesame"))
        );
        assert!(!format!("{hash:?}").contains("8092"));
    }
}
