//! Real QuDAG nodes: the stock program, and the published crates hosted by `tests/node`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::program::{Program, Start};
use crate::talker::Talker;

/// The version of the stock program.
pub const VERSION: &str = "0.5.0";

/// Whether both node programs are there; if not, why.
///
/// # Errors
/// When one is missing, with how to get it.
pub fn available() -> Result<(), String> {
    for program in [stock(), host()] {
        if !program.is_file() {
            return Err(format!("{} is missing; tests/run builds it", program.display()));
        }
    }
    Ok(())
}

/// `$QUDAG_CACHE`, or `qudag-sidecar` in the user's cache folder: where `tests/run` keeps what it builds once.
pub fn cache() -> PathBuf {
    if let Some(path) = std::env::var_os("QUDAG_CACHE") {
        return path.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("qudag-sidecar")
}

fn stock() -> PathBuf {
    let path = format!("qudag-cli-{VERSION}/bin/qudag");
    std::env::var_os("QUDAG_BIN").map_or_else(|| cache().join(path), PathBuf::from)
}

fn host() -> PathBuf {
    if let Some(path) = std::env::var_os("QUDAG_NODE_HOST") {
        return path.into();
    }
    newest("node-", "qudag-node-host")
}

/// A file of the newest of the cache's folders whose name begins so; the rest of the name is a key of what is inside.
pub(crate) fn newest(prefix: &str, file: &str) -> PathBuf {
    let built = std::fs::read_dir(cache()).into_iter().flatten().flatten();
    let built = built.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let built = built.map(|entry| entry.path().join(file)).filter(|path| path.is_file());
    built.max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok()).unwrap_or_default()
}

/// The stock program `qudag start`, in a namespace: it announces itself by mDNS on every interface.
pub struct QudagNode {
    program: Program,
    peer_id: String,
    _dir: TempDir,
}

impl QudagNode {
    /// Starts a node that listens on `port` of every address, and dials `peers` (multiaddrs that end in `/p2p/ID`).
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(namespace: &Namespace, name: &str, port: u16, peers: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut start = Start::new(stock()).named(name).in_namespace(Some(namespace));
        start = start.args(["start", "--port", &port.to_string(), "--data-dir"]).arg(dir.path());
        for peer in peers {
            start = start.args(["--peer", peer]);
        }
        let mut program = start.env("HOME", dir.path()).env("RUST_LOG", "info").spawn(dir.path());
        let id = |line: &str| line.split_once("Local peer ID: ").map(|(_, id)| id.trim().to_owned());
        let peer_id = program.wait_for_log("a peer id", id).await;
        let listening = format!("/tcp/{port}");
        let listens =
            |line: &str| (line.contains("Listening on") && line.ends_with(&listening)).then_some(());
        program.wait_for_log("a listener", listens).await;
        Self { program, peer_id, _dir: dir }
    }

    /// Its peer id, another one at every start.
    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Waits until it logs `Peer connected: ID`.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_connected(&mut self, peer_id: &str) {
        let wanted = format!("Peer connected: {peer_id}");
        let found = |line: &str| line.contains(&wanted).then_some(());
        self.program.wait_for_log_within(Duration::from_secs(40), &wanted, found).await;
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.program.log()
    }
}

/// What a [`HostedNode`] opens.
#[derive(Default)]
pub struct Host<'a> {
    /// Where it runs; the test's own namespace if there is none.
    pub namespace: Option<&'a Namespace>,
    /// Its libp2p listener as a multiaddr; a free port of 127.0.0.1 if there is none.
    pub listen: Option<&'a str>,
    /// The RPC server's port on 127.0.0.1; 0 takes a free one.
    pub rpc_tcp: Option<u16>,
    /// The RPC server's Unix socket.
    pub rpc_unix: Option<&'a Path>,
    /// The token that the RPC server asks for.
    pub rpc_token: Option<&'a str>,
    /// The client whose signed calls the RPC server takes, and the file of its public key.
    pub rpc_key: Option<(&'a str, &'a Path)>,
}

/// The published crates with their RPC server open, mDNS off.
pub struct HostedNode {
    talker: Talker,
    ready: Value,
    _dir: TempDir,
}

