//! The keys of clients and the tokens, from the configuration and from files.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use metrics::counter;
use qudag_filter_api::{ConfigError, ConfigPath, Secret};
use qudag_filter_common::mldsa::{VerifyingKey, public_key};
use qudag_filter_common::{Source, read_file};
use qudag_mldsa::PublicKey;
use subtle::{Choice, ConstantTimeEq};

use super::{Key, MAX_CLIENTS, MAX_NAME, RpcAuth};

/// The largest file with a key.
const MAX_FILE: u64 = 1 << 20;

/// Who is known.
#[derive(Debug)]
pub(super) struct Keys {
    clients: HashMap<Arc<str>, VerifyingKey>,
    tokens: Vec<blake3::Hash>,
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        // The comparison of hashes is one in constant time.
        self.clients == other.clients && self.tokens == other.tokens
    }
}

impl Key {
    /// Reads the key.
    ///
    /// # Errors
    /// When the file cannot be read, or there is no key.
    fn read(&self) -> io::Result<PublicKey> {
        let (bytes, file) = match self {
            Self::File(path) => {
                let named = |why| io::Error::other(format!("{}: {why}", path.display()));
                (read_file(path, MAX_FILE).map_err(named)?, Some(path))
            }
            Self::Inline(text) => (text.clone().into_bytes(), None),
        };
        public_key(&bytes).map_err(|why| match file {
            Some(path) => io::Error::other(format!("{}: {why}", path.display())),
            None => io::Error::other(why),
        })
    }
}

impl Keys {
    /// Reads all of them.
    ///
    /// # Errors
    /// When one cannot be read; there are no half sets of keys.
    pub(super) fn read(settings: &RpcAuth) -> io::Result<Self> {
        let clients = settings.clients.iter().map(|(id, key)| {
            let key = key.read().map_err(|why| io::Error::other(format!("the key of {id:?}: {why}")))?;
            Ok((Arc::from(id.as_str()), VerifyingKey::new(key)))
        });
        let tokens = settings
            .tokens
            .iter()
            .map(|token| token.read().map(|token| blake3::hash(token.as_bytes())).map_err(io::Error::other));
        Ok(Self { clients: clients.collect::<io::Result<_>>()?, tokens: tokens.collect::<io::Result<_>>()? })
    }

    /// Whether a token is known. Hashes are compared, each in full and all of them, so that the time taken tells nothing of a token.
    pub(super) fn has_token(&self, token: &str) -> bool {
        let offered = blake3::hash(token.as_bytes());
        let same = |known: &blake3::Hash| known.as_bytes().ct_eq(offered.as_bytes());
        self.tokens.iter().map(same).fold(Choice::from(0), |any, same| any | same).into()
    }

    /// A client with its key.
    pub(super) fn client(&self, id: &str) -> Option<(&Arc<str>, &VerifyingKey)> {
        self.clients.get_key_value(id)
    }
}

/// Keys of which at least one stands in a file.
pub(super) struct KeyFiles(pub(super) RpcAuth);

impl RpcAuth {
    /// The files with keys and tokens.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let clients = self.clients.values().filter_map(|key| match key {
            Key::File(path) => Some(path),
            Key::Inline(_) => None,
        });
        let tokens = self.tokens.iter().filter_map(|token| match token {
            Secret::File(path) => Some(path),
            Secret::Env(_) => None,
        });
        clients.chain(tokens).cloned().collect()
    }
}

impl Source for KeyFiles {
    type Contents = Keys;

    fn files(&self) -> Vec<PathBuf> {
        self.0.files()
    }

    fn read(&self) -> io::Result<Keys> {
        Keys::read(&self.0)
    }

    fn loaded(&self, keys: &Keys) {
        count_reload("ok");
        let (clients, tokens) = (keys.clients.len(), keys.tokens.len());
        tracing::info!(clients, tokens, "the keys of RPC clients were read");
    }

    fn failed(&self, why: &io::Error) {
        count_reload("error");
        tracing::warn!("the new keys of RPC clients cannot be used, the old ones go on: {why}");
    }
}

fn count_reload(outcome: &'static str) {
    counter!("qudag_sidecar_rpc_auth_reloads_total", "outcome" => outcome).increment(1);
}

/// Every problem of the clients and tokens.
pub(super) fn check(settings: &RpcAuth, at: &ConfigPath) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for (key, number) in [("clients", settings.clients.len()), ("tokens", settings.tokens.len())] {
        if number > MAX_CLIENTS {
            errors.push(at.key(key).error(format!("more than {MAX_CLIENTS}")));
        }
    }
    let clients = at.key("clients");
    for (id, key) in &settings.clients {
        let at = clients.key(id);
        if id.is_empty() || id.len() > MAX_NAME {
            let hint = format!("1 to {MAX_NAME} bytes, what the client sends as `params.client_id`");
            errors.push(at.error("no name of a client").hint(hint));
        }
        if let Err(why) = key.read() {
            let hint = "a public key of ML-DSA-65: 1952 bytes, or base64 or hexadecimal digits of them";
            errors.push(at.error(why.to_string()).hint(hint));
        }
    }
    for (number, token) in settings.tokens.iter().enumerate() {
        if let Err(why) = token.read() {
            errors.push(at.key("tokens").index(number).error(why));
        }
    }
    errors
}
