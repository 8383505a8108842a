//! Zones that the sidecar answers for itself, from the configuration and from zone files.

mod alias;
mod configured;
pub(crate) mod dark;
mod signed;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use qudag_filter_api::{BuildError, ConfigError, ConfigPath, Env, FilterSpec, Look, Quick, Svc, service_fn};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::watched::Watched;
use crate::wire::{Name, Parsed};
use crate::zone::{Answer, parent};
use crate::{Dns, DnsGlance, DnsQuery, DnsReply, Source};
use configured::Loaded;
pub use configured::LocalZone;
use signed::Signed;
pub use signed::{Dark, SignedRecord};

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
        let zones = at.key("zones");
        if self.zones.len() > MAX_ZONES {
            errors.push(zones.error(format!("more than {MAX_ZONES} zones")));
        }
        let mut seen = HashSet::new();
        for (number, zone) in self.zones.iter().enumerate() {
            let at = zones.index(number);
            errors.extend(zone.check(&at, &mut seen));
            errors.extend(self.dark.check_zone(zone, &at));
        }
        errors.extend(self.dark.check(&at.key("dark"), &mut seen));
        errors
    }

    fn state(
        &self,
        _env: &Env,
        _previous: Option<(&Self, Arc<LocalZonesState>)>,
    ) -> Result<Arc<LocalZonesState>, BuildError> {
        let mut zones = HashMap::new();
        for zone in &self.zones {
            let failed = |why| BuildError::new("filters.dns.local_zones.zones", why);
            let (name, held) = zone.open().map_err(failed)?;
            drop(zones.insert(name.wire().into(), held));
        }
        for (name, record) in &self.dark.records {
            let failed = |why| BuildError::new(format!("filters.dns.local_zones.dark.records.{name}"), why);
            let (name, signed) = record.open(name).map_err(failed)?;
            drop(zones.insert(name.wire().into(), Held::Signed(signed)));
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
                    Some(Answer::Alias(chase)) => Box::pin(alias::follow(&state, query, *chase, inner)).await,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use qudag_filter_common::testing::metric;

    use super::*;
    use crate::testing::{env, query, query_wire, reply_wire, until};
    use crate::wire::{parse_query, parse_reply, rcode, rtype};

    pub(super) fn settings(yaml: serde_json::Value) -> LocalZones {
        serde_json::from_value(yaml).unwrap()
    }

    pub(super) fn problems(yaml: serde_json::Value) -> Vec<String> {
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
