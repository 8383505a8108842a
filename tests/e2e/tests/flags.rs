//! The layers that decide whether a filter is on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::{Setup, TestSidecar, Unbound, eventually, needs_program};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(10);

/// A name server that gives `pinned.test` one address, and a sidecar whose hosts file gives it another one.
struct Pinned {
    unbound: Unbound,
    dir: tempfile::TempDir,
}

impl Pinned {
    async fn new() -> Self {
        Self::with(&["pinned.test".to_owned()]).await
    }

    async fn with(names: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts: String = names.iter().map(|name| format!("192.0.2.50 {name}\n")).collect();
        std::fs::write(dir.path().join("hosts"), hosts).unwrap();
        let records: Vec<String> = names.iter().map(|name| format!("{name}. 60 IN A 192.0.2.99")).collect();
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        Self { unbound: Unbound::start(&records).await, dir }
    }

    fn yaml(&self) -> String {
        format!(
            "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    hosts: {{ enabled: true, file: \
             \"{hosts}\" }}\n    dns_cache: {{ enabled: false }}\n    dns_upstream: {{ servers: [\"{server}\"] \
             }}\nflags: {{ kill_file: \"{kill}\" }}\n",
            hosts = self.dir.path().join("hosts").display(),
            server = self.unbound.addr(),
            kill = self.kill_file().display()
        )
    }

    fn kill_file(&self) -> std::path::PathBuf {
        self.dir.path().join("kill")
    }
}

/// Whether the hosts file answers, as a client sees it.
async fn pinned(sidecar: &TestSidecar) -> bool {
    is_pinned(sidecar.listener("dns").await, "pinned.test").await
}

async fn is_pinned(server: SocketAddr, name: &str) -> bool {
    let answer = dns::ask(server, &format!("{name}."), RecordType::A).await.unwrap();
    match dns::addresses(&answer)[..] {
        [address] if address == "192.0.2.50".parse::<IpAddr>().unwrap() => true,
        [address] if address == "192.0.2.99".parse::<IpAddr>().unwrap() => false,
        _ => panic!("{answer:?}"),
    }
}

async fn wait_pinned(sidecar: &TestSidecar, wanted: bool, what: &str) {
    eventually(PATIENCE, what, async || (pinned(sidecar).await == wanted).then_some(())).await;
}

#[tokio::test]
async fn commands_switch_a_filter() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let sidecar = TestSidecar::start(&world.yaml()).await;
    assert!(pinned(&sidecar).await);
    assert_eq!(sidecar.filter("dns", "hosts").await["layer"], "yaml");
    sidecar.cli(&["filters", "disable", "dns.hosts"]).await.ok();
    assert!(!pinned(&sidecar).await);
    assert_eq!(sidecar.filter("dns", "hosts").await["layer"], "override");
    sidecar.cli(&["filters", "enable", "hosts"]).await.ok();
    assert!(pinned(&sidecar).await);
    let listed = sidecar.cli_json(&["filters", "list"]).await;
    assert!(listed.to_string().contains("\"hosts\""), "{listed}");
    let unknown = sidecar.cli(&["filters", "disable", "dns.hots"]).await;
    assert_ne!(unknown.code, 0);
    assert!(unknown.stderr.contains("hosts"), "a hint: {}", unknown.stderr);
}

#[tokio::test]
async fn an_override_ends_by_itself() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let sidecar = TestSidecar::start(&world.yaml()).await;
    sidecar.post("/filters/dns.hosts/disable", json!({ "ttl": "2s" })).await;
    assert!(!pinned(&sidecar).await);
    let filter = sidecar.filter("dns", "hosts").await;
    assert!(filter["expires_in_seconds"].as_u64().is_some_and(|left| left <= 2), "{filter}");
    wait_pinned(&sidecar, true, "the override ends").await;
    assert_eq!(sidecar.filter("dns", "hosts").await["layer"], "yaml");
}

#[tokio::test]
async fn an_override_survives_a_restart() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let mut sidecar = TestSidecar::start(&world.yaml()).await;
    sidecar.toggle("dns.hosts", false).await;
    sidecar.kill();
    sidecar.start_again().await;
    assert!(!pinned(&sidecar).await);
}

