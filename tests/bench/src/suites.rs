//! What is measured of each kind of traffic.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::clients::{self, RpcServer};
use crate::contenders::{Sidecar, Stage};
use crate::measure::{Client, Contender, Figures, Plan, interleaved, median, steps};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, chain, cpu, servers};

/// A set of rows.
#[derive(Clone, Copy, Debug)]
pub enum Suite {
    /// The chain itself.
    Chain,
    /// DNS.
    Dns,
    /// Peer connections.
    Peer,
    /// HTTP and RPC.
    Front,
    /// PostgreSQL.
    Db,
}

impl Suite {
    /// Measures.
    ///
    /// # Errors
    /// When something cannot be started or gives a wrong answer.
    pub fn rows(self, plan: Plan) -> Result<Vec<Row>, Failure> {
        match self {
            Self::Chain => chain::rows(plan),
            Self::Dns => dns(&Stage::set()?, plan),
            Self::Peer => peer(&Stage::set()?, plan),
            Self::Front => front(&Stage::set()?, plan),
            Self::Db => db(&Stage::set()?, plan),
        }
    }
}

/// A contender that is the upstream itself.
const DIRECT: &str = "direct";

/// The contender that is ours.
const OURS: &str = "sidecar";

fn contender<'a>(
    name: &'static str,
    pid: Option<u32>,
    connect: impl Fn() -> io::Result<Box<dyn Client>> + Sync + 'a,
) -> Contender<'a> {
    Contender { name, pid, connect: Box::new(connect) }
}

/// Measures a group, of which the first is ours, and puts each figure of ours beside each of the others'.
fn group(title: &'static str, contenders: &[Contender<'_>], plan: Plan) -> Result<Vec<Row>, Failure> {
    let progress = Progress::new(title, steps(contenders.len(), plan));
    let figures = interleaved(contenders, plan, &progress)?;
    let named: Vec<_> = contenders.iter().map(|contender| contender.name).zip(figures).collect();
    Ok(compare(title, &named))
}

