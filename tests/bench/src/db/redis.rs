//! Redis: the sidecar with its pool, the sidecar without, twemproxy, and nothing between, before one private server.
//!
//! Clients send so many commands at a time, SET and GET in turns, and the next ones when all are answered. Every answer is compared with the
//! right one.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qudag_kit::program::{self, Program};
use qudag_kit::{Start, ports};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use super::stand::Who;
use crate::contenders::{Sidecar, Stage};
use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::Row;
use crate::suites::{DIRECT, OURS};
use crate::{Failure, cpu, row};

/// Connections of the sidecar's pool.
const POOL: usize = 20;
const CLIENTS: [usize; 2] = [64, 256];
const DEPTHS: [usize; 2] = [1, 16];
const VALUE: usize = 64;
/// How long anything may take when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Twemproxy.
const NUTCRACKER: &str = "nutcracker";
/// Under overload: clients, and how long an answer is of use to them.
const MANY: usize = 1000;
const DEADLINE: Duration = Duration::from_millis(250);
/// A command that keeps the server busy for about a millisecond.
const SLOW: &str = "for i = 1, 100000 do end return 1";

enum Process {
    None,
    Sidecar(Sidecar),
    Nutcracker(Program, #[expect(dead_code, reason = "removed with it")] TempDir),
}

/// A way to the server.
struct Way {
    name: &'static str,
    at: SocketAddr,
    process: Process,
}

impl Way {
    fn pids(&self) -> Vec<u32> {
        match &self.process {
            Process::None => Vec::new(),
            Process::Sidecar(sidecar) => vec![sidecar.pid()],
            Process::Nutcracker(program, _) => vec![program.pid()],
        }
    }
}

fn sidecar(name: &'static str, stage: &Stage, server: SocketAddr, filters: &str) -> Result<Way, Failure> {
    let yaml = format!(
        "runtime: {{ workers: 1 }}\nlisteners: {{ redis: {{ bind: \"127.0.0.1:0\", server: \"{server}\", max_sessions: 2000 }} }}\n{filters}"
    );
    stage.validate(&yaml)?;
    let sidecar = stage.sidecar(&yaml)?;
    Ok(Way { name, at: sidecar.at("redis")?, process: Process::Sidecar(sidecar) })
}

/// Its defaults besides what it has to be told: one connection to the server, on which it puts everything.
fn nutcracker(server: SocketAddr) -> Result<Way, Failure> {
    let (at, folder) = (ports::free(), tempfile::Builder::new().prefix("qknc").tempdir()?);
    let file = folder.path().join("nutcracker.yml");
    let yaml = format!(
        "bench:\n  listen: {at}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  servers:\n   - {server}:1\n"
    );
    std::fs::write(&file, yaml)?;
    let stats = ports::free();
    let start = Start::new(NUTCRACKER).arg("-c").arg(&file).args([
        "-m",
        "512",
        "-a",
        "127.0.0.1",
        "-s",
        &stats.port().to_string(),
    ]);
    let program = start.spawn(folder.path());
    Ok(Way { name: NUTCRACKER, at, process: Process::Nutcracker(program, folder) })
}

/// The server and all ways to it.
struct Stand {
    ways: Vec<Way>,
    _server: (Program, TempDir),
}

impl Stand {
    /// Starts everything; `pressed`: with the queue before the pool, which refuses what would wait too long.
    fn start(stage: &Stage, who: &[Who], pressed: bool) -> Result<Self, Failure> {
        let (at, folder) = (ports::free(), tempfile::Builder::new().prefix("qkrb").tempdir()?);
        let server =
            Start::new("redis-server").args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let server = server.args(["--maxclients", "4000", "--port", &at.port().to_string()]);
        let server = server.arg("--dir").arg(folder.path()).spawn(folder.path());
        let pool = format!(
            "filters:\n  redis:\n    rate_limit: {{ enabled: false }}\n    redis_backpressure: {{ enabled: {pressed}, wait: 250ms }}\n    \
             redis_pool: {{ enabled: true, size: {POOL} }}\n"
        );
        let off = "filters: { redis: { rate_limit: { enabled: false } } }\n";
        let mut ways = Vec::new();
        for who in who {
            ways.push(match who {
                Who::Sidecar => sidecar(OURS, stage, at, &pool)?,
                Who::SidecarOff => sidecar(who.name(), stage, at, off)?,
                Who::Nutcracker => nutcracker(at)?,
                Who::Direct => Way { name: DIRECT, at, process: Process::None },
                Who::Pgbouncer => continue,
            });
        }
        Ok(Self { ways, _server: (server, folder) })
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

/// A client with what it sends and what it is answered.
struct Client {
    stream: TcpStream,
    batch: Vec<u8>,
    answers: Vec<u8>,
    came: Vec<u8>,
}

impl Client {
    async fn open(at: SocketAddr, number: usize, depth: usize) -> Result<Self, Failure> {
        let stream = connect(at).await?;
        let key = format!("key:{number}");
        let value: String = format!("{number:0>width$}", width = VALUE);
        let (mut batch, mut answers) = (Vec::new(), Vec::new());
        let set = (command(&["SET", &key, &value]), b"+OK\r\n".to_vec());
        let get = (command(&["GET", &key]), format!("${VALUE}\r\n{value}\r\n").into_bytes());
        // The first batch begins with SET, so that each GET finds something.
        for (words, answer) in [&set, &get].into_iter().cycle().take(depth.max(2)) {
            batch.extend_from_slice(words);
            answers.extend_from_slice(answer);
        }
        let mut client = Self { stream, came: vec![0; answers.len()], batch, answers };
        client.turn().await?;
        if depth == 1 {
            (client.batch, client.answers) = get;
            client.came.truncate(client.answers.len());
        }
        Ok(client)
    }

    async fn turn(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.batch).await?;
        self.stream.read_exact(&mut self.came).await?;
        if self.came != self.answers {
            return Err(format!("a wrong answer: {}", self.came.escape_ascii()).into());
        }
        Ok(())
    }
}

/// Connects as soon as there is somebody.
async fn connect(at: SocketAddr) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(at).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(why) if Instant::now() > deadline => return Err(why.into()),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Runs clients on this thread.
fn on_this_thread<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async { timeout(PATIENCE, work).await })?
}

