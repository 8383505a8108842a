//! Reloads: by whom, what they change, and what they refuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_kit::program::Signal;
use qudag_kit::sidecar::complete;
use qudag_kit::{EchoPeer, TestSidecar, eventually, peer};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn yaml(max_ttl: u32) -> String {
    format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true, max_ttl: \
         {max_ttl}s }}\n"
    )
}

async fn generation_after(sidecar: &TestSidecar, before: u64) -> u64 {
    eventually(PATIENCE, "a new generation", async || {
        let now = sidecar.generation().await;
        (now > before).then_some(now)
    })
    .await
}

#[tokio::test]
async fn a_renamed_file_is_noticed() {
    let sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.generation().await;
    sidecar.write_config(&yaml(200));
    generation_after(&sidecar, before).await;
    let shown = sidecar.cli(&["config", "show"]).await.ok();
    assert!(shown.contains("200s") || shown.contains("3m 20s") || shown.contains("3m20s"), "{shown}");
}

#[tokio::test]
async fn a_file_written_in_place_is_noticed() {
    let sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.generation().await;
    std::fs::write(sidecar.config(), complete(&yaml(200))).unwrap();
    generation_after(&sidecar, before).await;
}

#[tokio::test]
async fn a_swapped_symlink_is_noticed() {
    let sidecar = TestSidecar::start(&yaml(300)).await;
    // As a ConfigMap is mounted: the file is a link into a folder that is a link to another folder.
    let (dir, config) = (sidecar.dir(), sidecar.config());
    for (folder, ttl) in [("one", 299), ("two", 250)] {
        std::fs::create_dir(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join("sidecar.yaml"), complete(&yaml(ttl))).unwrap();
    }
    let before = sidecar.generation().await;
    std::os::unix::fs::symlink("one", dir.join("data")).unwrap();
    std::os::unix::fs::symlink("data/sidecar.yaml", dir.join("link")).unwrap();
    std::fs::rename(dir.join("link"), &config).unwrap();
    let first = generation_after(&sidecar, before).await;
    std::os::unix::fs::symlink("two", dir.join("new_data")).unwrap();
    std::fs::rename(dir.join("new_data"), dir.join("data")).unwrap();
    generation_after(&sidecar, first).await;
}

#[tokio::test]
async fn hangup_reloads() {
    let mut sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.generation().await;
    sidecar.write_config(&yaml(200));
    sidecar.program().signal(Signal::HUP);
    generation_after(&sidecar, before).await;
    assert!(sidecar.program().ended().is_none());
}

#[tokio::test]
async fn the_command_reloads() {
    let sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.generation().await;
    sidecar.write_config(&yaml(200));
    let applied = sidecar.cli_json(&["reload"]).await;
    assert!(applied["generation"].as_u64().unwrap() > before, "{applied}");
}

#[tokio::test]
async fn listeners_come_and_go() {
    let one = EchoPeer::start().await;
    let two = EchoPeer::start().await;
    let outbound = |peers: &[(&str, &EchoPeer)]| {
        let entries = peers.iter().map(|(name, peer)| {
            format!("      - {{ name: {name}, bind: \"127.0.0.1:0\", to: \"{}\" }}\n", peer.addr())
        });
        format!("listeners:\n  peer:\n    outbound:\n{}", entries.collect::<String>())
    };
    let sidecar = TestSidecar::start(&outbound(&[("one", &one)])).await;
    let first = named(&sidecar, "one").await.unwrap();
    peer::echo(first, 1000).await.unwrap();

    sidecar.reload_with(&outbound(&[("one", &one), ("two", &two)])).await.ok();
    let second = named(&sidecar, "two").await.unwrap();
    assert_eq!(named(&sidecar, "one").await.unwrap(), first, "a listener that stays keeps its port");
    peer::echo(second, 1000).await.unwrap();
    assert_eq!((one.accepted(), two.accepted()), (1, 1));

    // A new target behind the same listener.
    sidecar.reload_with(&outbound(&[("one", &two), ("two", &two)])).await.ok();
    let moved = named(&sidecar, "one").await.unwrap();
    peer::echo(moved, 1000).await.unwrap();
    assert_eq!((one.accepted(), two.accepted()), (1, 2));

    sidecar.reload_with(&outbound(&[("two", &two)])).await.ok();
    assert_eq!(named(&sidecar, "one").await, None);
    let refused = async || tokio::net::TcpStream::connect(moved).await.is_err().then_some(());
    eventually(PATIENCE, "the removed listener refuses", refused).await;
    peer::echo(named(&sidecar, "two").await.unwrap(), 1000).await.unwrap();
}

