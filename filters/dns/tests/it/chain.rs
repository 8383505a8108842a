//! Filters on and off, reloads, and look-ups through the whole chain.

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use qudag_filter_api::{Arm, ConfigPath, FilterSpec};
use qudag_filter_dns::{
    CacheState, DnsQuery, FlushSelector, Hosts, LookupError, Question, Source, Transport, lookup,
};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::support::{Does, Server, Sidecar, addresses, env, extended_error, query, upstream_key, with_edns};

fn cached(servers: &[&Server]) -> String {
    format!(r#"{{"dns_cache": {{"enabled": true}}, {}}}"#, upstream_key(servers))
}

fn cache(sidecar: &Sidecar) -> Arc<CacheState> {
    sidecar.states().dns_cache.unwrap().state
}

fn hosts_file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[tokio::test]
async fn replies_are_the_same_with_every_filter_on_and_off() {
    let server = Server::start(Does::Answer(3)).await;
    let (_directory, file) = hosts_file("192.0.2.9 local.example\n");
    let sidecar = Sidecar::to(&[&server]).await;
    let mut queries = Vec::new();
    for (i, name) in ["www.example.", "WWW.Example.", "a.b.example."].into_iter().enumerate() {
        for rtype in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            let mut plain = query(name, rtype);
            plain.metadata.id = 1000 + i as u16;
            let mut checking = with_edns(plain.clone(), 1232);
            checking.metadata.checking_disabled = true;
            queries.extend([plain.clone(), with_edns(plain, 4096), checking]);
        }
    }
    let ask = async |filters: &str| {
        sidecar.refilter(filters);
        let mut replies = Vec::new();
        // Twice, so that the cache answers as well.
        for query in queries.iter().chain(&queries) {
            replies.push(sidecar.udp_bytes(&query.to_vec().unwrap()).await);
        }
        replies
    };
    let upstream = upstream_key(&[&server]);
    let off = ask(&format!("{{{upstream}}}")).await;
    for on in 1..8 {
        let filters = format!(
            r#"{{
                "hosts": {{"enabled": {}, "file": "{file}"}},
                "rate_limit": {{"enabled": {}, "per_client": {{"rate": 1000000, "burst": 1000000}}}},
                "dns_cache": {{"enabled": {}}},
                {upstream}
            }}"#,
            on & 1 != 0,
            on & 2 != 0,
            on & 4 != 0
        );
        let replies = ask(&filters).await;
        for (query, (with, without)) in queries.iter().cycle().zip(replies.iter().zip(&off)) {
            // A reply from the cache may be a second old.
            let (with, without) = (ageless(with), ageless(without));
            assert_eq!(with, without, "filters {on:03b}: {query}");
        }
        let hits = sidecar.states().dns_cache.map(|held| held.state.stats().hits);
        assert_eq!(hits.is_some_and(|hits| hits > 0), on & 4 != 0);
    }
}

/// A reply's bytes with its times to live, all between 50 and 60, set to one value.
fn ageless(reply: &[u8]) -> Vec<u8> {
    let mut ageless = reply.to_vec();
    let parsed = qudag_filter_dns::wire::parse_reply(reply).unwrap();
    for record in parsed.records.iter().filter(|record| record.rtype != 41) {
        assert!((50..=60).contains(&record.ttl));
        ageless[record.ttl_at..record.ttl_at + 4].fill(0);
    }
    ageless
}

#[tokio::test]
async fn a_reload_and_a_toggle_empty_no_cache() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&cached(&[&server])).await;
    let ask = query("www.example.", RecordType::A);
    sidecar.udp(&ask).await;
    sidecar.refilter(&format!("{{{}}}", upstream_key(&[&server])));
    sidecar.udp(&ask).await;
    assert_eq!(server.asked().0, 2, "switched off");
    sidecar.refilter(&cached(&[&server]));
    assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
    assert_eq!((server.asked().0, cache(&sidecar).stats().hits), (2, 1));
}