impl HostedNode {
    /// Starts it and waits until it listens everywhere.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(host_settings: &Host<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut start = Start::new(host()).in_namespace(host_settings.namespace);
        if let Some(listen) = host_settings.listen {
            start = start.args(["--listen", listen]);
        }
        if let Some(port) = host_settings.rpc_tcp {
            start = start.args(["--rpc-tcp", &port.to_string()]);
        }
        if let Some(path) = host_settings.rpc_unix {
            start = start.arg("--rpc-unix").arg(path);
        }
        if let Some(token) = host_settings.rpc_token {
            start = start.env("RPC_AUTH_TOKEN", token);
        }
        if let Some((client, file)) = host_settings.rpc_key {
            start = start.args(["--auth-key", &format!("{client}={}", file.display())]);
        }
        let (talker, ready) = Talker::start("node-host", start, dir.path()).await;
        Self { talker, ready, _dir: dir }
    }

    /// Its peer id.
    pub fn peer_id(&self) -> &str {
        self.ready["peer_id"].as_str().unwrap()
    }

    /// Its first multiaddr, without `/p2p/ID`.
    pub fn multiaddr(&self) -> &str {
        self.ready["listening"][0].as_str().unwrap()
    }

    /// Its first libp2p listener as a socket address.
    pub fn p2p(&self) -> SocketAddr {
        let parts: Vec<&str> = self.multiaddr().split('/').collect();
        SocketAddr::new(parts[2].parse().unwrap(), parts[4].parse().unwrap())
    }

    /// The RPC server's TCP address.
    pub fn rpc_tcp(&self) -> SocketAddr {
        let listening = self.ready["rpc"].as_array().unwrap();
        listening.iter().find_map(|address| address.as_str()?.parse().ok()).unwrap()
    }

    /// Gives it a command and waits for its answer.
    ///
    /// # Errors
    /// With what the node says when it fails.
    pub async fn command(&mut self, command: &Value) -> Result<Value, String> {
        self.talker.command(command).await
    }

    /// Subscribes to a gossip topic.
    pub async fn subscribe(&mut self, topic: &str) {
        self.command(&json!({ "do": "subscribe", "topic": topic })).await.unwrap();
    }

    /// Dials a multiaddr.
    pub async fn dial(&mut self, to: &str) {
        self.command(&json!({ "do": "dial", "to": to })).await.unwrap();
    }

    /// Publishes to a gossip topic.
    ///
    /// # Errors
    /// With what the node says: that it knows no peer on this topic yet, for instance.
    pub async fn publish(&mut self, topic: &str, text: &str) -> Result<Value, String> {
        self.command(&json!({ "do": "publish", "topic": topic, "text": text })).await
    }

    /// The next event that `wanted` accepts; those before it are forgotten.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next_event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.talker.next_event(what, wanted).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{self, Server};

    #[tokio::test]
    async fn stock_nodes_meet_over_a_cable() {
        crate::needs_node!();
        crate::needs_namespaces!();
        let (here, there) = (Namespace::new(), Namespace::new());
        here.connect("10.91.0.1/24", &there, "10.91.0.2/24");
        let mut b = QudagNode::start(&there, "b", 8000, &[]).await;
        let way = format!("/ip4/10.91.0.2/tcp/8000/p2p/{}", b.peer_id());
        let mut a = QudagNode::start(&here, "a", 8000, &[way]).await;
        let (id_a, id_b) = (a.peer_id().to_owned(), b.peer_id().to_owned());
        a.wait_connected(&id_b).await;
        b.wait_connected(&id_a).await;
    }

    #[tokio::test]
    async fn hosted_nodes_gossip_and_answer() {
        crate::needs_node!();
        let mut a = HostedNode::start(&Host { rpc_tcp: Some(0), ..Host::default() }).await;
        let mut b = HostedNode::start(&Host::default()).await;
        a.subscribe("t").await;
        b.subscribe("t").await;
        a.dial(&format!("{}/p2p/{}", b.multiaddr(), b.peer_id())).await;
        let published = async || a.publish("t", "hello").await.ok();
        crate::eventually(Duration::from_secs(20), "the message is taken", published).await;
        let message = b.next_event("a message", |event| event["event"] == "message").await;
        assert_eq!(message["text"], "hello");
        let status = rpc::call(&Server::Tcp(a.rpc_tcp()), "get_status", json!({})).await.unwrap();
        assert_eq!(status["result"]["p2p"]["connected_peers"], 1);
    }
}
