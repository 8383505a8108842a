//! The operator's own switches and settings: overrides with or without an end, live settings, and the bypass. They survive a
//! restart, so that what was switched off at night stays off.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use qudag_filter_api::Percent;
use serde::{Deserialize, Serialize};

use super::{Layer, Opinion, Question};
use crate::config::Edit;
use crate::control::Override;
use crate::state_dir::write_atomically;

/// An override as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredOverride {
    enabled: bool,
    /// The percentage, where the operator set one.
    rollout: Option<Percent>,
    /// When it ends, milliseconds since the Unix epoch.
    expires_ms: Option<u64>,
}

impl StoredOverride {
    fn expires(&self) -> Option<SystemTime> {
        end(self.expires_ms)
    }

    fn is_over(&self, now: SystemTime) -> bool {
        is_over(self.expires_ms, now)
    }
}

/// A live setting as it is stored, by its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredSetting {
    /// In YAML.
    value: String,
    /// When it ends, milliseconds since the Unix epoch.
    expires_ms: Option<u64>,
}

fn end(expires_ms: Option<u64>) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(expires_ms?))
}

fn is_over(expires_ms: Option<u64>, now: SystemTime) -> bool {
    end(expires_ms).is_some_and(|end| end <= now)
}

/// The time after a while, as it is stored.
fn after(ttl: Option<Duration>) -> Option<u64> {
    let end = SystemTime::now().checked_add(ttl?)?;
    let since = end.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    bypass: bool,
    overrides: BTreeMap<String, StoredOverride>,
    #[serde(default)]
    settings: BTreeMap<String, StoredSetting>,
}

/// The operator's switches, kept in a file.
#[derive(Debug)]
pub struct Operator {
    file: PathBuf,
    stored: Mutex<Stored>,
}

impl Operator {
    /// Reads the switches in a file; a missing or damaged file means none, and is reported in the log.
    pub fn open(file: PathBuf) -> Self {
        let stored = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|why| {
                tracing::error!(file = %file.display(), %why, "stored switches are damaged and ignored");
                Stored::default()
            }),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(why) => {
                tracing::error!(file = %file.display(), %why, "stored switches cannot be read and are ignored");
                Stored::default()
            }
        };
        Self { file, stored: Mutex::new(stored) }
    }

    fn lock(&self) -> MutexGuard<'_, Stored> {
        // A panic while the lock was held leaves a map that is whole.
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, stored: &Stored) -> io::Result<()> {
        write_atomically(&self.file, &serde_json::to_vec_pretty(stored)?)
    }

    /// Whether everything is bypassed.
    pub fn bypassed(&self) -> bool {
        self.lock().bypass
    }

    /// Switches the bypass. The switch holds even when it cannot be stored.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn bypass(&self, on: bool) -> io::Result<()> {
        let mut stored = self.lock();
        stored.bypass = on;
        self.save(&stored)
    }

    /// Sets the override of one filter, by its full name. It holds even when it cannot be stored.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, full_name: &str, wish: Override) -> io::Result<()> {
        let expires_ms = after(wish.ttl);
        let mut stored = self.lock();
        let value = StoredOverride { enabled: wish.enabled, rollout: wish.rollout, expires_ms };
        stored.overrides.insert(full_name.to_owned(), value);
        self.save(&stored)
    }

    /// Removes the override of one filter, by its full name. Returns whether there was one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn clear(&self, full_name: &str) -> io::Result<bool> {
        let mut stored = self.lock();
        let was = stored.overrides.remove(full_name).is_some();
        if was {
            self.save(&stored)?;
        }
        Ok(was)
    }

    /// The live settings that hold at a time, by key, and when each ends.
    pub fn settings(&self, now: SystemTime) -> Vec<(Edit, Option<SystemTime>)> {
        let stored = self.lock();
        let alive = stored.settings.iter().filter(|(_, setting)| !is_over(setting.expires_ms, now));
        let edit = |(key, setting): (&String, &StoredSetting)| {
            (Edit { key: key.clone(), value: setting.value.clone() }, end(setting.expires_ms))
        };
        alive.map(edit).collect()
    }

    /// The same without their ends.
    pub fn edits(&self, now: SystemTime) -> Vec<Edit> {
        self.settings(now).into_iter().map(|(edit, _)| edit).collect()
    }

    /// Keeps a live setting. It holds even when it cannot be stored.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_setting(&self, edit: Edit, ttl: Option<Duration>) -> io::Result<()> {
        let mut stored = self.lock();
        stored.settings.insert(edit.key, StoredSetting { value: edit.value, expires_ms: after(ttl) });
        self.save(&stored)
    }

    /// Forgets the live setting of a key, or all of them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn clear_settings(&self, key: Option<&str>) -> io::Result<()> {
        let mut stored = self.lock();
        stored.settings.retain(|known, _| key.is_some_and(|key| key != known));
        self.save(&stored)
    }

    /// When the next override or setting ends.
    pub fn next_end(&self) -> Option<SystemTime> {
        let stored = self.lock();
        let settings = stored.settings.values().filter_map(|setting| end(setting.expires_ms));
        stored.overrides.values().filter_map(StoredOverride::expires).chain(settings).min()
    }

    /// Removes overrides and settings that have ended. Returns whether there were any.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn expire(&self, now: SystemTime) -> io::Result<bool> {
        let mut stored = self.lock();
        let count = |stored: &Stored| stored.overrides.len() + stored.settings.len();
        let before = count(&stored);
        stored.overrides.retain(|_, value| !value.is_over(now));
        stored.settings.retain(|_, setting| !is_over(setting.expires_ms, now));
        let gone = count(&stored) != before;
        if gone {
            self.save(&stored)?;
        }
        Ok(gone)
    }
}

