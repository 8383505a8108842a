//! Zones whose records stand in the configuration or in zone files.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use metrics::{counter, gauge};
use qudag_filter_api::{ConfigError, ConfigPath, Period};
use qudag_filter_common::LiveGauge;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Held;
use crate::hosts::seconds;
use crate::watched::{Contents, Watched, read};
use crate::wire::Name;
use crate::zone::{MAX_TTL, Zone};

/// A zone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalZone {
    /// Its name: `lab.example`, or `dark`.
    pub zone: String,
    /// Records as a zone file has them, `peer-a 60 IN A 10.0.0.1`: names without a dot at their end are below the zone's.
    #[serde(default)]
    pub records: Vec<String>,
    /// A zone file (RFC 1035). It is read again when it changes.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The time to live of records that do not say one, at most 300s; longer ones in `file` are shortened to that.
    #[serde(default = "one_minute")]
    pub ttl: Period,
}

fn one_minute() -> Period {
    Period::secs(60)
}

/// What is known before a zone's file is read.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) origin: Name,
    records: Arc<[String]>,
    ttl: u32,
}

impl LocalZone {
    pub(super) fn terms(&self) -> Result<Terms, String> {
        let origin = Name::from_text(&self.zone).map_err(|why| why.to_string())?;
        Ok(Terms { origin, records: self.records.clone().into(), ttl: seconds(self.ttl.0) })
    }

    /// Every problem of a zone; `seen` has the names of others.
    pub(super) fn check(&self, at: &ConfigPath, seen: &mut HashSet<Name>) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.ttl.0.as_secs() > MAX_TTL.into() || self.ttl.0.subsec_nanos() != 0 {
            errors.push(at.key("ttl").error("not a number of whole seconds up to 300s").hint("0s to 300s"));
        }
        let terms = match self.terms() {
            Ok(terms) => terms,
            Err(why) => {
                errors.push(at.key("zone").error(why).hint("a domain name, such as lab.example or dark"));
                return errors;
            }
        };
        if terms.origin.wire().len() == 1 {
            let why = "the root would take every name";
            errors.push(at.key("zone").error(why).hint("a domain name, such as lab.example or dark"));
        } else if !seen.insert(terms.origin.clone()) {
            errors.push(at.key("zone").error("this zone is there already").hint("put all records into one"));
        }
        if self.records.is_empty() && self.file.is_none() {
            errors.push(at.key("zone").error("a zone without records").hint("add `records:` or `file:`"));
        }
        // One after the other, so that each mistake is found, and those between two records too.
        let mut whole = Zone::new(terms.origin.clone(), 1, terms.ttl);
        for (number, record) in self.records.iter().enumerate() {
            if let Err(why) = whole.add_text(record, terms.ttl) {
                let hint = "NAME [TTL] [IN] TYPE DATA, such as `peer-a 60 IN A 10.0.0.1`";
                errors.push(at.key("records").index(number).error(why.why).hint(hint));
            }
        }
        if let Some(file) = &self.file
            && let Err(why) = read::<Loaded>(file, &Terms { records: [].into(), ..terms })
        {
            let hint = "a zone file (RFC 1035) that the sidecar may read";
            errors.push(at.key("file").error(format!("{}: {why}", file.display())).hint(hint));
        }
        errors
    }

    /// The zone's name, and the zone as it is used.
    pub(super) fn open(&self) -> Result<(Name, Held), String> {
        let terms = self.terms()?;
        let name = terms.origin.clone();
        let held = match &self.file {
            Some(file) => {
                let watched = Watched::open(file, terms);
                Held::File(watched.map_err(|why| format!("{}: {why}", file.display()))?)
            }
            None => {
                let loaded = Loaded::parse("", &terms).map_err(|why| why.to_string())?;
                loaded.publish();
                Held::Fixed(Box::new(loaded))
            }
        };
        Ok((name, held))
    }
}

/// A zone in use.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) zone: Zone,
    /// How many records it has, while it is in use.
    shown: OnceLock<LiveGauge>,
}

impl PartialEq for Loaded {
    fn eq(&self, other: &Self) -> bool {
        self.zone == other.zone
    }
}

impl Contents for Loaded {
    type Terms = Terms;

    fn parse(text: &str, terms: &Terms) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut zone = Zone::new(terms.origin.clone(), 1, terms.ttl);
        zone.add_text(text, terms.ttl).map_err(|why| invalid(why.to_string()))?;
        for record in terms.records.iter() {
            zone.add_text(record, terms.ttl).map_err(|why| invalid(format!("{record:?}: {}", why.why)))?;
        }
        Ok(Self::new(zone))
    }

    fn loaded(&self, path: &Path) {
        let zone = self.zone.origin().to_string();
        count_reload(&zone, "ok");
        self.publish();
        tracing::info!(%zone, file = %path.display(), records = self.zone.records(), "zone file read");
    }

    fn failed(path: &Path, terms: &Terms, why: &io::Error) {
        count_reload(&terms.origin.to_string(), "error");
        tracing::warn!(file = %path.display(), error = %why, "cannot use the zone file; its last contents stay in use");
    }
}

impl Loaded {
    pub(super) fn new(zone: Zone) -> Self {
        Self { zone, shown: OnceLock::new() }
    }

    pub(super) fn publish(&self) {
        self.shown.get_or_init(|| {
            let zone = self.zone.origin().to_string();
            let gauge = gauge!("qudag_sidecar_dns_local_zone_records", "zone" => zone);
            LiveGauge::new(gauge, self.zone.records() as f64)
        });
    }
}

pub(super) fn count_reload(zone: &str, outcome: &'static str) {
    let zone = zone.to_owned();
    counter!("qudag_sidecar_dns_local_zone_reloads_total", "zone" => zone, "outcome" => outcome).increment(1);
}
