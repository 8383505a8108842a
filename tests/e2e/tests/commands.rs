//! The commands, and what a person who starts the program for the first time sees.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::program::Start;
use qudag_kit::{FaultyDns, Namespace, TestSidecar, Unbound, eventually, needs_namespaces, needs_program};
use serde_json::Value;

const YAML: &str = "listeners:\n  dns: { bind: \"127.0.0.1:0\" }\nfilters:\n  dns:\n    dns_cache: { enabled: true, rollout: \
                    50 }\n";

fn run(args: &[&str]) -> Start {
    Start::new(TestSidecar::binary()).args(args.iter().copied())
}

#[tokio::test]
async fn the_program_starts_with_nothing() {
    needs_namespaces!();
    // Its own ports are fixed, so it gets a network of its own.
    let namespace = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(TestSidecar::binary()).in_namespace(Some(&namespace));
    let start = start.env("QUDAG_SIDECAR_STATE_DIR", dir.path()).env("HOME", dir.path());
    let mut sidecar = start.spawn(dir.path());
    let state = dir.path().to_str().unwrap();
    let status = async || {
        assert!(sidecar.ended().is_none(), "it ended");
        let status =
            run(&["status", "--json", "--state-dir", state]).in_namespace(Some(&namespace)).output().await;
        (status.code == 0).then_some(status.stdout)
    };
    let status = eventually(Duration::from_secs(20), "status answers", status).await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["config"]["origin"], "embedded");
    assert!(status["listeners"].as_array().is_some_and(|listeners| !listeners.is_empty()), "{status:#}");
    // There is no node here, and it says so.
    let check = run(&["check", "--state-dir", state]).in_namespace(Some(&namespace)).output().await;
    assert!(check.stdout.contains('✗') || check.stderr.contains('✗'), "{check:?}");
    let told = |line: &str| line.to_lowercase().contains("node").then_some(());
    sidecar.wait_for_log("a word about the node", told).await;
}

#[tokio::test]
async fn status_shows_what_is_pinned() {
    let sidecar = TestSidecar::start(YAML).await;
    let status = sidecar.cli_json(&["status"]).await;
    assert_eq!(status["generation"], 1);
    let dns = &status["listeners"][0];
    assert_eq!(dns["kind"], "dns");
    assert!(dns["addr"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().port() > 0);
    let filter = sidecar.filter("dns", "dns_cache").await;
    assert_eq!((&filter["enabled"], &filter["layer"]), (&true.into(), &"yaml".into()));
    assert_eq!(filter["rollout"].as_f64(), Some(50.0));
    let people = sidecar.cli(&["status"]).await.ok();
    assert!(people.contains("dns_cache") && people.contains("50"), "{people}");
}

#[tokio::test]
async fn init_writes_a_configuration_that_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("qudag-sidecar.yaml");
    run(&["init", "--dir"]).arg(dir.path()).output().await.ok();
    assert!(file.is_file());
    run(&["validate"]).arg(&file).output().await.ok();
    let again = run(&["init", "--dir"]).arg(dir.path()).output().await;
    assert_ne!(again.code, 0, "a file is not overwritten");
}

#[tokio::test]
async fn shipped_configurations_are_valid() {
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut count = 0;
    for entry in std::fs::read_dir(configs).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            run(&["validate"]).arg(entry.path()).output().await.ok();
            count += 1;
        }
    }
    assert!(count >= 3, "{count} configurations");
}

#[tokio::test]
async fn what_is_generated_is_well_formed() {
    let schema: Value = serde_json::from_str(&run(&["schema"]).output().await.ok()).unwrap();
    assert!(schema["properties"]["listeners"].is_object());
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).output().await.ok().contains("qudag-sidecar"), "{shell}");
    }
    assert!(run(&["man"]).output().await.ok().contains(".TH"));
    let help = run(&["--help"]).output().await.ok();
    for command in [
        "run",
        "init",
        "validate",
        "schema",
        "config",
        "status",
        "check",
        "filters",
        "flags",
        "cache",
        "tap",
        "top",
        "dns",
        "bypass",
        "peers",
        "db",
        "pki",
        "drain",
        "reload",
        "set",
        "unset",
        "completions",
        "man",
    ] {
        assert!(help.contains(&format!("  {command}")), "no {command} in\n{help}");
    }
}

