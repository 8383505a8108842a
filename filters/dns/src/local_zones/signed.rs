//! Records of names under `.dark` as QuDAG nodes make and sign them (`qudag_network::DarkDomainRecord` of version 0.5, as JSON).
//!
//! A node signs by the draft of ML-DSA-65 the BLAKE3 hash of the record's fields, one after the other without their lengths. The name is not among them, nor are the
//! metadata: whoever has a record can give it another name. And the key stands in the record, so a signature alone says that the record is whole, not whose
//! it is; that takes the hash of the signer's key.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use qudag_filter_api::{ConfigError, ConfigPath};
use qudag_filter_common::mldsa::{Algorithm, KeyError, VerifyingKey, public_key};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::configured::{Loaded, count_reload};
use super::{LocalZone, MAX_ZONES};
use crate::watched::{Contents, Watched, read};
use crate::wire::{Name, NameError};
use crate::zone::{MAX_TTL, Zone};

/// The most addresses of a name.
const MAX_ADDRESSES: usize = 64;

/// Names under `.dark` whose records are signed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dark {
    /// The names, and where the record of each is.
    pub records: BTreeMap<String, SignedRecord>,
    /// Whether names under `.dark` are answered from signed records alone: zones there are a mistake then.
    pub require_signature: bool,
}

impl Dark {
    /// Every problem of the records; `seen` has the names of the zones.
    pub(super) fn check(&self, at: &ConfigPath, seen: &mut HashSet<Name>) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let records = at.key("records");
        if self.records.len() > MAX_ZONES {
            errors.push(records.error(format!("more than {MAX_ZONES} names")));
        }
        for (name, record) in &self.records {
            let at = records.key(name);
            errors.extend(record.check(name, &at));
            if record.terms(name).is_ok_and(|terms| !seen.insert(terms.name)) {
                errors.push(at.error("a zone of this name is there already"));
            }
        }
        errors
    }

    /// Whether a zone would answer names that are for signed records alone.
    pub(super) fn check_zone(&self, zone: &LocalZone, at: &ConfigPath) -> Option<ConfigError> {
        let is_dark = zone.terms().is_ok_and(|terms| super::dark::is_dark(&terms.origin));
        let why = "its records are not signed, and `dark.require_signature` is set";
        (self.require_signature && is_dark)
            .then(|| at.key("zone").error(why).hint("name signed records in `dark.records`"))
    }
}

/// A signed record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedRecord {
    /// The record as JSON, as a node's `DarkDomainRecord` is written. It is read again when it changes.
    pub file: PathBuf,
    /// The BLAKE3 hash of the public key that has to have signed it, 64 hexadecimal digits; null for any.
    #[serde(default)]
    pub signer: Option<String>,
}

/// What is known before the file is read.
#[derive(Clone)]
pub(super) struct Terms {
    name: Name,
    signer: Option<blake3::Hash>,
}

impl SignedRecord {
    /// # Errors
    /// With the key that is wrong, and why.
    fn terms(&self, name: &str) -> Result<Terms, (Option<&'static str>, String)> {
        let name = Name::from_text(name).map_err(|why: NameError| (None, why.to_string()))?;
        if !super::dark::is_dark(&name) || name.labels().count() < 2 {
            return Err((None, "not a name under .dark".to_owned()));
        }
        let signer = self.signer.as_ref().map(blake3::Hash::from_hex).transpose();
        let signer = signer.map_err(|why| (Some("signer"), why.to_string()))?;
        Ok(Terms { name, signer })
    }

    /// Every problem of a record.
    fn check(&self, name: &str, at: &ConfigPath) -> Vec<ConfigError> {
        let terms = match self.terms(name) {
            Ok(terms) => terms,
            Err((None, why)) => {
                return vec![at.error(why).hint("a name such as node-b.dark")];
            }
            Err((Some(key), why)) => {
                let hint = "64 hexadecimal digits, the BLAKE3 hash of the public key";
                return vec![at.key(key).error(why).hint(hint)];
            }
        };
        let read = read::<Signed>(&self.file, &terms);
        let wrong = read.err().map(|why| {
            let error = at.key("file").error(format!("{}: {why}", self.file.display()));
            error.hint("a record that a QuDAG node has signed, as JSON")
        });
        wrong.into_iter().collect()
    }