fn compare(title: &str, named: &[(&'static str, Figures)]) -> Vec<Row> {
    let Some(((_, ours), others)) = named.split_first() else { return Vec::new() };
    let mut rows = Vec::new();
    let mut figure = |what: &str, unit, of: fn(&Figures) -> Option<f64>| {
        let Some(ours) = of(ours) else { return };
        let row = format!("{title}: {what}");
        let before = rows.len();
        for (peer, theirs) in others {
            if let Some(theirs) = of(theirs) {
                rows.push(Row::beside(&row, ours, unit, peer, theirs));
            }
        }
        if rows.len() == before {
            rows.push(Row::alone(&row, ours, unit));
        }
    };
    figure("latency p50", "µs", |f| Some(f.p50));
    figure("latency p99", "µs", |f| Some(f.p99));
    figure("CPU per operation", "µs", |f| f.cpu);
    figure("operations per CPU-second", "/s", |f| f.cpu.filter(|cpu| *cpu > 0.0).map(|cpu| 1e6 / cpu));
    rows
}

/// Names in use: more than a small table holds, and as many as a busy node asks for.
fn names(plan: Plan) -> u64 {
    if plan.rounds == Plan::QUICK.rounds { 1_000 } else { 10_000 }
}

fn dns(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let upstream = servers::dns()?;
    let names = names(plan);
    // A machine that is busy with something else is not to be taken for a server that is down.
    let yaml = |cache: bool| {
        format!(
            "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: {cache} }}\n    \
             dns_upstream: {{ servers: [\"{upstream}\"], timeout: 8s, attempt_timeout: 2s }}\n"
        )
    };
    let ask = |to: SocketAddr| move || clients::Dns::connect(to, names);

    let (caching, passing) = (stage.sidecar(&yaml(true))?, stage.sidecar(&yaml(false))?);
    let unbound = stage.unbound(upstream)?;
    let mut cached = vec![contender(OURS, Some(caching.pid()), ask(caching.at("dns")?))];
    if let Some(unbound) = &unbound {
        cached.push(contender("unbound", Some(unbound.pid()), ask(unbound.address())));
    }
    for contender in &cached {
        fill(contender, names)?;
    }
    let mut rows = group("dns, cached", &cached, plan)?;
    let past = [
        contender(OURS, Some(passing.pid()), ask(passing.at("dns")?)),
        contender(DIRECT, None, ask(upstream)),
    ];
    rows.extend(group("dns, cache off", &past, plan)?);
    Ok(rows)
}

/// Asks for every name once. The server may still be starting.
fn fill(contender: &Contender<'_>, names: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut client = (contender.connect)()?;
    while let Err(why) = client.call() {
        if Instant::now() > deadline {
            return Err(format!("{}: {why}", contender.name).into());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    for _ in 0..names {
        client.call()?;
    }
    Ok(())
}

fn peer(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let (echo, sink) = (servers::echo()?, servers::sink()?);
    let ours = |to: SocketAddr| {
        stage.sidecar(&format!(
            "listeners: {{ peer: {{ outbound: [{{ bind: \"127.0.0.1:0\", to: \"{to}\" }}] }} }}\n"
        ))
    };
    let sidecar = ours(echo)?;
    let haproxy = stage.haproxy("tcp", echo);
    let at = sidecar.at("peer")?;

    let ways = |connect: fn(SocketAddr) -> io::Result<Box<dyn Client>>| {
        let mut ways = vec![
            contender(OURS, Some(sidecar.pid()), move || connect(at)),
            contender(DIRECT, None, move || connect(echo)),
        ];
        if let Some(haproxy) = &haproxy {
            let at = haproxy.addr();
            ways.push(contender("haproxy", Some(haproxy.pid()), move || connect(at)));
        }
        ways
    };
    let mut rows = group("peer, 64 B there and back", &ways(clients::Echo::connect), plan)?;
    rows.extend(group("peer, connect and 1 B", &ways(clients::Connect::connect), plan)?);

    let sidecar = ours(sink)?;
    let haproxy = stage.haproxy("tcp", sink);
    let mut ways = vec![(OURS, Some(sidecar.pid()), sidecar.at("peer")?), (DIRECT, None, sink)];
    ways.extend(haproxy.as_ref().map(|haproxy| ("haproxy", Some(haproxy.pid()), haproxy.addr())));
    rows.extend(bulk(&ways, plan)?);
    Ok(rows)
}

/// One long stream in one direction: throughput, and CPU time of the process between.
fn bulk(ways: &[(&'static str, Option<u32>, SocketAddr)], plan: Plan) -> Result<Vec<Row>, Failure> {
    let bytes: u64 = if plan.rounds == Plan::QUICK.rounds { 64 << 20 } else { 512 << 20 };
    let gigabytes = bytes as f64 / 1e9;
    let progress = Progress::new("peer, bulk", (plan.rounds * ways.len()) as u64);
    let mut samples: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); ways.len()];
    for _ in 0..plan.rounds {
        for ((name, pid, to), (speed, cost)) in ways.iter().zip(&mut samples) {
            progress.step(name);
            let before = pid.map(cpu::of).transpose()?;
            let start = Instant::now();
            clients::send_bulk(*to, bytes)?;
            speed.push(gigabytes / start.elapsed().as_secs_f64());
            if let (Some(pid), Some(before)) = (pid, before) {
                cost.push(cpu::of(*pid)?.saturating_sub(before).as_secs_f64() / gigabytes);
            }
        }
    }
    let figures: Vec<_> = samples.into_iter().map(|(speed, cost)| (median(speed), median(cost))).collect();
    let Some(((our_speed, our_cost), others)) = figures.split_first() else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for ((name, pid, _), (speed, cost)) in ways.iter().skip(1).zip(others) {
        rows.push(Row::beside("peer, bulk: throughput", *our_speed, "GB/s", name, *speed));
        if pid.is_some() {
            rows.push(Row::beside("peer, bulk: CPU per GB", *our_cost, "s", name, *cost));
        }
    }
    Ok(rows)
}

fn front(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let mut rows = http(stage, plan)?;
    rows.extend(rpc(stage, plan)?);
    Ok(rows)
}

fn http(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let kept = clients::HttpKept::connect;
    let once = clients::HttpOnce::connect;
    let ours = |to: SocketAddr, pooling: bool| -> Result<(Sidecar, SocketAddr), Failure> {
        let sidecar = stage.sidecar(&format!(
            "node: {{ http: \"{to}\" }}\nlisteners: {{ http: {{ bind: \"127.0.0.1:0\" }} }}\n\
             filters: {{ http: {{ connection_pooling: {{ enabled: {pooling} }} }} }}\n"
        ))?;
        let at = sidecar.at("http")?;
        Ok((sidecar, at))
    };

    let clean = servers::http_clean()?;
    let ((off, off_at), (pooling, pooling_at)) = (ours(clean, false)?, ours(clean, true)?);
    let haproxy = stage.haproxy("http", clean);
    let mut rows = Vec::new();
    let sides =
        [("http, all filters off", &off, off_at), ("http, connection_pooling on", &pooling, pooling_at)];
    for (title, sidecar, at) in sides {
        let mut ways = vec![
            contender(OURS, Some(sidecar.pid()), move || kept(at)),
            contender(DIRECT, None, move || kept(clean)),
        ];
        if let Some(haproxy) = &haproxy {
            let at = haproxy.addr();
            ways.push(contender("haproxy", Some(haproxy.pid()), move || kept(at)));
        }
        rows.extend(group(title, &ways, plan)?);
    }

    let node = servers::http_node()?;
    let (sidecar, at) = ours(node, false)?;
    let ways =
        [contender(OURS, Some(sidecar.pid()), move || once(at)), contender(DIRECT, None, move || once(node))];
    rows.extend(group("http, a node's replies, a connection each", &ways, plan)?);
    let ways =
        [contender(OURS, Some(sidecar.pid()), move || kept(at)), contender(DIRECT, None, move || once(node))];
    rows.extend(group("http, a node's replies, kept to the sidecar", &ways, plan)?);
    Ok(rows)
}

fn rpc(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("rpc.sock");
    servers::rpc(&socket)?;
    let node = servers::rpc_tcp()?;
    let ours = |to: String| {
        stage.sidecar(&format!(
            "node: {{ rpc: \"{to}\" }}\nlisteners: {{ rpc: {{ bind: \"127.0.0.1:0\" }} }}\n"
        ))
    };
    let call = |server: RpcServer| move || clients::Rpc::connect(&server);

    let sidecar = ours(node.to_string())?;
    let haproxy = stage.haproxy("tcp", node);
    let mut ways = vec![
        contender(OURS, Some(sidecar.pid()), call(RpcServer::Once(sidecar.at("rpc")?))),
        contender(DIRECT, None, call(RpcServer::Once(node))),
    ];
    if let Some(haproxy) = &haproxy {
        ways.push(contender("haproxy", Some(haproxy.pid()), call(RpcServer::Once(haproxy.addr()))));
    }
    let mut rows = group("rpc over TCP, a connection each", &ways, plan)?;

    let sidecar = ours(format!("unix:{}", socket.display()))?;
    let ways = [
        contender(OURS, Some(sidecar.pid()), call(RpcServer::Kept(sidecar.at("rpc")?))),
        contender(DIRECT, None, call(RpcServer::Unix(socket))),
    ];
    rows.extend(group("rpc, node on a Unix socket, kept to the sidecar", &ways, plan)?);
    Ok(rows)
}

fn db(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let Some(server) = stage.postgres() else { return Ok(Vec::new()) };
    let to = server.addr();
    let sidecar = stage
        .sidecar(&format!("listeners: {{ postgres: {{ bind: \"127.0.0.1:0\", server: \"{to}\" }} }}\n"))?;
    let at = sidecar.at("db")?;
    let haproxy = stage.haproxy("tcp", to);
    let session = |to: SocketAddr| move || clients::Postgres::connect(to, "qudag", "qudag");
    let opening = |to: SocketAddr| move || clients::PostgresSession::connect(to, "qudag", "qudag");
    let mut ways =
        vec![contender(OURS, Some(sidecar.pid()), session(at)), contender(DIRECT, None, session(to))];
    let mut opens =
        vec![contender(OURS, Some(sidecar.pid()), opening(at)), contender(DIRECT, None, opening(to))];
    if let Some(haproxy) = &haproxy {
        ways.push(contender("haproxy", Some(haproxy.pid()), session(haproxy.addr())));
        opens.push(contender("haproxy", Some(haproxy.pid()), opening(haproxy.addr())));
    }
    let mut rows = group("db, select in an open session", &ways, plan)?;
    rows.extend(group("db, session and one select", &opens, plan)?);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_stands_beside_each_of_the_others() {
        let figures = |p50, cpu| Figures { p50, p99: 2.0 * p50, cpu, rate: 1.0 };
        let named = [
            (OURS, figures(30.0, Some(10.0))),
            (DIRECT, figures(15.0, None)),
            ("haproxy", figures(25.0, Some(5.0))),
        ];
        let rows = compare("x", &named);
        let shown: Vec<_> = rows.iter().map(|row| (row.row.as_str(), row.peer, row.ratio)).collect();
        assert_eq!(
            shown,
            [
                ("x: latency p50", Some(DIRECT), Some(2.0)),
                ("x: latency p50", Some("haproxy"), Some(1.2)),
                ("x: latency p99", Some(DIRECT), Some(2.0)),
                ("x: latency p99", Some("haproxy"), Some(1.2)),
                ("x: CPU per operation", Some("haproxy"), Some(2.0)),
                ("x: operations per CPU-second", Some("haproxy"), Some(0.5)),
            ]
        );
    }
}