async fn named(sidecar: &TestSidecar, name: &str) -> Option<std::net::SocketAddr> {
    let status = sidecar.status().await;
    let listeners = status["listeners"].as_array().unwrap().iter();
    let mut found = listeners.filter(|listener| listener["name"].as_str().unwrap().contains(name));
    found.next().map(|listener| listener["addr"].as_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_field_that_needs_a_restart_is_refused_and_nothing_changes() {
    let sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.status().await;
    for change in ["admin: { bind: \"127.0.0.1:1\" }\n", "runtime: { workers: 7 }\n"] {
        let answer = sidecar.reload_with(&format!("{}{change}", yaml(200))).await;
        assert_eq!(answer.status, 422, "{change}: {}", answer.body);
        assert!(answer.body.to_string().contains("restart"), "{change}: {}", answer.body);
        let after = sidecar.status().await;
        assert_eq!(after["generation"], before["generation"], "{change}");
        assert!(!after["config"]["refused"].is_null(), "{change}");
    }
    sidecar.reload_with(&yaml(200)).await.ok();
    assert_eq!(sidecar.status().await["config"]["refused"], Value::Null);
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_refuses_the_whole_reload() {
    let taken = EchoPeer::start().await;
    let sidecar = TestSidecar::start(&yaml(300)).await;
    let before = sidecar.status().await;
    let wanted = format!(
        "{}  rpc: {{ bind: \"{}\" }}\n",
        "listeners:\n  dns: { bind: \"127.0.0.1:0\" }\n",
        taken.addr()
    );
    let answer = sidecar.reload_with(&wanted).await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.to_string().contains(&taken.addr().to_string()), "{}", answer.body);
    let after = sidecar.status().await;
    assert_eq!((&after["generation"], &after["listeners"]), (&before["generation"], &before["listeners"]));
    assert_eq!(after["filters"], before["filters"]);
}

#[tokio::test]
async fn the_last_configuration_that_worked_is_used_at_boot() {
    let mut sidecar = TestSidecar::start(&yaml(300)).await;
    assert_eq!(sidecar.status().await["config"]["origin"], "file");
    sidecar.kill();
    sidecar.write_config("listeners: { dns: { bind: nonsense } }\n");
    sidecar.start_again().await;
    let status = sidecar.status().await;
    assert_eq!(status["config"]["origin"], "last_known_good", "{status:#}");
    assert!(status["config"]["refused"].to_string().contains("listeners.dns.bind"), "{status:#}");
    assert_eq!(sidecar.filter("dns", "dns_cache").await["enabled"], true);
    sidecar.listener("dns").await;
    sidecar.reload_with(&yaml(100)).await.ok();
    assert_eq!(sidecar.status().await["config"]["origin"], "file");
}

#[tokio::test]
async fn a_damaged_copy_is_not_used_at_boot() {
    let mut sidecar = TestSidecar::start(&yaml(300)).await;
    sidecar.kill();
    sidecar.write_config("listeners: { dns: { bind: nonsense } }\n");
    let mut damaged = 0;
    for entry in std::fs::read_dir(sidecar.dir().join("state")).unwrap().flatten() {
        for file in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            let bytes = std::fs::read(file.path()).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            if text.contains("max_ttl") {
                std::fs::write(file.path(), text.replace("max_ttl: 300s", "max_ttl: 299s")).unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1, "one copy is kept");
    let finished = sidecar.command(&["run"]).arg("--config").arg(sidecar.config()).output().await;
    assert_eq!(finished.code, 78, "{finished:?}");
}
