//! Zones that the sidecar answers for itself, from the configuration and from zone files.

pub(crate) mod dark;
mod signed;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hickory_proto::op::Message;
use metrics::{counter, gauge};
use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Look, Period, Quick, Svc, service_fn,
};
use qudag_filter_common::LiveGauge;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::hosts::seconds;
use crate::watched::{Contents, Watched, read};
use crate::wire::{CLASS_IN, HEADER, Name, Parsed, flag2, flag3};
use crate::zone::{Answer, Chase, MAX_TTL, Zone, parent};
use crate::{Dns, DnsGlance, DnsQuery, DnsReply, Source};
use signed::Signed;
pub use signed::SignedRecord;

/// How often an alias may lead from one local zone to another.
const MAX_CHASES: usize = 8;
/// The most zones.
const MAX_ZONES: usize = 1000;

/// Zones that the sidecar answers for itself, with authority: no name in them is asked for elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LocalZones {
    /// The zones, each with `zone`, and with `records`, `file` or both.
    pub zones: Vec<LocalZone>,
    /// Names under `.dark` whose records are signed.
    pub dark: Dark,
}

/// Names under `.dark` whose records are signed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dark {
    /// The names, and where the record of each is.
    pub records: BTreeMap<String, SignedRecord>,
    /// Whether names under `.dark` are answered from signed records alone: zones there are a mistake then.
    pub require_signature: bool,
}

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
struct Terms {
    origin: Name,
    records: Arc<[String]>,
    ttl: u32,
}

impl LocalZone {
    fn terms(&self) -> Result<Terms, String> {
        let origin = Name::from_text(&self.zone).map_err(|why| why.to_string())?;
        Ok(Terms { origin, records: self.records.clone().into(), ttl: seconds(self.ttl.0) })
    }
}

/// A zone in use.
#[derive(Debug)]
struct Loaded {
    zone: Zone,
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
    fn new(zone: Zone) -> Self {
        Self { zone, shown: OnceLock::new() }
    }

    fn publish(&self) {
        self.shown.get_or_init(|| {
            let zone = self.zone.origin().to_string();
            let gauge = gauge!("qudag_sidecar_dns_local_zone_records", "zone" => zone);
            LiveGauge::new(gauge, self.zone.records() as f64)
        });
    }
}

fn count_reload(zone: &str, outcome: &'static str) {
    let zone = zone.to_owned();
    counter!("qudag_sidecar_dns_local_zone_reloads_total", "zone" => zone, "outcome" => outcome).increment(1);
}

#[derive(Debug)]
enum Held {
    Fixed(Box<Loaded>),
    File(Watched<Loaded>),
    /// A name under `.dark`.
    Signed(Watched<Signed>),
}

impl Held {
    fn is_expired(&self) -> bool {
        matches!(self, Self::Signed(record) if record.contents().is_expired())
    }
}

/// The zones, by name. They outlive a reload that leaves their settings alone.
#[derive(Debug)]
pub struct LocalZonesState {
    zones: HashMap<Box<[u8]>, Held>,
}

impl LocalZonesState {
    /// What the zone with the longest name that the query's name lies in says; `None` where there is none.
    pub fn answer(&self, query: &Parsed) -> Option<Answer> {
        let (name, held) = self.closest(&query.name)?;
        let elsewhere = |target: &Name| self.closest(target).is_none_or(|(closest, _)| closest != name);
        match held {
            Held::Fixed(fixed) => fixed.zone.answer_up_to(query, elsewhere),
            Held::File(file) => file.contents().zone.answer_up_to(query, elsewhere),
            Held::Signed(record) => record.contents().loaded.zone.answer_up_to(query, elsewhere),
        }
    }