    /// The name, and the record as it is used.
    pub(super) fn open(&self, name: &str) -> Result<(Name, Watched<Signed>), String> {
        let terms = self.terms(name).map_err(|(_, why)| why)?;
        let name = terms.name.clone();
        let watched = Watched::open(&self.file, terms);
        Ok((name, watched.map_err(|why| format!("{}: {why}", self.file.display()))?))
    }
}

/// The record as nodes write it.
#[derive(Deserialize)]
struct Record {
    signing_public_key: Vec<u8>,
    encryption_public_key: Vec<u8>,
    addresses: Vec<Address>,
    alias: Option<String>,
    /// Seconds.
    ttl: u32,
    /// Seconds since 1970.
    registered_at: u64,
    expires_at: u64,
    owner_id: [u8; 32],
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Address {
    ip: IpAddr,
    port: u16,
}

/// Why a record is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("not a record as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("there is no signature")]
    Unsigned,
    #[error("the signer's key: {0}")]
    Key(#[from] KeyError),
    #[error("another key has signed it: the BLAKE3 hash of that one is {0}")]
    Signer(blake3::Hash),
    #[error("the signature is none of this record: {0}")]
    Signature(#[from] qudag_mldsa::Rejected),
    #[error("{0} addresses, where 1 to {MAX_ADDRESSES} are taken")]
    Addresses(usize),
    #[error("it cannot be put into a zone: {0}")]
    Zone(String),
}

impl Record {
    /// What a node signs.
    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.signing_public_key).update(&self.encryption_public_key);
        for Address { ip, port } in &self.addresses {
            // As bincode 1.3 writes it: the family as a number, the octets, the port.
            match ip {
                IpAddr::V4(ip) => hasher.update(&0_u32.to_le_bytes()).update(&ip.octets()),
                IpAddr::V6(ip) => hasher.update(&1_u32.to_le_bytes()).update(&ip.octets()),
            };
            hasher.update(&port.to_le_bytes());
        }
        hasher.update(self.alias.as_deref().unwrap_or_default().as_bytes());
        hasher.update(&self.ttl.to_le_bytes());
        hasher.update(&self.registered_at.to_le_bytes()).update(&self.expires_at.to_le_bytes());
        hasher.update(&self.owner_id);
        hasher.finalize()
    }

    fn verify(&self, signer: Option<blake3::Hash>) -> Result<(), Unusable> {
        if self.signature.is_empty() {
            return Err(Unusable::Unsigned);
        }
        let key = public_key(&self.signing_public_key)?;
        let hash = blake3::hash(&key.0);
        if signer.is_some_and(|signer| signer != hash) {
            return Err(Unusable::Signer(hash));
        }
        let message = self.hash();
        Ok(VerifyingKey::new(key).verify(Algorithm::Draft, message.as_bytes(), &self.signature)?)
    }
}

/// A record whose signature is right, as a zone of its own.
#[derive(Debug, PartialEq)]
pub(super) struct Signed {
    pub(super) loaded: Loaded,
    expires: SystemTime,
}

impl Signed {
    /// Whether it says nothing any more.
    pub(super) fn is_expired(&self) -> bool {
        self.expires < SystemTime::now()
    }

    fn new(text: &str, terms: &Terms) -> Result<Self, Unusable> {
        let record: Record = serde_json::from_str(text)?;
        record.verify(terms.signer)?;
        if !(1..=MAX_ADDRESSES).contains(&record.addresses.len()) {
            return Err(Unusable::Addresses(record.addresses.len()));
        }
        let ttl = record.ttl.min(MAX_TTL);
        let mut zone = Zone::new(terms.name.clone(), 1, ttl);
        for ip in record.addresses.iter().map(|address| address.ip).collect::<BTreeSet<_>>() {
            let family = if ip.is_ipv4() { "A" } else { "AAAA" };
            let added = zone.add_text(&format!("@ {family} {ip}"), ttl);
            added.map_err(|why| Unusable::Zone(why.to_string()))?;
        }
        // What no clock can reach is as good as never.
        let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(record.expires_at));
        let never = SystemTime::UNIX_EPOCH + Duration::from_secs(u32::MAX.into()) * 1000;
        Ok(Self { loaded: Loaded::new(zone), expires: expires.unwrap_or(never) })
    }
}

