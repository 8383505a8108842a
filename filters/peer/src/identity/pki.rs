//! A small private certificate authority, for people who have none.
//!
//! Keys are ECDSA on P-256: every TLS library and every tool knows them, signatures take microseconds and 70 bytes, and a chain fits
//! into what a server may send before a client's address is known (RFC 9000 section 8.1). Post-quantum is what would be recorded
//! today and decrypted later, the key exchange; a signature can only be forged while a connection is made. The tunnel itself takes
//! certificates with ML-DSA (RFC 9881) as well, from authorities that issue them: rustls verifies and makes such signatures, but
//! rcgen 0.14 cannot read the key of an ML-DSA authority back from its file.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::certificate::{Facts, NoName};
use super::name::PeerName;

/// The authority's certificate in its folder.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// The authority's key in its folder.
pub const CA_KEY: &str = "ca.key";
/// Certificates hold from this long before they are issued: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// The longest time that a certificate may hold.
pub const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Larger files are refused.
const MAX_FILE: u64 = 1 << 20;

/// Why something was not made or shown.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file that must not be overwritten.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The operating system refuses a file.
    #[error("cannot {what} {}: {why}", file.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// There is no authority in the folder.
    #[error("there is no authority in {}", .0.display())]
    NoAuthority(PathBuf),
    /// The key in a folder is not that of the certificate in it.
    #[error("{} and {CA_KEY} beside it do not fit each other", .0.display())]
    OtherKey(PathBuf),
    /// The authority holds no longer than this; nobody would believe what it issues.
    #[error("the authority in {} has expired", .0.display())]
    AuthorityExpired(PathBuf),
    /// A file holds nothing that can be used.
    #[error("{}: {why}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate to be renewed has no name.
    #[error("{}: {why}", file.display())]
    NoName {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        why: NoName,
    },
    /// A name of an authority or of a file that cannot be one.
    #[error(
        "{0:?} cannot be a name: it has 1 to 63 letters, digits, dots, hyphens and underscores, and begins with a letter or digit"
    )]
    Name(String),
    /// A name of an authority that cannot be a trust domain.
    #[error(
        "{0:?} cannot be a trust domain: it has 1 to 63 small letters, digits, dots, hyphens and underscores"
    )]
    Domain(String),
    /// A lifetime without sense.
    #[error("a certificate holds for 1 second to 100 years")]
    Lifetime,
    /// A certificate could not be made.
    #[error("the certificate cannot be made: {0}")]
    Making(#[from] rcgen::Error),
}

impl PkiError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Exists(file) if file.ends_with(CA_CERTIFICATE) || file.ends_with(CA_KEY) => {
                "an authority is never replaced: every certificate from it would be worthless; choose another --dir"
            }
            Self::Exists(_) => "a certificate is replaced with `qudag-sidecar pki renew`",
            Self::NoAuthority(_) | Self::OtherKey(_) => "make one with `qudag-sidecar pki init --dir DIR`",
            Self::AuthorityExpired(_) => {
                "make a new one in another folder, and let every sidecar believe both for a while"
            }
            _ => return None,
        })
    }
}

fn cannot(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> PkiError {
    move |why| match why.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(file.to_owned()),
        _ => PkiError::File { what, file: file.to_owned(), why },
    }
}

/// Checks a name that becomes part of a file's name and of a URI.
fn check_name(name: &str) -> Result<(), PkiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    match starts && name.len() <= 63 && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(PkiError::Name(name.to_owned())),
    }
}

/// The files of an issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM, for its owner alone.
    pub key: PathBuf,
    /// The authority's certificate.
    pub authorities: PathBuf,
    /// The name in the certificate.
    pub name: PeerName,
    /// Until when it holds.
    pub not_after: SystemTime,
}

