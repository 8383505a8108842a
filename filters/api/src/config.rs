//! Places in the configuration, and what is wrong there.

use std::fmt;

/// A path of keys in the configuration, `filters.dns.dns_cache.max_ttl` for instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigPath(Vec<String>);

impl ConfigPath {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of a key below this one.
    #[must_use]
    pub fn key(&self, key: impl Into<String>) -> Self {
        let mut keys = self.0.clone();
        keys.push(key.into());
        Self(keys)
    }

    /// The path of an element of the list at this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.key(index.to_string())
    }

    /// An error at this place.
    pub fn error(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { at: self.clone(), problem: problem.into(), hint: None }
    }

    /// The keys, from the root.
    pub fn keys(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// A problem in the configuration. The loader adds file, line, column and the value seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct ConfigError {
    /// The key.
    pub at: ConfigPath,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl ConfigError {
    /// Adds what would be right.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
