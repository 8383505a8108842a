//! Certificates that others are verified with.
//!
//! The system's authorities (rustls-native-certs) and not a list that is compiled in: they are kept up to date by the system, and hold
//! what an operator has added.

use std::io;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::read_file;

/// Certificates in files larger than this are not read.
const MAX_FILE: u64 = 8 << 20;

/// The certificates of a file in PEM, at least one.
///
/// # Errors
/// When the file cannot be read, is larger than 8 MiB, or has none.
pub fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = read_file(file, MAX_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let certificates = certificates.map_err(|why| invalid(format!("not PEM: {why}")))?;
    match certificates.is_empty() {
        true => Err(invalid("no certificate in it".to_owned())),
        false => Ok(certificates),
    }
}

/// The system's authorities, at least one.
///
/// # Errors
/// When there are none.
pub fn system_certificates() -> io::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(found.certs);
    }
    let why = found.errors.first().map_or_else(
        || {
            "the system has no certificate authorities; install ca-certificates or name a file of authorities"
                .to_owned()
        },
        |why| format!("the system's certificate authorities cannot be read: {why}"),
    );
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}
