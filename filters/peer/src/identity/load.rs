//! Reads the files of an identity and checks that they fit each other.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::IdentitySettings;
use super::certificate::Facts;
use super::error::{IdentityError, Part, Problem};
use super::name::PeerName;
use super::reset::ResetSecret;
use super::tls::{self, Tls};

/// Larger files are refused.
const MAX_FILE: u64 = 1 << 20;

/// An identity as its files have it at one time.
pub(super) struct Material {
    pub(super) name: PeerName,
    pub(super) facts: Facts,
    /// The own certificate, and the authorities: equal ones make an equal identity, as the key fits the certificate.
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
    pub(super) tls: Tls,
    pub(super) reset: ResetSecret,
    /// What is not wrong, but hardly meant.
    pub(super) remarks: Vec<String>,
}

impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.authorities == other.authorities
    }
}

/// Reads all files.
///
/// # Errors
/// With the first thing that is wrong.
pub(super) fn load(settings: &IdentitySettings) -> Result<Material, IdentityError> {
    let (chain, facts, name) = certificate(&settings.certificate)?;
    let (key, reset) = key(&settings.key, &settings.certificate, &chain)?;
    let (authorities, roots) = authorities(&settings.authorities)?;
    let tls = Tls::new(key, Arc::clone(&roots)).map_err(|why| {
        error(Part::Authorities, &settings.authorities, Problem::BadAuthorities(why.to_string()))
    })?;
    let mut remarks = Vec::new();
    if let Some(mode) = readable_by_all(&settings.key) {
        remarks.push(format!("{} can be read by everybody (mode {mode:o})", settings.key.display()));
    }
    if !tls::is_from(&chain, &roots) {
        let (own, theirs) = (settings.certificate.display(), settings.authorities.display());
        remarks.push(format!(
            "{own} is from none of the authorities in {theirs}: sidecars with the same authorities will refuse it"
        ));
    }
    for (good, what) in [(facts.for_servers, "serverAuth"), (facts.for_clients, "clientAuth")] {
        if !good {
            let file = settings.certificate.display();
            remarks.push(format!(
                "{file} is not for {what} (extended key usage): other sidecars will refuse it"
            ));
        }
    }
    Ok(Material { name, facts, chain, authorities, tls, reset, remarks })
}

/// Everything that is wrong with the files.
pub(super) fn problems(settings: &IdentitySettings) -> Vec<IdentityError> {
    let mut errors = Vec::new();
    match certificate(&settings.certificate) {
        Ok((chain, ..)) => errors.extend(key(&settings.key, &settings.certificate, &chain).err()),
        Err(why) => {
            errors.push(why);
            errors.extend(key_der(&settings.key).err());
        }
    }
    errors.extend(authorities(&settings.authorities).err());
    errors
}

fn error(part: Part, file: &Path, problem: impl Into<Problem>) -> IdentityError {
    IdentityError { part, file: file.to_owned(), problem: problem.into() }
}

fn read(file: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(Problem::Unreadable)?;
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Problem::Unreadable)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(Problem::Large),
        false => Ok(bytes),
    }
}

/// The certificates of a file in PEM, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|why| Problem::NotPem(why.to_string()))?;
    match found.is_empty() {
        true => Err(Problem::NoCertificate),
        false => Ok(found),
    }
}

type Own = (Vec<CertificateDer<'static>>, Facts, PeerName);

fn certificate(file: &Path) -> Result<Own, IdentityError> {
    let read = || {
        let chain = certificates(file)?;
        let facts = chain.iter().map(Facts::of).collect::<Result<Vec<_>, _>>();
        let facts = facts.map_err(Problem::BadCertificate)?;
        let first = facts.into_iter().next().ok_or(Problem::NoCertificate)?;
        let name = first.name()?;
        Ok((chain, first, name))
    };
    read().map_err(|problem: Problem| error(Part::Certificate, file, problem))
}

fn key_der(file: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let read = || {
        let bytes = read(file)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|why| match why {
            // RFC 5958 section 3.
            pem::Error::NoItemsFound if contains(&bytes, b"BEGIN ENCRYPTED PRIVATE KEY") => {
                Problem::EncryptedKey
            }
            pem::Error::NoItemsFound => Problem::NoKey,
            why => Problem::NotPem(why.to_string()),
        })
    };
    read().map_err(|problem| error(Part::Key, file, problem))
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn key(
    file: &Path,
    certificate: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(Arc<CertifiedKey>, ResetSecret), IdentityError> {
    use rustls::{Error, InconsistentKeys};
    let der = key_der(file)?;
    let reset = ResetSecret::of(der.secret_der());
    let fit = CertifiedKey::from_der(chain.to_vec(), der, &tls::provider());
    fit.map(|key| (Arc::new(key), reset)).map_err(|why| {
        let problem = match why {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                Problem::OtherKey(certificate.to_owned())
            }
            // What a library says of a private key is not repeated.
            _ => Problem::BadKey("it is of no supported kind, or damaged".to_owned()),
        };
        error(Part::Key, file, problem)
    })
}

type Authorities = (Vec<CertificateDer<'static>>, Arc<RootCertStore>);

fn authorities(file: &Path) -> Result<Authorities, IdentityError> {
    let read = || {
        let found = certificates(file)?;
        let mut roots = RootCertStore::empty();
        for certificate in &found {
            let added = roots.add(certificate.clone());
            added.map_err(|why| Problem::BadAuthorities(why.to_string()))?;
        }
        Ok((found, Arc::new(roots)))
    };
    read().map_err(|problem: Problem| error(Part::Authorities, file, problem))
}

/// The mode of a file that everybody may read. Groups are left alone: container platforms hand out secrets through one.
fn readable_by_all(file: &Path) -> Option<u32> {
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then_some(mode)
}
