//! `listeners.peer.identity` in the configuration.

use std::path::PathBuf;

use qudag_filter_api::{ConfigError, ConfigPath};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load;

/// The files that say who this sidecar is and whom it believes. They are watched: new contents are used for new handshakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentitySettings {
    /// The own certificate and the intermediate ones behind it, in PEM. Its name is the one URI among its subject alternative names.
    pub certificate: PathBuf,
    /// The certificate's private key, in PEM: PKCS #8, SEC 1 or PKCS #1, not encrypted.
    pub key: PathBuf,
    /// The certificates of the authorities that other sidecars' certificates are from, in PEM.
    pub authorities: PathBuf,
}

impl IdentitySettings {
    /// Every problem of the files. Reads them.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let errors = load::problems(self).into_iter();
        errors
            .map(|error| {
                let hint = error.hint();
                at.key(error.part.key()).error(error.to_string()).hint(hint)
            })
            .collect()
    }
}