#[tokio::test]
async fn exit_codes_tell_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    assert_eq!(run(&["no-such-command"]).output().await.code, 2);
    assert_eq!(run(&["status", "--no-such-flag"]).output().await.code, 2);
    let nobody = run(&["status", "--state-dir", state]).output().await;
    assert_eq!(nobody.code, 69, "{nobody:?}");
    assert_eq!(run(&["validate", "/no/such/file"]).output().await.code, 78);
}

#[tokio::test]
async fn every_flow_ends_with_one_line() {
    let node = qudag_kit::HttpNode::start().await;
    let yaml = format!(
        "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\ntelemetry: {{ log: {{ format: json }} }}\n",
        node.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("http").await;
    for _ in 0..3 {
        qudag_kit::http::get(door, "/health").await.unwrap();
    }
    let lines = async || {
        let log = sidecar.log();
        let flows = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let flows = flows.filter(|line| line["target"] == "flow");
        let flows: Vec<Value> = flows.collect();
        (flows.len() >= 3).then_some(flows)
    };
    let lines = eventually(Duration::from_secs(10), "three lines", lines).await;
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.to_string().contains("\"http\"")), "{lines:#?}");
    assert_eq!(
        sidecar.metric("qudag_sidecar_flows_total", &[("kind", "http"), ("outcome", "ok")]).await,
        3.0
    );
}

