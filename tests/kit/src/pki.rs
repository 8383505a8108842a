//! Certificates for tunnels between sidecars, made with the sidecar's own command.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::Start;
use crate::sidecar::TestSidecar;

/// A private authority in a folder of its own, for the trust domain `kit.test`.
pub struct Pki {
    dir: tempfile::TempDir,
}

/// The files of one sidecar's identity.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// Its URI.
    pub name: String,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority's certificate.
    pub authorities: PathBuf,
}

impl IdentityFiles {
    /// The value of `listeners.peer.identity`, on one line.
    pub fn yaml(&self) -> String {
        let [certificate, key, authorities] =
            [&self.certificate, &self.key, &self.authorities].map(|file| file.display());
        format!("{{ certificate: {certificate}, key: {key}, authorities: {authorities} }}")
    }

    /// The files that a command has told of.
    fn told(told: &Value) -> Self {
        let text = |key: &str| told[key].as_str().unwrap_or_else(|| panic!("no {key} in {told}")).to_owned();
        Self {
            name: text("name"),
            certificate: text("certificate").into(),
            key: text("key").into(),
            authorities: text("authorities").into(),
        }
    }
}

impl Pki {
    /// Makes an authority.
    ///
    /// # Panics
    /// When the command fails.
    pub async fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        pki.run(&["init", "--name", "kit.test"]).await;
        pki
    }

    /// The folder of the authority, in which the certificates are as well.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Issues a certificate for `spiffe://kit.test/NAME`.
    ///
    /// # Panics
    /// When the command fails.
    pub async fn issue(&self, name: &str) -> IdentityFiles {
        self.issue_with(name, &[]).await
    }

    /// Issues a certificate with more options, `--lifetime 2s` for instance.
    ///
    /// # Panics
    /// When the command fails.
    pub async fn issue_with(&self, name: &str, options: &[&str]) -> IdentityFiles {
        IdentityFiles::told(&self.run(&[&["issue", name], options].concat()).await)
    }

    /// Replaces a certificate and its key.
    ///
    /// # Panics
    /// When the command fails.
    pub async fn renew(&self, files: &IdentityFiles, options: &[&str]) {
        let certificate = files.certificate.to_string_lossy();
        self.run(&[&["renew", &*certificate], options].concat()).await;
    }

    async fn run(&self, args: &[&str]) -> Value {
        let start = Start::new(TestSidecar::binary()).arg("pki").args(args.iter().copied());
        let done = start.args(["--json", "--dir"]).arg(self.dir()).output().await.ok();
        serde_json::from_str(&done).unwrap_or_else(|why| panic!("{why} in {done}"))
    }
}