/// Makes an authority in a folder: `ca.pem` and `ca.key`. Its name is the trust domain of the names that it gives by default.
///
/// # Errors
/// When there is one already, or it cannot be written.
pub fn init(dir: &Path, name: &str, lifetime: Duration, now: SystemTime) -> Result<Facts, PkiError> {
    let wrong = || PkiError::Domain(name.to_owned());
    check_name(name).map_err(|_| wrong())?;
    let domain: PeerName = format!("spiffe://{name}").parse().map_err(|_| wrong())?;
    let (certificate_file, key_file) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(&format!("{name} authority"), &domain, lifetime, now)?;
    // It issues no other authorities (RFC 5280 section 4.2.1.9).
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;

    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(cannot("write", dir))?;
    if certificate_file.exists() {
        return Err(PkiError::Exists(certificate_file));
    }
    write_new(&key_file, &key.serialize_pem(), 0o600)?;
    write_new(&certificate_file, &certificate.pem(), 0o644)?;
    facts(&certificate_file, certificate.der())
}

/// An authority as it lies in a folder.
pub struct Authority {
    file: PathBuf,
    pem: String,
    facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority of a folder.
    ///
    /// # Errors
    /// When there is none, its files do not fit each other, or its time is over.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Self, PkiError> {
        let (file, key_file) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if !file.exists() {
            return Err(PkiError::NoAuthority(dir.to_owned()));
        }
        let pem = read(&file)?;
        let certificate = certificates(&file, &pem)?.into_iter().next();
        let certificate = certificate.ok_or_else(|| PkiError::NoAuthority(dir.to_owned()))?;
        let facts = facts(&file, &certificate)?;
        if !facts.authority {
            return Err(PkiError::Content { file, why: "not the certificate of an authority".to_owned() });
        }
        if now > facts.not_after {
            return Err(PkiError::AuthorityExpired(dir.to_owned()));
        }
        // What a library says of a private key is not repeated.
        let bad = |_| PkiError::Content {
            file: key_file.clone(),
            why: "no private key that can be used".to_owned(),
        };
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(bad)?;
        if !holds(&certificate, &key) {
            return Err(PkiError::OtherKey(file));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { file, pem, facts, issuer })
    }

    /// The name that a certificate gets by default: `spiffe://`, the authority's trust domain, and NAME.
    ///
    /// # Errors
    /// When NAME cannot be part of one.
    pub fn default_name(&self, name: &str) -> Result<PeerName, PkiError> {
        let domain = self.facts.name().ok().filter(|own| own.as_str().starts_with("spiffe://"));
        let domain = domain.map_or_else(|| "spiffe://qudag".to_owned(), |own| own.to_string());
        format!("{domain}/{name}").parse().map_err(|_| PkiError::Name(name.to_owned()))
    }

    /// Issues a certificate with a new key: `NAME.pem`, `NAME.key` and the authority's `ca.pem` in a folder.
    ///
    /// It holds no longer than the authority does.
    ///
    /// # Errors
    /// When one of the files is there already (another `ca.pem`, too), or cannot be written.
    pub fn issue(
        &self,
        name: &str,
        uri: Option<PeerName>,
        lifetime: Duration,
        out: &Path,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        check_name(name)?;
        let uri = uri.map_or_else(|| self.default_name(name), Ok)?;
        let (certificate, key) = (out.join(format!("{name}.pem")), out.join(format!("{name}.key")));
        let made = self.make(name, &uri, lifetime, now)?;
        DirBuilder::new().recursive(true).mode(0o700).create(out).map_err(cannot("write", out))?;
        let authorities = out.join(CA_CERTIFICATE);
        for file in [&certificate, &key] {
            if file.exists() {
                return Err(PkiError::Exists(file.clone()));
            }
        }
        match read(&authorities) {
            Ok(there) if there == self.pem => {}
            Ok(_) => return Err(PkiError::Exists(authorities)),
            Err(_) => write_new(&authorities, &self.pem, 0o644)?,
        }
        write_new(&key, &made.key, 0o600)?;
        write_new(&certificate, &made.certificate, 0o644)?;
        Ok(Issued { certificate, key, authorities, name: uri, not_after: made.not_after })
    }

    /// Replaces a certificate and its key (the file beside it that ends in `.key`) by new ones with the same name. Each file is
    /// replaced at once; a sidecar that reads one before the other waits for it.
    ///
    /// # Errors
    /// When the old one cannot be read or has no name, or the new ones cannot be written.
    pub fn renew(&self, certificate: &Path, lifetime: Duration, now: SystemTime) -> Result<Issued, PkiError> {
        let nothing =
            || PkiError::Content { file: certificate.to_owned(), why: "no certificate in it".to_owned() };
        let old = certificates(certificate, &read(certificate)?)?.into_iter().next().ok_or_else(nothing)?;
        let old = facts(certificate, &old)?;
        if old.authority {
            let why = "the certificate of an authority, which is not renewed".to_owned();
            return Err(PkiError::Content { file: certificate.to_owned(), why });
        }
        let uri = old.name().map_err(|why| PkiError::NoName { file: certificate.to_owned(), why })?;
        let stem = certificate.file_stem().and_then(|stem| stem.to_str()).unwrap_or("sidecar");
        let made = self.make(stem, &uri, lifetime, now)?;
        let key = certificate.with_extension("key");
        replace(&key, &made.key, 0o600)?;
        replace(certificate, &made.certificate, 0o644)?;
        Ok(Issued {
            certificate: certificate.to_owned(),
            key,
            authorities: self.file.clone(),
            name: uri,
            not_after: made.not_after,
        })
    }

    fn make(
        &self,
        name: &str,
        uri: &PeerName,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Made, PkiError> {
        let mut params = params(name, uri, lifetime, now)?;
        let not_after = (now + lifetime).min(self.facts.not_after);
        params.not_after = not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Made { certificate: certificate.pem(), key: key.serialize_pem(), not_after })
    }
}

