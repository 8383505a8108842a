//! What it takes to decide which way a captured connection goes: its route, and a connection of that route's pool.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use qudag_filter_api::{Address, Env, Lanes, Node, Resolve};
use qudag_filter_common::ListenerSpec;
use qudag_filter_peer::{Decision, PeerFilters, PeerListener};
use serde_json::json;

use super::stand::Stand;
use crate::contenders::Stage;
use crate::measure::{Plan, nanos};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, servers};

const ROUTES: [u32; 3] = [1, 100, 1000];
/// At p99, µs.
const MOST: f64 = 5.0;
/// For the first connection to be made.
const PATIENCE: Duration = Duration::from_secs(10);
/// The multiplier of Knuth's MMIX, which visits destinations in no order that a cache could learn.
const STEP: u64 = 6_364_136_223_846_793_005;

/// All routes are written with addresses.
struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, _: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::NotFound.into())))
    }
}

fn env() -> Env {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let rpc = Address::Tcp(nowhere.into());
    let node = Node { name: "bench".into(), p2p: nowhere.into(), rpc, http: nowhere.into() };
    Env { node: Arc::new(node), resolve: Arc::new(NoNames), service: Arc::default(), lanes: Lanes::default() }
}

/// Where a route leads, in a network that nobody has.
fn destination(number: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 1)) + number), 4001))
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let far = stand.far_end("far", stand.server(servers::echo)?)?;
    let calls = if plan.is_quick() { 20_000 } else { 1_000_000 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let progress = Progress::new("peer, decision", ROUTES.len() as u64);
    let mut rows = Vec::new();
    for routes in ROUTES {
        progress.step("sidecar");
        let outbound: Vec<_> = (0..routes)
            .map(|number| {
                let sidecar = json!({ "to": [far.quic], "name": far.name, "require_tunnel": true });
                json!({ "name": format!("r{number}"), "to": destination(number), "sidecar": sidecar })
            })
            .collect();
        let listener: PeerListener = serde_json::from_value(json!({
            "identity": stand.identity(),
            "capture": { "bind": ["127.0.0.1:4180"], "ports": [4001] },
            "outbound": outbound,
        }))?;
        let measured = runtime.block_on(async {
            let env = env();
            let settings = Arc::new(listener.settings(&env));
            let (_end, _tunnels) = match listener.terminal(&PeerFilters::default(), &settings, &env, None) {
                Ok(end) => end,
                Err(why) => {
                    eprintln!("{why}, the rows of decisions are left out");
                    return Ok(None);
                }
            };
            let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
            let decide = |number: u64| {
                // The remainder is below the number of routes.
                let to = destination((number % u64::from(routes)) as u32);
                settings.decide(to, PATIENCE)
            };
            // The first one makes the connection.
            for number in 0..1000 {
                expect(decide(number).await)?;
            }
            let mut number = 1_u64;
            for _ in 0..calls {
                number = number.wrapping_mul(STEP).wrapping_add(1);
                let start = Instant::now();
                let decision = decide(number >> 33).await;
                histogram.saturating_record(nanos(start.elapsed()));
                expect(decision)?;
            }
            Ok::<_, Failure>(Some(histogram))
        })?;
        let Some(histogram) = measured else { return Ok(rows) };
        let micros = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let row = format!("peer, route + pool choice, table of {routes}");
        rows.push(Row::alone(format!("{row}: p50"), micros(0.5), "µs"));
        rows.push(Row::alone(format!("{row}: p99"), micros(0.99), "µs").at_most(MOST));
    }
    Ok(rows)
}

fn expect(decision: Option<Decision>) -> Result<(), Failure> {
    match decision {
        Some(Decision::Tunnel) => Ok(()),
        other => Err(format!("not through the tunnel: {other:?}").into()),
    }
}
