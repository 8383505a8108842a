//! Hosts one unmodified QuDAG node: `NodeRunner`, its peer-to-peer side, and `RpcServer` over TCP, over a
//! Unix socket, or both. The published crates do all the work.
//!
//! Standard output carries JSON lines: first `{"event":"ready",…}`, then what happens on the network, and one
//! answer to each command. Standard input takes JSON lines: `{"do":"dial","to":MULTIADDR}`,
//! `{"do":"subscribe","topic":T}`, `{"do":"publish","topic":T,"text":S}`, `{"do":"peers"}`, and for loads
//! `{"do":"load","topic":T,"bytes":N,"per_second":N,"for_seconds":N}` and `{"do":"tally","topic":T,"forget":BOOL}`, see
//! `load.rs`; their messages are counted rather than printed. The log of the crates goes to standard error. The program ends
//! when standard input does, so it never outlives the test that started it.

mod bound;
mod load;

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use libp2p::gossipsub::{ConfigBuilder, ValidationMode};
use load::{Load, Tallies};
use qudag_crypto::MlDsaPublicKey;
use qudag_network::p2p::{NetworkConfig, P2PEvent};
use qudag_network::P2PHandle;
use qudag_protocol::rpc_server::RpcCommand;
use qudag_protocol::{NodeRunner, NodeRunnerAdapter, NodeRunnerConfig, RpcServer};
use serde::Deserialize;
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, oneshot, RwLock};

type Failure = Box<dyn Error + Send + Sync>;
type Commands = mpsc::Receiver<(RpcCommand, oneshot::Sender<Value>)>;

#[derive(Parser)]
#[command(about = "Runs the unmodified QuDAG node crates with their RPC server open, for tests")]
struct Args {
    /// Where peers connect; may be repeated.
    #[arg(long, default_value = "/ip4/127.0.0.1/tcp/0")]
    listen: Vec<String>,
    /// Port of the RPC server on 127.0.0.1; 0 takes a free one.
    #[arg(long)]
    rpc_tcp: Option<u16>,
    /// Path of the RPC server's Unix socket.
    #[arg(long)]
    rpc_unix: Option<PathBuf>,
    /// A client whose signed calls the RPC servers take, and the file of its public key; may be repeated. Calls without a right
    /// signature are refused then.
    #[arg(long, value_name = "CLIENT=FILE", value_parser = auth_key)]
    auth_key: Vec<(String, PathBuf)>,
    /// Announce on and learn from the local network, which the crates do by default.
    #[arg(long)]
    mdns: bool,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Command {
    Dial { to: String },
    Subscribe { topic: String },
    Publish { topic: String, text: String },
    Peers,
    Load(Load),
    Tally { topic: String, forget: bool },
}

/// What has been published and received of loads.
#[derive(Default)]
struct Loads {
    next: AtomicU64,
    tallies: Mutex<Tallies>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut bound = bound::watch_log();

    let mut runner = NodeRunner::new(NodeRunnerConfig { p2p_config: network(&args)?, ..Default::default() });
    runner.start().await?;
    let peer = runner.p2p_handle().clone().ok_or("the node has no peer-to-peer side")?;
    let runner = Arc::new(RwLock::new(runner));

    let (stop, mut stopped) = mpsc::channel(1);
    let mut rpc = Vec::new();
    if let Some(port) = args.rpc_tcp {
        rpc.push(RpcServer::new_tcp(port));
    }
    if let Some(path) = &args.rpc_unix {
        rpc.push(RpcServer::new_unix(path.to_string_lossy().into_owned()));
    }
    let mut servers = Vec::new();
    let mut listening = Vec::new();
    for (mut server, commands) in rpc {
        for (client, file) in &args.auth_key {
            server.add_auth_key(client.clone(), MlDsaPublicKey::from_bytes(&std::fs::read(file)?)?).await;
        }
        server.set_node_handle(Arc::new(RwLock::new(NodeRunnerAdapter::new(Arc::clone(&runner))))).await;
        server.start().await?;
        listening.push(bound.recv().await.ok_or("the log ended")?);
        tokio::spawn(obey(commands, stop.clone()));
        servers.push(server);
    }

