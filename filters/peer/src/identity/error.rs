//! What can be wrong with the files of an identity, in words for people.

use std::io;
use std::path::PathBuf;

use super::certificate::NoName;

/// Which of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The own certificate.
    Certificate,
    /// Its private key.
    Key,
    /// The authorities.
    Authorities,
}

impl Part {
    /// Its key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Authorities => "authorities",
        }
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct IdentityError {
    /// Which file.
    pub part: Part,
    /// Where it is.
    pub file: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operating system refuses it.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// Nobody has that many certificates.
    #[error("larger than 1 MiB")]
    Large,
    /// There is a block of PEM that cannot be read (RFC 7468).
    #[error("not PEM: {0}")]
    NotPem(String),
    /// No block of PEM is a certificate.
    #[error("no certificate in it")]
    NoCertificate,
    /// A certificate cannot be read.
    #[error("{0}")]
    BadCertificate(String),
    /// The certificate does not say whose it is.
    #[error(transparent)]
    NoName(#[from] NoName),
    /// No block of PEM is a private key.
    #[error("no private key in it")]
    NoKey,
    /// It would need a password.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// The key is of a kind that cannot be used.
    #[error("the private key cannot be used: {0}")]
    BadKey(String),
    /// The key belongs to another certificate.
    #[error("the private key is not that of the certificate in {}", .0.display())]
    OtherKey(PathBuf),
    /// The authorities cannot be used.
    #[error("the authorities cannot be used: {0}")]
    BadAuthorities(String),
    /// Outside of a runtime nothing can be watched.
    #[error("cannot be watched: {0}")]
    Unwatched(String),
}

impl IdentityError {
    /// What would be right.
    pub fn hint(&self) -> &'static str {
        match (&self.problem, self.part) {
            (Problem::Unreadable(why), _) if why.kind() == io::ErrorKind::PermissionDenied => {
                "let the user that the sidecar runs as read the file"
            }
            (Problem::NoName(NoName::Several(_)), _) => {
                "issue a certificate with one URI, such as spiffe://example.org/node-a"
            }
            (Problem::NoName(_), _) => {
                "issue a certificate with a URI such as spiffe://example.org/node-a; `qudag-sidecar pki issue` does"
            }
            (Problem::EncryptedKey, _) => {
                "decrypt it with `openssl pkey -in FILE -out FILE`, and let only the sidecar's user read it"
            }
            (Problem::OtherKey(_), _) => "name the key that was made with the certificate",
            (Problem::BadKey(_), _) => "an ECDSA (P-256, P-384, P-521), Ed25519, ML-DSA or RSA key",
            (Problem::Unwatched(_), _) => "open the identity inside of the runtime",
            (_, Part::Certificate) => "a file with the certificate, and intermediate ones behind it, in PEM",
            (_, Part::Key) => "a file with the certificate's private key in PEM",
            (_, Part::Authorities) => {
                "a file with the certificates of authorities in PEM; `qudag-sidecar pki init` makes one"
            }
        }
    }

    /// A word for metrics.
    pub fn label(&self) -> &'static str {
        match self.problem {
            Problem::Unreadable(_) | Problem::Large => "unreadable",
            Problem::NotPem(_)
            | Problem::NoCertificate
            | Problem::BadCertificate(_)
            | Problem::BadAuthorities(_) => "bad_certificate",
            Problem::NoName(_) => "no_name",
            Problem::NoKey | Problem::EncryptedKey | Problem::BadKey(_) => "bad_key",
            Problem::OtherKey(_) => "other_key",
            Problem::Unwatched(_) => "unwatched",
        }
    }
}