#[tokio::test]
async fn what_a_hit_says_is_the_clients_own_business() {
    let server = Server::start(Does::Answer(40)).await;
    let sidecar = Sidecar::with(&cached(&[&server])).await;
    sidecar.udp(&with_edns(query("www.example.", RecordType::A), 4096)).await;
    // Another case and id, no EDNS: it does not fit into 512 bytes.
    let ask = query("WwW.eXample.", RecordType::A);
    let reply = sidecar.udp(&ask).await;
    assert!(reply.metadata.truncation && reply.edns.is_none() && reply.answers.is_empty());
    assert_eq!((reply.metadata.id, &reply.queries), (ask.metadata.id, &ask.queries));
    assert!(reply.queries[0].name().eq_case(ask.queries[0].name()));
    assert_eq!(addresses(&sidecar.tcp(&ask).await).len(), 40);
    // The server's cookie is in no reply.
    let wire = sidecar.udp_bytes(&with_edns(ask, 4096).to_vec().unwrap()).await;
    assert!(!wire.windows(6).any(|window| window == b"cookie"));
    assert_eq!(server.asked(), (1, 0));
    // DO and CD are other questions, and without RD the cache is not asked.
    let mut dnssec = with_edns(query("www.example.", RecordType::A), 4096);
    dnssec.edns.as_mut().unwrap().set_dnssec_ok(true);
    sidecar.udp(&dnssec).await;
    let mut checking = query("www.example.", RecordType::A);
    checking.metadata.checking_disabled = true;
    sidecar.udp(&checking).await;
    let mut local = query("www.example.", RecordType::A);
    local.metadata.recursion_desired = false;
    sidecar.udp(&local).await;
    sidecar.udp(&local).await;
    assert_eq!(server.asked().0, 5);
}

#[tokio::test]
async fn ten_thousand_simultaneous_misses_are_one_upstream_query() {
    let server = Server::start(Does::Late(std::time::Duration::from_millis(150))).await;
    let sidecar = Sidecar::with(&cached(&[&server])).await;
    let wire = query("www.example.", RecordType::A).to_vec().unwrap();
    let mut all = JoinSet::new();
    for i in 0..10_000_u16 {
        let client = ([127, 0, 0, 1], i).into();
        let ask = DnsQuery::parse(wire.clone().into(), client, Transport::Udp).unwrap();
        all.spawn(sidecar.chain().oneshot(ask));
    }
    while let Some(reply) = all.join_next().await {
        let reply = reply.unwrap().unwrap();
        assert_eq!(Message::from_vec(&reply.wire).unwrap().answers.len(), 1);
    }
    assert_eq!(server.asked(), (1, 0));
}