/// A certificate and its key, in PEM.
struct Made {
    certificate: String,
    key: String,
    not_after: SystemTime,
}

fn params(
    name: &str,
    uri: &PeerName,
    lifetime: Duration,
    now: SystemTime,
) -> Result<CertificateParams, PkiError> {
    if lifetime < Duration::from_secs(1) || lifetime > MAX_LIFETIME {
        return Err(PkiError::Lifetime);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri.as_str())?)];
    params.not_before = now.checked_sub(CLOCK_SKEW).unwrap_or(now).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

/// Whether a key is that of a certificate.
fn holds(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

/// The certificates of a file, in its order; for `pki show`.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn show(file: &Path) -> Result<Vec<Facts>, PkiError> {
    let found = certificates(file, &read(file)?)?;
    if found.is_empty() {
        let why = "no certificate in it (private keys are not shown)".to_owned();
        return Err(PkiError::Content { file: file.to_owned(), why });
    }
    found.iter().map(|certificate| facts(file, certificate)).collect()
}

fn certificates(file: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    found.map_err(|why| PkiError::Content { file: file.to_owned(), why: format!("not PEM: {why}") })
}

fn facts(file: &Path, certificate: &CertificateDer<'_>) -> Result<Facts, PkiError> {
    Facts::of(certificate).map_err(|why| PkiError::Content { file: file.to_owned(), why })
}

fn read(file: &Path) -> Result<String, PkiError> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(cannot("read", file))?;
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot("read", file))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(PkiError::Content { file: file.to_owned(), why: "larger than 1 MiB".to_owned() });
    }
    String::from_utf8(bytes)
        .map_err(|_| PkiError::Content { file: file.to_owned(), why: "not PEM: not a text".to_owned() })
}

/// Writes a file that is not there yet; a reader never finds it with other permissions.
fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(cannot("write", file))
}

/// Replaces a file at once, so that a reader finds the old contents or the new ones. Owner and mode stay as they are: the sidecar
/// that reads the file may run as another user. Without an old file it has `mode`.
fn replace(file: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    // What an earlier attempt has left.
    let _ = std::fs::remove_file(&new);
    write_new(&new, text, 0o600)?;
    let write = || {
        let mode = match std::fs::metadata(file) {
            Ok(old) => {
                let made = std::fs::metadata(&new)?;
                if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
                    chown(&new, Some(old.uid()), Some(old.gid()))?;
                }
                old.mode() & 0o777
            }
            Err(_) => mode,
        };
        std::fs::set_permissions(&new, Permissions::from_mode(mode))?;
        std::fs::rename(&new, file)
    };
    write().map_err(cannot("write", file))
}