impl Contents for Signed {
    type Terms = Terms;

    fn parse(text: &str, terms: &Terms) -> io::Result<Self> {
        Self::new(text, terms).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why.to_string()))
    }

    fn loaded(&self, path: &Path) {
        let name = self.loaded.zone.origin().to_string();
        count_reload(&name, "ok");
        self.loaded.publish();
        if self.is_expired() {
            tracing::warn!(%name, file = %path.display(), "the signed record has expired and is not answered");
        } else {
            tracing::info!(%name, file = %path.display(), "signed record read");
        }
    }

    fn failed(path: &Path, terms: &Terms, why: &io::Error) {
        count_reload(&terms.name.to_string(), "error");
        tracing::warn!(file = %path.display(), error = %why, "cannot use the signed record; its last contents stay in use");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use qudag_filter_api::FilterSpec;
    use serde_json::{Value, json};

    use super::*;
    use crate::local_zones::tests::{problems, settings};
    use crate::testing::{env, query_wire, until};
    use crate::wire::{parse_query, parse_reply, rcode, rtype};
    use crate::zone::Answer;

    const NODE_B: &str = include_str!("../../tests/data/dark/node-b.json");
    const PLAIN: &str = include_str!("../../tests/data/dark/plain.json");
    const EXPIRED: &str = include_str!("../../tests/data/dark/expired.json");

    fn terms(signer: Option<String>) -> Terms {
        SignedRecord { file: PathBuf::new(), signer }
            .terms("node-b.dark")
            .unwrap_or_else(|why| panic!("{why:?}"))
    }

    fn why(record: &Value) -> String {
        Signed::new(&record.to_string(), &terms(None)).unwrap_err().to_string()
    }

    #[test]
    fn what_a_node_has_signed_is_taken() {
        for (text, records, expired) in [(NODE_B, 2, false), (PLAIN, 1, false), (EXPIRED, 1, true)] {
            let signed = Signed::new(text, &terms(None)).unwrap();
            assert_eq!((signed.loaded.zone.records(), signed.is_expired()), (records, expired));
        }
    }

    #[test]
    fn every_signed_field_counts() {
        let record: Value = serde_json::from_str(NODE_B).unwrap();
        for (field, value) in [
            ("encryption_public_key", json!([])),
            ("alias", json!("node c")),
            ("alias", Value::Null),
            ("ttl", json!(60)),
            ("registered_at", json!(1)),
            ("expires_at", json!(u64::MAX)),
            ("owner_id", json!(vec![0; 32])),
            ("addresses", json!([{"ip": "192.0.2.20", "port": 4001}])),
            ("addresses", json!([{"ip": "192.0.2.20", "port": 4001}, {"ip": "2001:db8::20", "port": 4002}])),
            ("addresses", json!([{"ip": "192.0.2.21", "port": 4001}, {"ip": "2001:db8::20", "port": 4001}])),
        ] {
            let mut other = record.clone();
            other[field] = value;
            assert_eq!(
                why(&other),
                "the signature is none of this record: the signature does not match",
                "{field}"
            );
        }
        let mut metadata = record.clone();
        metadata["metadata"] = json!({"note": "anything"});
        assert!(Signed::new(&metadata.to_string(), &terms(None)).is_ok(), "nobody signs metadata");
        let mut altered = record;
        // A coefficient of z out of range: a node on AVX2 would go on.
        for place in 48..51 {
            altered["signature"][place] = 255.into();
        }
        assert_eq!(why(&altered), "the signature is none of this record: z is out of range");
    }

    #[test]
    fn what_is_no_signed_record_is_explained() {
        let record: Value = serde_json::from_str(PLAIN).unwrap();
        let with = |field: &str, value: Value| {
            let mut other = record.clone();
            other[field] = value;
            why(&other)
        };
        assert!(why(&json!({})).starts_with("not a record as JSON: missing field"));
        assert!(with("addresses", json!(["192.0.2.1:1"])).starts_with("not a record as JSON"));
        assert!(with("owner_id", json!([1, 2])).starts_with("not a record as JSON"));
        assert_eq!(with("signature", json!([])), "there is no signature");
        assert_eq!(
            with("signature", json!([1])),
            "the signature is none of this record: a signature has 3309 bytes"
        );
        let length = "the signer's key: 3 bytes, where a public key of ML-DSA-65 has 1952";
        assert_eq!(with("signing_public_key", json!([255, 255, 255])), length);
    }

    #[test]
    fn only_the_expected_signer_is_believed() {
        let record: Record = serde_json::from_str(PLAIN).unwrap();
        let signer = blake3::hash(&record.signing_public_key).to_hex().to_string();
        assert!(Signed::new(PLAIN, &terms(Some(signer.clone()))).is_ok());
        let other = blake3::hash(b"another key").to_hex().to_string();
        let why = Signed::new(PLAIN, &terms(Some(other))).unwrap_err().to_string();
        assert!(why.starts_with("another key has signed it") && why.ends_with(&signer), "{why}");
    }

    fn record(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dark").join(name)
    }

    #[tokio::test]
    async fn signed_records_are_answered_until_they_expire_and_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.json");
        fs::copy(record("node-b.json"), &file).unwrap();
        let settings = settings(json!({
            "zones": [{"zone": "dark", "records": ["node-b A 192.0.2.66", "old A 192.0.2.67", "other A 192.0.2.68"]}],
            "dark": {"records": {
                "node-b.dark": {"file": file},
                "OLD.dark.": {"file": record("expired.json")},
            }},
        }));
        assert_eq!(settings.check(&ConfigPath::root()), []);
        let state = settings.state(&env(), None).unwrap();
        let answer = |name: &str, qtype| {
            let query = parse_query(&query_wire(name, qtype, None)).unwrap();
            let Some(Answer::Whole(wire)) = state.answer(&query) else { panic!("{name}") };
            let reply = parse_reply(&wire).unwrap();
            let answers = reply.records.iter().filter(|record| record.rtype == qtype);
            (reply.rcode(), answers.map(|record| (wire[record.data.end - 1], record.ttl)).collect::<Vec<_>>())
        };
        assert_eq!(answer("node-b.dark", rtype::A), (0, vec![(20, 300)]), "the signed record counts");
        assert_eq!(answer("Node-B.dark", rtype::AAAA), (0, vec![(0x20, 300)]));
        assert_eq!(answer("old.dark", rtype::A), (0, vec![(67, 60)]), "an expired one does not");
        assert_eq!(answer("x.node-b.dark", rtype::A).0, rcode::NXDOMAIN);
        let forged = fs::read_to_string(&file).unwrap().replace("192.0.2.20", "192.0.2.99");
        fs::write(&file, forged).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(answer("node-b.dark", rtype::A), (0, vec![(20, 300)]), "a forged one changes nothing");
        fs::copy(record("plain.json"), &file).unwrap();
        until("the other record is in use", || answer("node-b.dark", rtype::AAAA).1.is_empty()).await;
    }

    #[test]
    fn records_that_are_not_signed_are_refused_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let forged = dir.path().join("forged.json");
        let text = fs::read_to_string(record("plain.json")).unwrap();
        fs::write(&forged, text.replace("192.0.2.20", "192.0.2.99")).unwrap();
        let found = problems(json!({
            "zones": [
                {"zone": "dark", "records": ["a A 192.0.2.1"]},
                {"zone": "lab.example", "records": ["a A 192.0.2.1"]},
            ],
            "dark": {"require_signature": true, "records": {
                "a.dark": {"file": forged},
                "b.dark": {"file": "/nowhere"},
                "c.dark": {"file": record("plain.json"), "signer": "00"},
                "d.dark": {"file": record("plain.json"), "signer": "0".repeat(64)},
                "dark": {"file": record("plain.json")},
                "e.example": {"file": record("plain.json")},
                "f.dark": {"file": record("plain.json")},
                "F.dark": {"file": record("plain.json")},
            }},
        }));
        let places: Vec<_> = found.iter().map(|error| error.split(':').next().unwrap()).collect();
        assert_eq!(
            places,
            [
                "zones.0.zone",
                "dark.records.a.dark.file",
                "dark.records.b.dark.file",
                "dark.records.c.dark.signer",
                "dark.records.d.dark.file",
                "dark.records.dark",
                "dark.records.e.example",
                "dark.records.f.dark",
            ]
        );
        assert!(found[1].ends_with("the signature is none of this record: the signature does not match"));
    }
}