/// What one way did in a slice: commands a second, and µs of CPU time of what is between, a command.
fn slice(way: &Way, clients: usize, depth: usize, time: Duration) -> Result<(f64, Option<f64>), Failure> {
    on_this_thread(async {
        let mut crew = Vec::with_capacity(clients);
        for number in 0..clients {
            crew.push(Client::open(way.at, number, depth).await?);
        }
        let mut measured = (0.0, None);
        // The first time the pool grows.
        for time in [time / 4, time] {
            let (begun, before, count) =
                (Instant::now(), cpu::of_all(&way.pids())?, Rc::new(Cell::new(0_u64)));
            let mut working = JoinSet::new();
            for mut client in crew.drain(..) {
                let count = Rc::clone(&count);
                working.spawn_local(async move {
                    while begun.elapsed() < time {
                        client.turn().await?;
                        count.set(count.get() + depth as u64);
                    }
                    Ok::<_, Failure>(client)
                });
            }
            while let Some(client) = working.join_next().await {
                crew.push(client??);
            }
            let (elapsed, after) = (begun.elapsed(), cpu::of_all(&way.pids())?);
            let commands = count.get().max(1) as f64;
            let spent = before
                .zip(after)
                .map(|(before, after)| after.saturating_sub(before).as_secs_f64() * 1e6 / commands);
            measured = (commands / elapsed.as_secs_f64(), spent);
        }
        Ok(measured)
    })
}