#[tokio::test]
async fn nothing_from_before_a_flush_is_served_after_it() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&cached(&[&server])).await;
    let ask = query("www.example.", RecordType::A);
    for (count, selector) in [
        (2, FlushSelector::All),
        (3, FlushSelector::name("www.example").unwrap()),
        (4, FlushSelector::suffix("example").unwrap()),
        (5, FlushSelector::rtype("A").unwrap()),
    ] {
        assert_eq!(addresses(&sidecar.udp(&ask).await).len(), usize::from(count) - 1);
        server.now(Does::Answer(count));
        assert_eq!(addresses(&sidecar.udp(&ask).await).len(), usize::from(count) - 1, "cached");
        assert_eq!(cache(&sidecar).flush(&selector), 1, "{selector:?}");
        assert_eq!(addresses(&sidecar.udp(&ask).await).len(), usize::from(count), "{selector:?}");
    }
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_followed() {
    let server = Server::start(Does::Answer(1)).await;
    let (directory, file) = hosts_file("192.0.2.9 www.example\n2001:db8::9 www.example\n");
    let filters = format!(
        r#"{{"hosts": {{"enabled": true, "file": "{file}", "ttl": "7s"}}, {}}}"#,
        upstream_key(&[&server])
    );
    let sidecar = Sidecar::with(&filters).await;
    let reply = sidecar.udp(&query("Www.Example.", RecordType::A)).await;
    assert_eq!((addresses(&reply)[0].to_string().as_str(), reply.answers[0].ttl), ("192.0.2.9", 7));
    let reply = sidecar.udp(&query("www.example.", RecordType::AAAA)).await;
    assert_eq!(addresses(&reply)[0].to_string(), "2001:db8::9");
    let reply = sidecar.udp(&query("www.example.", RecordType::MX)).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    let reply = sidecar.udp(&query("9.2.0.192.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reply.answers[0].data.to_string(), "www.example.");
    assert_eq!(server.asked().0, 0);
    sidecar.udp(&query("other.example.", RecordType::A)).await;
    assert_eq!(server.asked().0, 1);

    let new = directory.path().join("new");
    std::fs::write(&new, "192.0.2.10 www.example\n").unwrap();
    std::fs::rename(new, &file).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while addresses(&sidecar.udp(&query("www.example.", RecordType::A)).await)[0].to_string() != "192.0.2.10"
    {
        assert!(std::time::Instant::now() < deadline, "the file is read again");
    }
}

#[tokio::test]
async fn a_hosts_file_that_cannot_be_read_is_named() {
    let hosts = Hosts { file: "/nonexistent/hosts".into(), ..Hosts::default() };
    let errors = hosts.check(&ConfigPath::root().key("hosts"));
    assert_eq!(errors[0].at.to_string(), "hosts.file");
    assert!(errors[0].problem.contains("/nonexistent/hosts") && errors[0].hint.is_some());
    let error = hosts.state(&env(), None).err().unwrap().to_string();
    assert!(error.contains("filters.dns.hosts.file") && error.contains("/nonexistent/hosts"), "{error}");
}

#[tokio::test]
async fn over_the_rate_clients_are_refused() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&format!(
        r#"{{"rate_limit": {{"enabled": true, "per_client": {{"rate": 1, "burst": 1}}}}, {}}}"#,
        upstream_key(&[&server])
    ))
    .await;
    let ask = with_edns(query("www.example.", RecordType::A), 1232);
    assert_eq!(sidecar.udp(&ask).await.metadata.response_code, ResponseCode::NoError);
    let reply = sidecar.udp(&ask).await;
    assert_eq!((reply.metadata.response_code, extended_error(&reply)), (ResponseCode::Refused, Some(18)));
}

#[tokio::test]
async fn look_ups_tell_what_was_found_where() {
    let server = Server::start(Does::Answer(2)).await;
    let (_directory, file) = hosts_file("192.0.2.9 local.example\n");
    let filters = format!(
        r#"{{"hosts": {{"enabled": true, "file": "{file}"}}, "dns_cache": {{"enabled": true}}, {}}}"#,
        upstream_key(&[&server])
    );
    let sidecar = Sidecar::with(&filters).await;
    let found = lookup(sidecar.chain(), &Question::new("www.example", "a")).await.unwrap();
    assert_eq!((found.rcode.as_str(), found.source), ("NOERROR", format!("upstream {}", server.addr)));
    assert_eq!(found.records.len(), 2);
    assert_eq!(
        (found.records[0].data.as_str(), found.records[0].name.as_str()),
        ("192.0.2.1", "www.example.")
    );
    let found = lookup(sidecar.chain(), &Question::new("www.example.", "A")).await.unwrap();
    assert_eq!(found.source, Source::Cache.to_string());
    let found = lookup(sidecar.chain(), &Question::new("192.0.2.9", "PTR")).await.unwrap();
    assert_eq!((found.source.as_str(), found.records[0].data.as_str()), ("hosts", "local.example."));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!((&json["type"], &json["records"][0]["type"]), (&"PTR".into(), &"PTR".into()));

    server.now(Does::NxDomain);
    let found = lookup(sidecar.chain(), &Question::new("nowhere.example", "TYPE65")).await.unwrap();
    assert_eq!((found.rcode.as_str(), found.records.len(), found.rtype.as_str()), ("NXDOMAIN", 0, "HTTPS"));
    let failed = |name: &'static str, rtype: &'static str| {
        let chain = sidecar.chain();
        async move { lookup(chain, &Question::new(name, rtype)).await.unwrap_err() }
    };
    assert!(matches!(failed("a..b", "A").await, LookupError::Name(_)));
    assert!(matches!(failed("a.b", "NOSUCH").await, LookupError::Type(_)));
    assert!(matches!(failed("a.b", "AXFR").await, LookupError::Question("notimp")));
}