    fn closest(&self, name: &Name) -> Option<(&[u8], &Held)> {
        let mut suffix = name.wire();
        loop {
            if let Some((zone, held)) =
                self.zones.get_key_value(suffix).filter(|(_, held)| !held.is_expired())
            {
                return Some((zone, held));
            }
            if suffix.len() <= 1 {
                return None;
            }
            suffix = parent(suffix);
        }
    }
}

impl FilterSpec for LocalZones {
    type Kind = Dns;
    type State = LocalZonesState;
    const NAME: &'static str = "local_zones";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let (of_dark, at) = (at.key("dark"), at.key("zones"));
        if self.zones.len() > MAX_ZONES {
            errors.push(at.error(format!("more than {MAX_ZONES} zones")));
        }
        let mut seen = HashSet::new();
        for (number, zone) in self.zones.iter().enumerate() {
            let at = at.index(number);
            check_zone(zone, &at, &mut seen, &mut errors);
            if self.dark.require_signature && zone.terms().is_ok_and(|terms| dark::is_dark(&terms.origin)) {
                let why = "its records are not signed, and `dark.require_signature` is set";
                errors.push(at.key("zone").error(why).hint("name signed records in `dark.records`"));
            }
        }
        let records = of_dark.key("records");
        if self.dark.records.len() > MAX_ZONES {
            errors.push(records.error(format!("more than {MAX_ZONES} names")));
        }
        for (name, record) in &self.dark.records {
            let at = records.key(name);
            errors.extend(record.check(name, &at));
            if record.terms(name).is_ok_and(|terms| !seen.insert(terms.name)) {
                errors.push(at.error("a zone of this name is there already"));
            }
        }
        errors
    }

    fn state(
        &self,
        _env: &Env,
        _previous: Option<(&Self, Arc<LocalZonesState>)>,
    ) -> Result<Arc<LocalZonesState>, BuildError> {
        let failed = |why: String| BuildError::new("filters.dns.local_zones.zones", why);
        let mut zones = HashMap::new();
        for zone in &self.zones {
            let terms = zone.terms().map_err(failed)?;
            let name = terms.origin.wire().into();
            let held = match &zone.file {
                Some(file) => Watched::open(file, terms)
                    .map(Held::File)
                    .map_err(|why| failed(format!("{}: {why}", file.display())))?,
                None => {
                    let loaded = Loaded::parse("", &terms).map_err(|why| failed(why.to_string()))?;
                    loaded.publish();
                    Held::Fixed(Box::new(loaded))
                }
            };
            drop(zones.insert(name, held));
        }
        for (name, record) in &self.dark.records {
            let failed =
                |why: String| BuildError::new(format!("filters.dns.local_zones.dark.records.{name}"), why);
            let terms = record.terms(name).map_err(|(_, why)| failed(why))?;
            let key = terms.name.wire().into();
            let watched = Watched::open(&record.file, terms);
            let watched = watched.map_err(|why| failed(format!("{}: {why}", record.file.display())))?;
            drop(zones.insert(key, Held::Signed(watched)));
        }
        Ok(Arc::new(LocalZonesState { zones }))
    }

    fn wrap(&self, state: Arc<LocalZonesState>, inner: Svc<Dns>) -> Svc<Dns> {
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let answer = state.answer(query.parsed());
            let (inner, state) = (inner.clone(), Arc::clone(&state));
            async move {
                match answer {
                    None => {
                        query.note(Self::NAME, || "the name is in no local zone".to_owned());
                        inner.oneshot(query).await
                    }
                    Some(Answer::Whole(wire)) => {
                        query.note(Self::NAME, || "answered with authority".to_owned());
                        Ok(reply(wire))
                    }
                    Some(Answer::Alias(chase)) => Box::pin(follow(&state, query, *chase, inner)).await,
                }
            }
        })
    }

    fn quick(&self, state: &Arc<LocalZonesState>) -> Option<Box<dyn Quick<Dns>>> {
        Some(Box::new(Known(Arc::clone(state))))
    }
}

