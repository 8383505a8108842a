//! A real js-libp2p peer, the program of `tests/js-libp2p`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::node::newest;
use crate::program::{Start, find};
use crate::talker::Talker;

/// What js-libp2p runs on, at least.
const NODE_JS: u32 = 18;

/// Whether it can run here; if not, why.
///
/// # Errors
/// When something is missing, with how to get it.
pub fn available() -> Result<(), String> {
    let node = find("node").ok_or("node is not installed")?;
    let output = Command::new(node).arg("--version").output().map_err(|error| format!("node: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout);
    let major = version.trim().strip_prefix('v').and_then(|rest| rest.split('.').next()?.parse().ok());
    if major.is_none_or(|major: u32| major < NODE_JS) {
        return Err(format!("js-libp2p needs Node.js {NODE_JS}, here is {}", version.trim()));
    }
    if !script().is_file() {
        return Err("js-libp2p is not installed; tests/run does it".into());
    }
    Ok(())
}

fn script() -> PathBuf {
    newest("js-libp2p-", "peer.mjs")
}

/// A js-libp2p peer that listens on a free port of 127.0.0.1 and answers pings.
pub struct JsPeer {
    talker: Talker,
    ready: Value,
    _dir: TempDir,
}

/// What came of pings.
#[derive(Clone, Debug)]
pub struct Pings {
    /// How many were answered.
    pub answered: u64,
    /// Why the others were not.
    pub failures: Vec<String>,
}

impl JsPeer {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (talker, ready) = Talker::start("js-libp2p", Start::new("node").arg(script()), dir.path()).await;
        Self { talker, ready, _dir: dir }
    }

    /// Its peer id.
    pub fn peer_id(&self) -> &str {
        self.ready["peer_id"].as_str().unwrap()
    }

    /// Where it listens.
    pub fn p2p(&self) -> SocketAddr {
        let multiaddr = self.ready["listening"][0].as_str().unwrap();
        let parts: Vec<&str> = multiaddr.split('/').collect();
        SocketAddr::new(parts[2].parse().unwrap(), parts[4].parse().unwrap())
    }

    /// Pings a peer that an IPv4 address leads to, one after the other: on one connection, or each from a `fresh` peer, on a
    /// connection of its own.
    ///
    /// # Panics
    /// When it does not say what came of them within 40 s.
    pub async fn ping(&mut self, at: SocketAddr, peer_id: &str, times: u32, fresh: bool) -> Pings {
        let to = format!("/ip4/{}/tcp/{}/p2p/{peer_id}", at.ip(), at.port());
        let command = json!({ "do": "ping", "to": to, "times": times, "fresh": fresh });
        let told = self.talker.command(&command).await.unwrap();
        let failures = told["failures"].as_array().unwrap().iter().map(ToString::to_string);
        Pings { answered: told["answered"].as_u64().unwrap(), failures: failures.collect() }
    }
}