#[tokio::test]
async fn a_traced_look_up_tells_the_querys_way() {
    let server = Server::start(Does::Answer(1)).await;
    let (_directory, file) = hosts_file("192.0.2.9 local.example\n");
    let filters = format!(
        r#"{{"hosts": {{"enabled": true, "file": "{file}"}}, "rate_limit": {{"enabled": true, "rollout": 0}},
            "dns_cache": {{"enabled": false}}, {}}}"#,
        upstream_key(&[&server])
    );
    let sidecar = Sidecar::with(&filters).await;
    let untraced = lookup(sidecar.chain(), &Question::new("www.example", "A")).await.unwrap();
    assert_eq!(untraced.way, None);

    let known = lookup(sidecar.chain(), &Question::new("local.example", "A").traced()).await.unwrap();
    let way = known.way.unwrap();
    assert_eq!(way.reached, [("hosts", Arm::With)], "nothing behind the filter that answered is reached");
    assert_eq!(way.steps[0].what, format!("answered: {file} has the name"));

    let asked = lookup(sidecar.chain(), &Question::new("www.example", "A").traced()).await.unwrap();
    let way = asked.way.unwrap();
    assert_eq!(way.reached, [("hosts", Arm::With), ("rate_limit", Arm::Without)]);
    assert_eq!(
        (way.steps[0].filter, way.steps[0].what.as_str()),
        ("hosts", &*format!("not among the 1 names of {file}"))
    );
    assert!(way.steps.is_sorted_by_key(|step| step.at_ms), "{way:?}");
    assert_eq!((asked.filter, asked.flags), ("dns_upstream", vec!["rd", "ra"]));
}

#[tokio::test]
async fn a_look_up_that_fails_tells_what_a_client_would_get_and_why() {
    let filters = r#"{"rate_limit": {"enabled": true, "per_client": {"rate": 1, "burst": 1}}}"#;
    let server = Server::start(Does::Answer(1)).await;
    let filters = filters.replacen('{', &format!("{{{}, ", upstream_key(&[&server])), 1);
    let sidecar = Sidecar::with(&filters).await;
    let question = Question::new("www.example", "A").traced();
    assert_eq!(lookup(sidecar.chain(), &question).await.unwrap().rcode, "NOERROR");
    let refused = lookup(sidecar.chain(), &question).await.unwrap();
    assert_eq!((refused.rcode.as_str(), refused.filter), ("REFUSED", "rate_limit"));
    assert_eq!(refused.extended_errors[0].reason, "prohibited");
    assert!(refused.error.unwrap().contains("rate limit"));
    let steps = refused.way.unwrap().steps;
    assert!(steps.iter().any(|step| step.what.starts_with("refused: rate limit reached")), "{steps:?}");
}

#[tokio::test]
async fn a_look_up_can_ask_for_dnssec_records_and_no_checks() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&format!("{{{}}}", upstream_key(&[&server]))).await;
    let question = Question { dnssec: true, cd: true, ..Question::new("www.example", "A") };
    let found = lookup(sidecar.chain(), &question).await.unwrap();
    assert_eq!(found.flags, ["rd", "ra", "cd", "do"]);
    let last = server.last();
    assert!(last.metadata.checking_disabled, "{last:?}");
    assert!(last.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok), "{last:?}");
}