/// A sidecar that knows a name from a hosts file and has nobody to ask for others.
async fn with_hosts(more: &str) -> (tempfile::TempDir, TestSidecar) {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.7 known.test\n").unwrap();
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    hosts: {{ enabled: true, file: {} }}\n    \
         dns_cache: {{ enabled: true }}\n    rate_limit: {{ enabled: false }}\n    dns_upstream: {{ servers: [\"{closed}\"], \
         timeout: 300ms, attempt_timeout: 100ms }}\n{more}",
        hosts.display()
    );
    (dir, TestSidecar::start(&yaml).await)
}

#[tokio::test]
async fn a_look_up_tells_which_filter_answered_and_why() {
    let (_dir, sidecar) = with_hosts("").await;
    let found = sidecar.cli_json(&["dns", "lookup", "known.test", "--trace"]).await;
    assert_eq!((&found["rcode"], &found["filter"]), (&"NOERROR".into(), &"hosts".into()));
    let trace = found["trace"].as_array().unwrap();
    let filters: Vec<_> = trace.iter().map(|step| step["filter"].as_str().unwrap()).collect();
    let find = |name: &str| trace.iter().find(|step| step["filter"] == name).unwrap();
    assert_eq!(filters[0], "hosts", "{filters:?}");
    assert!(find("hosts")["steps"][0]["what"].as_str().unwrap().starts_with("answered"), "{found:#}");
    assert_eq!(
        (&find("rate_limit")["enabled"], &find("rate_limit")["layer"]),
        (&false.into(), &"yaml".into())
    );
    assert_eq!(find("dns_cache")["reached"], Value::Null, "{found:#}");

    let people = sidecar.cli(&["dns", "lookup", "unknown.test", "--trace"]).await;
    assert_eq!(people.code, 1, "nobody had an answer: {people:?}");
    for part in ["SERVFAIL", "not among the 1 names", "switched off by yaml", "no answer:"] {
        assert!(people.stdout.contains(part), "{part} in\n{}", people.stdout);
    }
    let untraced = sidecar.cli_json(&["dns", "lookup", "known.test"]).await;
    assert_eq!(untraced.get("trace"), None);
}

#[tokio::test]
async fn a_tap_shows_queries_as_they_are_answered() {
    use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
    // The log takes no query that went well, so nobody but the tap asks for its line.
    let (dir, sidecar) = with_hosts("telemetry: { flows: { dns: errors } }\n").await;
    let door = sidecar.listener("dns").await;
    let follow = ["tap", "dns", "--json", "--limit", "1", "--for", "60s", "--filter", "name=known.test"];
    let mut tap = sidecar.command(&follow).named("tap").spawn(dir.path());
    tap.wait_for_log("it listens", |line| line.contains("live").then_some(())).await;
    dns::ask(door, "unknown.test.", RecordType::A).await.unwrap();
    dns::ask(door, "Known.test.", RecordType::A).await.unwrap();
    assert!(tap.wait_for_end(Duration::from_secs(30)).await.success(), "{}", tap.log());
    let log = tap.log();
    let flows: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let [flow] = &flows[..] else { panic!("{log}") };
    assert_eq!((&flow["kind"], &flow["outcome"]), (&"dns".into(), &"ok".into()));
    let detail = &flow["detail"];
    for (key, value) in [
        ("name", "known.test"),
        ("type", "A"),
        ("rcode", "noerror"),
        ("source", "hosts"),
        ("filter", "hosts"),
        ("transport", "udp"),
    ] {
        assert_eq!(detail[key], value, "{key} of {flow:#}");
    }
    assert!(detail["flags"].as_str().unwrap().contains("aa"), "{flow:#}");
    assert!(flow["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{flow:#}");
    assert!(!sidecar.log().contains("name=known.test"), "the log was told not to keep it");

    let timed = sidecar.cli(&["tap", "rpc", "--for", "100ms"]).await;
    assert_eq!((timed.code, timed.stdout.as_str()), (0, ""), "{timed:?}");
    assert!(timed.stderr.contains("0 flows"), "{timed:?}");
    assert_eq!(sidecar.cli(&["tap", "nothing"]).await.code, 1);
    let wrong = sidecar.cli(&["tap", "dns", "--filter", "nam=x"]).await;
    assert!(wrong.code == 1 && wrong.stderr.contains("name"), "{wrong:?}");
}

#[tokio::test]
async fn replies_and_their_reasons_are_counted() {
    use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
    let (_dir, sidecar) = with_hosts("").await;
    let door = sidecar.listener("dns").await;
    for name in ["known.test.", "known.test.", "unknown.test."] {
        dns::ask(door, name, RecordType::A).await.unwrap();
    }
    let replies =
        async |labels: &[(&str, &str)]| sidecar.metric("qudag_sidecar_dns_replies_total", labels).await;
    assert_eq!(replies(&[("source", "hosts"), ("rcode", "noerror")]).await, 2.0);
    assert_eq!(replies(&[("rcode", "servfail")]).await, 1.0);
    assert_eq!(sidecar.metric("qudag_sidecar_dns_extended_errors_total", &[]).await, 1.0);
}

#[tokio::test]
async fn the_servers_that_are_asked_are_shown_and_gone_when_they_are_removed() {
    use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
    let (first, second) = (FaultyDns::start(), FaultyDns::start());
    let yaml = |servers: &str| {
        format!(
            "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_upstream: {{ {servers} }}\n"
        )
    };
    let both = format!("servers: [\"{}\"], direct: [\"tcp://{}\"]", first.addr(), second.addr());
    let sidecar = TestSidecar::start(&yaml(&both)).await;
    dns::ask(sidecar.listener("dns").await, "known.test.", RecordType::A).await.unwrap();
    let shown = sidecar.cli_json(&["dns", "servers"]).await;
    let servers = shown["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 2, "{shown:#}");
    let expected = [
        (first.addr().to_string(), "servers", "udp", 1),
        (format!("tcp://{}", second.addr()), "direct", "tcp", 0),
    ];
    for (server, (name, list, protocol, answers)) in servers.iter().zip(expected) {
        assert_eq!(
            (&server["server"], &server["list"], &server["protocol"], &server["answers"]),
            (&name.into(), &list.into(), &protocol.into(), &answers.into()),
            "{shown:#}"
        );
        assert_eq!((&server["healthy"], &server["breaker"]), (&true.into(), &"closed".into()), "{shown:#}");
    }
    let people = sidecar.cli(&["dns", "servers"]).await.ok();
    for part in ["SERVER", &first.addr().to_string(), "healthy", "closed", "direct"] {
        assert!(people.contains(part), "{part} in\n{people}");
    }

    // The gauges of a server that a live edit removes go with it.
    let gauges = async |addr: SocketAddr| {
        let scraped = sidecar.admin("GET", "/metrics", Value::Null).await.ok();
        let (label, of) = (format!("{addr}\""), "qudag_sidecar_dns_upstream_");
        let gauges = ["healthy", "breaker_state", "in_flight"].map(|gauge| format!("{of}{gauge}{{"));
        let shown = |line: &&str| line.contains(&label) && gauges.iter().any(|gauge| line.starts_with(gauge));
        scraped.as_str().unwrap().lines().filter(shown).count()
    };
    assert_eq!((gauges(first.addr()).await, gauges(second.addr()).await), (3, 3));
    sidecar.reload_with(&yaml(&format!("servers: [\"{}\"]", first.addr()))).await.ok();
    eventually(Duration::from_secs(20), "the gauges are gone", async || {
        (gauges(second.addr()).await == 0).then_some(())
    })
    .await;
    assert_eq!(gauges(first.addr()).await, 3);
    let shown = sidecar.cli_json(&["dns", "servers"]).await;
    assert_eq!(shown["servers"].as_array().unwrap().len(), 1, "{shown:#}");
}

#[tokio::test]
async fn the_caches_figures_have_units_and_a_flush_tells_what_is_left() {
    let (_dir, sidecar) = with_hosts("").await;
    let stats = sidecar.cli(&["cache", "stats"]).await.ok();
    for part in ["hits", "hit ratio", "max bytes", "MiB"] {
        assert!(stats.contains(part), "{part} in\n{stats}");
    }
    assert_eq!(sidecar.cli(&["cache", "flush"]).await.ok(), "0 entries dropped, 0 left\n");
}

#[tokio::test]
async fn a_rebuild_asks_the_servers_again_for_all_that_is_held() {
    use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
    needs_program!("unbound");
    let unbound = Unbound::start(&["a.test. 200 IN A 192.0.2.1", "b.test. 200 IN A 192.0.2.2"]).await;
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true }}\n    \
         dns_upstream: {{ servers: [\"{}\"] }}\n",
        unbound.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("dns").await;
    for name in ["a.test.", "b.test.", "a.test."] {
        dns::ask(door, name, RecordType::A).await.unwrap();
    }
    assert_eq!((unbound.queries("a.test."), unbound.queries("b.test.")), (1, 1));
    let done = sidecar.cli_json(&["cache", "rebuild"]).await;
    assert_eq!(done, serde_json::json!({"rebuilding": false, "total": 2, "done": 2, "failed": 0}));
    assert_eq!((unbound.queries("a.test."), unbound.queries("b.test.")), (2, 2));
    assert_eq!(sidecar.cli(&["cache", "rebuild"]).await.ok(), "2 entries asked for again\n");

    sidecar.toggle("dns.dns_cache", false).await;
    let off = sidecar.cli(&["cache", "rebuild"]).await;
    assert_eq!(off.code, 75, "not now: {off:?}");
    assert!(off.stderr.contains("switched off"), "{off:?}");
}

#[tokio::test]
async fn implementations_are_measured_without_a_sidecar() {
    let bench = ["crypto", "bench", "--time", "100ms"];
    let measured = run(&bench).args(["--json"]).output().await;
    let answer: Value = serde_json::from_str(&measured.stdout).unwrap();
    assert_eq!(answer["algorithm"], "ml-dsa-65-ipd");
    let speeds = answer["speeds"].as_array().unwrap();
    let ways = speeds.iter().filter(|speed| speed["backend"] == "portable");
    let ways: Vec<_> = ways.map(|way| (way["signatures"].as_u64(), way["keys_ready"].as_bool())).collect();
    let all = [(1, true), (1, false), (8, true), (8, false), (64, true)];
    assert_eq!(ways, all.map(|(signatures, ready)| (Some(signatures), Some(ready))));
    for speed in speeds {
        let figure = |name: &str| speed[name].as_f64().unwrap();
        assert!(figure("cpu_us") > 0.0 && figure("p99_us") > 0.0, "{speed}");
    }

    let one = run(&bench).args(["--backend", "portable"]).output().await;
    assert!(one.stdout.starts_with("SIGNATURES  KEYS   portable\n"), "{one:?}");
    // A wrong implementation is not measured.
    let fault = ("QUDAG_CRYPTO_FAULT", "wrong-answer:portable");
    if run(&["crypto", "selftest", "--in-process"]).env(fault.0, fault.1).output().await.code != 0 {
        let wrong = run(&bench).env(fault.0, fault.1).output().await;
        assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
        assert!(wrong.stderr.contains("portable judged"), "{}", wrong.stderr);
    }
    let unknown = run(&bench).args(["--backend", "mmx"]).output().await;
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("portable, avx2 and avx512 are"), "{}", unknown.stderr);
}