#[tokio::test]
async fn the_kill_file_switches_off_and_back() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let sidecar = TestSidecar::start(&world.yaml()).await;
    sidecar.toggle("dns.hosts", true).await;
    std::fs::write(world.kill_file(), "").unwrap();
    wait_pinned(&sidecar, false, "an empty kill file switches everything off").await;
    assert_eq!(sidecar.filter("dns", "hosts").await["layer"], "kill_file");
    std::fs::write(world.kill_file(), "dns_cache\n").unwrap();
    wait_pinned(&sidecar, true, "a kill file that names another filter leaves this one on").await;
    std::fs::write(world.kill_file(), "dns.hosts\n").unwrap();
    wait_pinned(&sidecar, false, "a kill file that names the filter switches it off").await;
    std::fs::remove_file(world.kill_file()).unwrap();
    wait_pinned(&sidecar, true, "without the kill file the filter is on again").await;
}

#[tokio::test]
async fn the_variable_switches_everything_off() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let env = [("QUDAG_DISABLE_ALL_OPTIMIZATIONS", "1")];
    let sidecar = TestSidecar::with(Setup { yaml: &world.yaml(), env: &env, ..Setup::default() }).await;
    assert!(!pinned(&sidecar).await);
    sidecar.toggle("dns.hosts", true).await;
    assert!(!pinned(&sidecar).await, "an override cannot switch on what the variable switched off");
    let explained = sidecar.cli_json(&["flags", "explain", "dns.hosts"]).await;
    let layers =
        explained.pointer("/0/layers").or_else(|| explained.get("layers")).unwrap().as_array().unwrap();
    let deciding: Vec<_> = layers.iter().filter(|layer| layer["decides"] == true).collect();
    assert_eq!(deciding.len(), 1, "{explained:#}");
    assert_eq!(deciding[0]["layer"], "environment", "{explained:#}");
}

#[tokio::test]
async fn a_variable_overrides_a_key() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let env = [("QUDAG_SIDECAR__FILTERS__DNS__HOSTS__ENABLED", "false")];
    let sidecar = TestSidecar::with(Setup { yaml: &world.yaml(), env: &env, ..Setup::default() }).await;
    assert!(!pinned(&sidecar).await);
    let origin = sidecar.cli(&["config", "show", "--origin"]).await.ok();
    assert!(origin.contains("QUDAG_SIDECAR__FILTERS__DNS__HOSTS__ENABLED"), "{origin}");
}

#[tokio::test]
async fn bypass_is_everything_off_until_it_ends() {
    needs_program!("unbound");
    let world = Pinned::new().await;
    let sidecar = TestSidecar::start(&world.yaml()).await;
    sidecar.cli(&["bypass", "on"]).await.ok();
    assert!(!pinned(&sidecar).await);
    assert_eq!(sidecar.filter("dns", "hosts").await["layer"], "bypass");
    assert_eq!(sidecar.cli_json(&["bypass", "status"]).await["bypass"], true);
    sidecar.cli(&["bypass", "off"]).await.ok();
    assert!(pinned(&sidecar).await);
}

#[tokio::test]
async fn rollout_sends_a_share_past_the_filter() {
    needs_program!("unbound");
    // One client's look-ups of one name are one flow, so each name falls on one side, for good.
    let names: Vec<String> = (0..200).map(|number| format!("n{number}.test")).collect();
    let world = Pinned::with(&names).await;
    let sidecar = TestSidecar::start(&world.yaml()).await;
    sidecar.post("/filters/dns.hosts/enable", json!({ "rollout": 50 })).await;
    let dns = sidecar.listener("dns").await;
    let mut first = Vec::new();
    for name in &names {
        first.push(is_pinned(dns, name).await);
    }
    let with = first.iter().filter(|pinned| **pinned).count();
    // 6 standard deviations.
    assert!((58..=142).contains(&with), "{with} of 200");
    for (name, before) in names.iter().zip(&first) {
        assert_eq!(is_pinned(dns, name).await, *before, "{name} moved");
    }
    for arm in ["with", "without"] {
        let labels = [("kind", "dns"), ("filter", "hosts"), ("arm", arm)];
        assert!(sidecar.metric("qudag_sidecar_filter_calls_total", &labels).await > 0.0, "{arm}");
    }
    // Who is in at 50 % stays in at 80 %.
    sidecar.post("/filters/dns.hosts/enable", json!({ "rollout": 80 })).await;
    for (name, before) in names.iter().zip(&first) {
        assert!(is_pinned(dns, name).await || !before, "{name} fell out");
    }
}