impl Layer for Arc<Operator> {
    fn name(&self) -> &'static str {
        "override"
    }

    fn opinion(&self, question: &Question<'_>) -> Option<Opinion> {
        let name = format!("{}.{}", question.kind, question.filter);
        let value = self.lock().overrides.get(&name).cloned()?;
        if value.is_over(SystemTime::now()) {
            return None;
        }
        Some(Opinion {
            enabled: value.enabled,
            rollout: value.rollout,
            reason: "set by the operator".to_owned(),
            expires: value.expires(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_survive_a_restart_and_end_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("operator.json");
        let operator = Operator::open(file.clone());
        let wish = |ttl| Override { enabled: false, rollout: None, ttl };
        operator.set("dns.hosts", wish(None)).unwrap();
        operator.set("dns.dns_cache", wish(Some(Duration::from_secs(5)))).unwrap();
        operator.bypass(true).unwrap();

        let again = Operator::open(file.clone());
        assert!(again.bypassed());
        assert!(again.next_end().is_some());
        assert!(!again.expire(SystemTime::now()).unwrap());
        assert!(again.expire(SystemTime::now() + Duration::from_secs(6)).unwrap());
        assert_eq!(again.next_end(), None);
        assert!(again.clear("dns.hosts").unwrap());
        assert!(!again.clear("dns.hosts").unwrap());

        let edit = |value: &str| Edit::new("filters.db.db_pool.size", value).unwrap();
        operator.set_setting(edit("7"), None).unwrap();
        operator.set_setting(edit("5"), Some(Duration::from_secs(5))).unwrap();
        operator.set_setting(Edit::new("node.name", "a").unwrap(), None).unwrap();
        let now = SystemTime::now();
        let again = Operator::open(file.clone());
        assert_eq!(again.edits(now), [edit("5"), Edit::new("node.name", "a").unwrap()]);
        let later = now + Duration::from_secs(6);
        assert_eq!(again.edits(later).len(), 1);
        assert!(again.next_end().is_some_and(|end| end < later));
        assert!(again.expire(later).unwrap() && !again.expire(later).unwrap());
        again.clear_settings(None).unwrap();
        assert!(Operator::open(file.clone()).settings(now).is_empty());

        // As an earlier version wrote it.
        std::fs::write(&file, br#"{"bypass": true, "overrides": {}}"#).unwrap();
        assert!(Operator::open(file.clone()).bypassed());
        std::fs::write(&file, b"{").unwrap();
        assert!(!Operator::open(file).bypassed());
    }
}