/// The zones as they are asked without waiting: only an alias that leads elsewhere takes time.
struct Known(Arc<LocalZonesState>);

impl Quick<Dns> for Known {
    fn look(&self, glance: &mut DnsGlance<'_>) -> Look {
        match self.0.answer(glance.parsed) {
            None => Look::Pass,
            Some(Answer::Alias(_)) => Look::Wait,
            Some(Answer::Whole(wire)) => {
                glance.source = Source::LocalZone;
                glance.reply(&wire, None)
            }
        }
    }
}

fn reply(wire: Vec<u8>) -> DnsReply {
    DnsReply::new(wire.into(), Source::LocalZone)
}

/// Follows an alias out of its zone: a client of ours is a stub and follows none itself (RFC 1034 section 5.3.1).
async fn follow(
    state: &LocalZonesState,
    query: DnsQuery,
    chase: Chase,
    inner: Svc<Dns>,
) -> Result<DnsReply, FilterError> {
    let internal = |why: &str| FilterError::Internal(why.to_owned().into());
    let read = |wire: &[u8]| Message::from_vec(wire).map_err(|_| internal("a reply cannot be read"));
    let mut whole = read(&chase.wire)?;
    let mut target = chase.target;
    for _ in 0..MAX_CHASES {
        query.note(LocalZones::NAME, || format!("an alias of {target}"));
        let next = DnsQuery::parse(question(&query, &target).into(), query.client(), query.transport())
            .map_err(|_| internal("an alias to no name"))?;
        let found = match state.answer(next.parsed()) {
            None => {
                let found = inner.oneshot(next).await?;
                let message = read(&found.wire)?;
                whole.answers.extend(message.answers);
                whole.authorities = message.authorities;
                whole.metadata.response_code = message.metadata.response_code;
                let wire = whole.to_vec().map_err(|_| internal("a reply cannot be written"))?;
                return Ok(DnsReply { ede: found.ede, ..reply(wire) });
            }
            Some(found) => found,
        };
        let (wire, further) = match found {
            Answer::Whole(wire) => (wire, None),
            Answer::Alias(chase) => (chase.wire, Some(chase.target)),
        };
        let message = read(&wire)?;
        whole.answers.extend(message.answers);
        whole.authorities = message.authorities;
        whole.metadata.response_code = message.metadata.response_code;
        match further {
            Some(further) => target = further,
            None => {
                return whole.to_vec().map(reply).map_err(|_| internal("a reply cannot be written"));
            }
        }
    }
    Err(FilterError::Upstream("too many aliases".into()))
}

/// The same question about another name.
fn question(query: &DnsQuery, name: &Name) -> Vec<u8> {
    let parsed = query.parsed();
    let flags = [if parsed.rd { flag2::RD } else { 0 }, if parsed.cd { flag3::CD } else { 0 }];
    let mut wire = Vec::with_capacity(HEADER + name.wire().len() + 4);
    wire.extend_from_slice(&parsed.id.to_be_bytes());
    wire.extend(flags);
    wire.extend([0, 1, 0, 0, 0, 0, 0, 0]);
    wire.extend_from_slice(name.wire());
    wire.extend_from_slice(&parsed.qtype.to_be_bytes());
    wire.extend_from_slice(&CLASS_IN.to_be_bytes());
    wire
}