/// A thousand clients that want a millisecond of the server each, again and again: how many answers a second come while they are of use.
fn goodput(way: &Way, clients: usize, time: Duration) -> Result<f64, Failure> {
    on_this_thread(async {
        let (good, begun) = (Rc::new(Cell::new(0_u64)), Instant::now());
        let slow = command(&["EVAL", SLOW, "1", "key"]);
        let mut working = JoinSet::new();
        for number in 0..clients as u64 {
            let (mut stream, good, slow) = (connect(way.at).await?, Rc::clone(&good), slow.clone());
            working.spawn_local(async move {
                let mut came = [0; 256];
                while begun.elapsed() < time {
                    let sent = Instant::now();
                    stream.write_all(&slow).await?;
                    let read = stream.read(&mut came).await?;
                    let said = String::from_utf8_lossy(came.get(..read).unwrap_or_default()).into_owned();
                    if said == ":1\r\n" {
                        good.set(good.get() + u64::from(sent.elapsed() <= DEADLINE));
                    } else if let Some((_, after)) = said.split_once("retry after ") {
                        let millis = after
                            .split(' ')
                            .next()
                            .and_then(|millis| millis.parse::<u64>().ok())
                            .unwrap_or(10);
                        // As programs do: not all at once.
                        sleep(Duration::from_millis(millis + number % (millis + 1))).await;
                    } else {
                        return Err(format!("a wrong answer: {said:?}").into());
                    }
                }
                Ok::<_, Failure>(())
            });
        }
        // Those that wait for an answer at the end have got all that is of use to them.
        sleep((begun + time).saturating_duration_since(Instant::now())).await;
        while let Some(ended) = working.try_join_next() {
            ended??;
        }
        Ok(good.get() as f64 / begun.elapsed().as_secs_f64())
    })
}

/// The rows of Redis.
///
/// # Errors
/// When something cannot be started or gives a wrong answer.
pub(super) fn rows(stage: &Stage, plan: Plan, who: &[Who]) -> Result<Vec<Row>, Failure> {
    if program::find("redis-server").is_none() {
        eprintln!(
            "redis-server is missing, the rows of Redis are left out; apt-get install --no-install-recommends redis-server"
        );
        return Ok(Vec::new());
    }
    let quick = plan.is_quick();
    let (rounds, time) =
        if quick { (1, Duration::from_millis(200)) } else { (5, Duration::from_millis(700)) };
    let stand = Stand::start(stage, who, false)?;
    let mut rows = Vec::new();
    for clients in CLIENTS {
        for depth in DEPTHS {
            let progress = Progress::new("db, redis", (rounds * stand.ways.len()) as u64);
            let mut slices = vec![Vec::new(); stand.ways.len()];
            for round in 0..rounds {
                for turn in 0..stand.ways.len() {
                    // Another one begins each round.
                    let turn = (round + turn) % stand.ways.len();
                    let (Some(way), Some(slices)) = (stand.ways.get(turn), slices.get_mut(turn)) else {
                        continue;
                    };
                    progress.step(way.name);
                    slices.push(
                        slice(way, clients, depth, time).map_err(|why| format!("{}: {why}", way.name))?,
                    );
                }
            }
            drop(progress);
            let title = |what: &str| format!("db, redis, {clients} clients, {depth} at a time: {what}");
            let named = stand.ways.iter().map(|way| way.name).zip(&slices);
            let rate: Vec<_> = named
                .clone()
                .map(|(name, all)| (name, median(all.iter().map(|(rate, _)| *rate).collect())))
                .collect();
            let spent: Vec<_> = named
                .filter_map(|(name, all)| {
                    let all: Vec<f64> = all.iter().filter_map(|(_, spent)| *spent).collect();
                    (!all.is_empty()).then(|| (name, median(all)))
                })
                .collect();
            rows.extend(beside(&title("commands per second"), "/s", &rate));
            rows.extend(beside(&title("CPU per command"), "µs", &spent));
        }
    }
    drop(stand);
    let stand = Stand::start(stage, who, true)?;
    let (clients, time) =
        if quick { (200, Duration::from_millis(500)) } else { (MANY, Duration::from_secs(5)) };
    let progress = Progress::new("db, redis, overload", stand.ways.len() as u64);
    let mut good = Vec::new();
    // Those that pass everything on leave the server work for a while, so that they come last.
    for way in &stand.ways {
        progress.step(way.name);
        good.push((way.name, goodput(way, clients, time).map_err(|why| format!("{}: {why}", way.name))?));
    }
    drop(progress);
    let title = format!("db, redis, overload, {clients} clients: answers within {} ms", DEADLINE.as_millis());
    rows.extend(beside(&title, "/s", &good));
    Ok(rows)
}

/// The sidecar's figure beside each of the others'; each alone where it was not measured.
fn beside(title: &str, unit: &'static str, figures: &[(&'static str, f64)]) -> Vec<Row> {
    match figures.first() {
        Some((OURS, _)) => row::beside(title, unit, figures),
        _ => {
            figures.iter().map(|(who, figure)| Row::alone(format!("{title}, {who}"), *figure, unit)).collect()
        }
    }
}