    while peer.listeners().await.len() < args.listen.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    say(json!({
        "event": "ready",
        "peer_id": peer.local_peer_id().await.to_string(),
        "listening": peer.listeners().await.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rpc": listening,
    }));

    let loads = Arc::new(Loads::default());
    let events = tokio::spawn(report(peer.clone(), Arc::clone(&loads)));
    tokio::select! {
        result = serve_commands(peer, &loads) => result?,
        _ = stopped.recv() => {}
    }
    events.abort();
    Ok(())
}

fn auth_key(text: &str) -> Result<(String, PathBuf), &'static str> {
    let (client, file) = text.split_once('=').ok_or("not CLIENT=FILE")?;
    Ok((client.to_owned(), file.into()))
}

/// The crates' default network settings, but: listening where the test says, and a gossip heartbeat of 200 ms so
/// that a mesh forms at once.
fn network(args: &Args) -> Result<NetworkConfig, Failure> {
    let gossip = ConfigBuilder::default()
        .heartbeat_interval(Duration::from_millis(200))
        .validation_mode(ValidationMode::Strict)
        .build()?;
    Ok(NetworkConfig {
        listen_addrs: args.listen.clone(),
        enable_mdns: args.mdns,
        gossipsub_config: Some(gossip),
        // Random by default; peers that are to read each other's messages must share it.
        obfuscation_key: [7; 32],
        ..Default::default()
    })
}

/// Answers the RPC method `stop`, which the server hands to its host.
async fn obey(mut commands: Commands, stop: mpsc::Sender<()>) {
    while let Some((command, answer)) = commands.recv().await {
        let stopping = matches!(command, RpcCommand::Stop);
        let _ = answer.send(json!({ "status": if stopping { "stopping" } else { "ignored" } }));
        if stopping {
            // The reply is written by another task; give it its turn.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = stop.send(()).await;
        }
    }
}

/// Prints what happens on the network, and counts what belongs to a load.
async fn report(peer: P2PHandle, loads: Arc<Loads>) {
    while let Some(event) = peer.next_event().await {
        match event {
            P2PEvent::PeerConnected(id) => say(json!({ "event": "connected", "peer_id": id.to_string() })),
            P2PEvent::PeerDisconnected(id) => {
                say(json!({ "event": "disconnected", "peer_id": id.to_string() }))
            }
            P2PEvent::MessageReceived { peer_id, topic, data } => {
                if !loads.tallies.lock().expect("no panic").take(&topic, &data) {
                    say(json!({
                        "event": "message",
                        "from": peer_id.to_string(),
                        "topic": topic,
                        "text": String::from_utf8_lossy(&data),
                    }));
                }
            }
            _ => {}
        }
    }
}

async fn serve_commands(peer: P2PHandle, loads: &Loads) -> Result<(), Failure> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(command) => execute(&peer, loads, command).await,
            Err(error) => Err(error.into()),
        };
        match answer {
            Ok(value) => say(json!({ "event": "done", "value": value })),
            Err(error) => say(json!({ "event": "failed", "why": error.to_string() })),
        }
    }
    Ok(())
}

async fn execute(peer: &P2PHandle, loads: &Loads, command: Command) -> Result<Value, Failure> {
    match command {
        Command::Dial { to } => peer.dial(to.parse()?).await?,
        Command::Subscribe { topic } => peer.subscribe(&topic).await?,
        Command::Publish { topic, text } => peer.publish(&topic, text.into_bytes()).await?,
        Command::Peers => {
            let peers = peer.connected_peers().await;
            return Ok(peers.iter().map(ToString::to_string).collect());
        }
        Command::Load(load) => {
            let told = load::publish(peer, load, loads.next.load(Ordering::Relaxed)).await?;
            let next = told["next"].as_u64().unwrap_or_default();
            loads.next.store(next, Ordering::Relaxed);
            return Ok(told);
        }
        Command::Tally { topic, forget } => {
            return Ok(loads.tallies.lock().expect("no panic").tell(&topic, forget));
        }
    }
    Ok(Value::Null)
}

fn say(line: Value) {
    println!("{line}");
}
