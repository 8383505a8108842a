//! Live settings: the operator lays values over the configuration, with or without an end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::operate::millis;
use super::{Applied, Control, ControlError};
use crate::config::{self, Edit, Loaded};
use crate::generation::{Adopted, Refused};

/// How many live settings there may be.
const MOST: usize = 256;

/// A live setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingStatus {
    /// The key.
    pub key: String,
    /// The value, in YAML.
    pub value: String,
    /// Seconds until it ends; left out when it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// Whether the configuration in force has it: one that came from an earlier run may not fit any more.
    pub in_force: bool,
}

impl Control {
    /// The live settings.
    pub fn settings(&self) -> Vec<SettingStatus> {
        let now = SystemTime::now();
        let generation = self.generation();
        let in_force = generation.source.as_ref().map(|adopted| adopted.loaded.edits.as_slice());
        let all = self.0.operator.settings(now).into_iter().map(|(edit, end)| SettingStatus {
            in_force: in_force.is_some_and(|edits| edits.contains(&edit)),
            key: edit.key,
            value: edit.value,
            expires_in_seconds: end.map(|end| end.duration_since(now).unwrap_or_default().as_secs()),
        });
        all.collect()
    }

    /// Lays a value over the configuration, for good or for `ttl`. It is checked as the file is, and in force when this returns.
    ///
    /// # Errors
    /// When the key or the value is wrong, or only a restart can change it. Nothing has changed then.
    pub async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Applied, ControlError> {
        self.not_draining()?;
        let start = Instant::now();
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(ControlError::Invalid(
                "a time of nothing has no effect; leave it out or say 10m".to_owned(),
            ));
        }
        let edit = Edit::new(key, value).map_err(ControlError::Invalid)?;
        let _reloading = self.0.reloading.lock().await;
        let mut edits = self.0.operator.edits(SystemTime::now());
        edits.retain(|known| known.key != edit.key);
        if edits.len() >= MOST {
            return Err(ControlError::Invalid(format!("there are {MOST} live settings already; unset one")));
        }
        edits.push(edit.clone());
        // As they are stored.
        edits.sort_by(|a, b| a.key.cmp(&b.key));
        let generation = self.take_edits(&edits).await?;
        let mut notes = Vec::new();
        if let Err(why) = self.0.operator.set_setting(edit, ttl) {
            notes.push(format!("the setting holds but would not survive a restart: {why}"));
        }
        tracing::info!(generation, key, "a setting was changed by the operator");
        Ok(self.edited(generation, start, notes))
    }

    /// Takes a live setting back, or all of them.
    ///
    /// # Errors
    /// When there is no such setting, or what is left is not right. Nothing has changed then.
    pub async fn unset(&self, key: Option<&str>) -> Result<Applied, ControlError> {
        self.not_draining()?;
        let start = Instant::now();
        let _reloading = self.0.reloading.lock().await;
        let before = self.0.operator.edits(SystemTime::now());
        let left: Vec<_> =
            before.iter().filter(|edit| key.is_some_and(|key| edit.key != key)).cloned().collect();
        if left.len() == before.len() {
            let Some(key) = key else {
                let generation = self.generation().number;
                return Ok(Applied { changed: false, ..self.edited(generation, start, Vec::new()) });
            };
            let known: Vec<_> = before.iter().map(|edit| edit.key.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ControlError::NotFound(format!("no live setting {key:?}; there are: {known}")));
        }
        let generation = self.take_edits(&left).await?;
        let mut notes = Vec::new();
        if let Err(why) = self.0.operator.clear_settings(key) {
            notes.push(format!("the setting would come back after a restart: {why}"));
        }
        tracing::info!(generation, key, "the operator's settings were taken back");
        Ok(self.edited(generation, start, notes))
    }

    fn edited(&self, generation: u64, start: Instant, notes: Vec<String>) -> Applied {
        let settings = self.settings();
        Applied { generation, changed: true, took_ms: millis(start), filters: Vec::new(), settings, notes }
    }

    /// Takes the configuration in force with other edits into force.
    async fn take_edits(&self, edits: &[Edit]) -> Result<u64, ControlError> {
        let adopted = self.adopted()?;
        let refused = |problems| ControlError::Refused { generation: self.generation().number, problems };
        let loaded = edited(&adopted.loaded, edits).map_err(refused)?;
        self.adopt(loaded, adopted.origin).await.map_err(|Refused(problems)| refused(problems))
    }

    fn adopted(&self) -> Result<Adopted, ControlError> {
        let adopted = self.generation().source.clone();
        adopted.ok_or_else(|| ControlError::Unavailable("no configuration is in force yet".to_owned()))
    }

    /// Whether other live settings are in force than there are: one has ended, or one of an earlier run was not taken over.
    pub(super) fn edits_differ(&self) -> bool {
        let edits = self.0.operator.edits(SystemTime::now());
        self.adopted().is_ok_and(|adopted| adopted.loaded.edits != edits)
    }

    /// Takes the live settings into force that there are. Returns what is wrong with them.
    ///
    /// # Errors
    /// When they do not fit the configuration in force, which goes on.
    pub(super) async fn renew_edits(&self) -> Result<(), ControlError> {
        let _reloading = self.0.reloading.lock().await;
        if !self.edits_differ() {
            return Ok(());
        }
        let generation = self.take_edits(&self.0.operator.edits(SystemTime::now())).await?;
        tracing::info!(generation, "the operator's settings have changed by time");
        Ok(())
    }
}

/// A configuration with other edits: the same text, and the environment of now.
fn edited(loaded: &Arc<Loaded>, edits: &[Edit]) -> Result<Loaded, Vec<String>> {
    let text = loaded.text.clone();
    config::load_text_with(&loaded.source, text, std::env::vars_os(), edits).map_err(|why| why.lines())
}