fn check_zone(zone: &LocalZone, at: &ConfigPath, seen: &mut HashSet<Name>, errors: &mut Vec<ConfigError>) {
    if zone.ttl.0.as_secs() > MAX_TTL.into() || zone.ttl.0.subsec_nanos() != 0 {
        errors.push(at.key("ttl").error("not a number of whole seconds up to 300s").hint("0s to 300s"));
    }
    let terms = match zone.terms() {
        Ok(terms) => terms,
        Err(why) => {
            errors.push(at.key("zone").error(why).hint("a domain name, such as lab.example or dark"));
            return;
        }
    };
    if terms.origin.wire().len() == 1 {
        let why = "the root would take every name";
        errors.push(at.key("zone").error(why).hint("a domain name, such as lab.example or dark"));
    } else if !seen.insert(terms.origin.clone()) {
        errors.push(at.key("zone").error("this zone is there already").hint("put all records into one"));
    }
    if zone.records.is_empty() && zone.file.is_none() {
        errors.push(at.key("zone").error("a zone without records").hint("add `records:` or `file:`"));
    }
    // One after the other, so that each mistake is found, and those between two records too.
    let mut whole = Zone::new(terms.origin.clone(), 1, terms.ttl);
    for (number, record) in zone.records.iter().enumerate() {
        if let Err(why) = whole.add_text(record, terms.ttl) {
            let hint = "NAME [TTL] [IN] TYPE DATA, such as `peer-a 60 IN A 10.0.0.1`";
            errors.push(at.key("records").index(number).error(why.why).hint(hint));
        }
    }
    if let Some(file) = &zone.file
        && let Err(why) = read::<Loaded>(file, &Terms { records: [].into(), ..terms })
    {
        let hint = "a zone file (RFC 1035) that the sidecar may read";
        errors.push(at.key("file").error(format!("{}: {why}", file.display())).hint(hint));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use qudag_filter_common::testing::metric;

    use super::*;
    use crate::testing::{env, query, query_wire, reply_wire, until};
    use crate::wire::{parse_query, parse_reply, rcode, rtype};

    fn settings(yaml: serde_json::Value) -> LocalZones {
        serde_json::from_value(yaml).unwrap()
    }

    fn problems(yaml: serde_json::Value) -> Vec<String> {
        let errors = settings(yaml).check(&ConfigPath::root());
        errors.into_iter().map(|error| error.to_string()).collect()
    }

    /// The chain's own answer is 192.0.2.99 for every name.
    fn chain(settings: &LocalZones) -> Svc<Dns> {
        let inner = service_fn::<Dns, _, _>(|query: DnsQuery| async move {
            let record: &[u8] = &[192, 0, 2, 99];
            let wire = reply_wire(query.wire(), rcode::NOERROR, &[(rtype::A, 60, record)]);
            Ok(DnsReply::new(wire.into(), Source::Cache))
        });
        settings.wrap(settings.state(&env(), None).unwrap(), inner)
    }

    /// The code and the last byte of each record of the answer.
    async fn ask(chain: &Svc<Dns>, name: &str) -> (u8, Vec<u8>, Source) {
        let reply = chain.clone().oneshot(query(name, rtype::A)).await.unwrap();
        let parsed = parse_reply(&reply.wire).unwrap();
        let last = |record: &crate::wire::Record| reply.wire[record.data.end - 1];
        let answers = parsed.records.iter().filter(|record| record.rtype == rtype::A);
        (parsed.rcode(), answers.map(last).collect(), reply.source)
    }

    #[tokio::test]
    async fn the_closest_zone_answers_and_other_names_go_on() {
        let settings = settings(serde_json::json!({"zones": [
            {"zone": "lab.example", "records": ["a 60 A 192.0.2.1", "b CNAME x.inner.lab.example."]},
            {"zone": "inner.lab.example", "records": ["x A 192.0.2.2", "out CNAME www.example.net.", "gone CNAME no.lab.example."]},
            {"zone": "loop", "records": ["a CNAME a.pool."]},
            {"zone": "pool", "records": ["a CNAME a.loop."]},
        ]}));
        assert_eq!(settings.check(&ConfigPath::root()), []);
        let chain = chain(&settings);
        assert_eq!(ask(&chain, "a.LAB.example").await, (0, vec![1], Source::LocalZone));
        assert_eq!(ask(&chain, "b.lab.example").await, (0, vec![2], Source::LocalZone));
        assert_eq!(ask(&chain, "out.inner.lab.example").await, (0, vec![99], Source::LocalZone));
        assert_eq!(ask(&chain, "gone.inner.lab.example").await, (rcode::NXDOMAIN, vec![], Source::LocalZone));
        assert_eq!(ask(&chain, "no.inner.lab.example").await, (rcode::NXDOMAIN, vec![], Source::LocalZone));
        assert_eq!(ask(&chain, "elsewhere.example").await, (0, vec![99], Source::Cache));
        assert!(chain.clone().oneshot(query("a.loop", rtype::A)).await.is_err());
    }

    #[tokio::test]
    async fn a_zone_file_is_followed_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lab.zone");
        fs::write(&file, "a A 192.0.2.1\n").unwrap();
        let settings = settings(serde_json::json!({"zones": [
            {"zone": "lab.example", "file": file, "records": ["fixed A 192.0.2.7"], "ttl": "30s"}]}));
        let state = settings.state(&env(), None).unwrap();
        let last = |name: &str| {
            let query = parse_query(&query_wire(name, rtype::A, None)).unwrap();
            let Some(Answer::Whole(wire)) = state.answer(&query) else { panic!() };
            *wire.last().unwrap()
        };
        assert_eq!((last("a.lab.example"), last("fixed.lab.example")), (1, 7));
        let asked = parse_query(&query_wire("a.lab.example", rtype::A, None)).unwrap();
        let Some(Answer::Whole(wire)) = state.answer(&asked) else { panic!() };
        assert_eq!(parse_reply(&wire).unwrap().records[0].ttl, 30);
        fs::write(&file, "a A 192.0.2.12\n").unwrap();
        until("the file was read again", || last("a.lab.example") == 12).await;
        fs::write(&file, "a A 192.0.2.13\na CNAME b\n").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert_eq!(last("a.lab.example"), 12);
        fs::write(&file, "a A 192.0.2.14 ; well again\n").unwrap();
        until("the file was read again", || last("a.lab.example") == 14).await;
    }

    #[tokio::test]
    async fn the_records_of_a_zone_are_shown_while_it_is_in_use() {
        let shown = || metric("qudag_sidecar_dns_local_zone_records", &["shown.example"]);
        let settings = settings(serde_json::json!({"zones": [
            {"zone": "shown.example", "records": ["a A 192.0.2.1", "b A 192.0.2.1"]}]}));
        // The first use of metrics installs their recorder.
        assert_eq!(shown(), 0.0);
        let state = settings.state(&env(), None).unwrap();
        assert_eq!(shown(), 2.0);
        drop(state);
        assert!(shown().is_nan());
    }

    fn record(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dark").join(name)
    }

    #[tokio::test]
    async fn signed_records_are_answered_until_they_expire_and_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.json");
        fs::copy(record("node-b.json"), &file).unwrap();
        let settings = settings(serde_json::json!({
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
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
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
        let found = problems(serde_json::json!({
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

    #[test]
    fn mistakes_are_named_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("broken");
        fs::write(&file, "a A 192.0.2.1\nb A nonsense\n").unwrap();
        let found = problems(serde_json::json!({"zones": [
            {"zone": "a..b", "records": ["a A 192.0.2.1"]},
            {"zone": ".", "records": ["a A 192.0.2.1"]},
            {"zone": "empty"},
            {"zone": "dark", "records": ["a A 192.0.2.1", "a CNAME b", "c A 1"], "ttl": "301s"},
            {"zone": "DARK.", "file": file},
        ]}));
        let places: Vec<_> = found.iter().map(|error| error.split(':').next().unwrap()).collect();
        assert_eq!(
            places,
            [
                "zones.0.zone",
                "zones.1.zone",
                "zones.2.zone",
                "zones.3.ttl",
                "zones.3.records.1",
                "zones.3.records.2",
                "zones.4.zone",
                "zones.4.file",
            ]
        );
        assert!(found[7].contains("line 2"), "{}", found[7]);
    }
}
