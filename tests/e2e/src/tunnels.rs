//! Two sidecars with a tunnel over an emulated link, a node behind each way, and clients that notice what is lost.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qudag_kit::{IdentityFiles, Namespace, Pki, Setup, Start, TestSidecar, eventually};
use qudag_wan::{Settings, Wan};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where clients on the left reach the node: sidecar A.
pub const DOOR: &str = "127.0.0.1:4001";
/// The same over IPv6.
pub const DOOR_V6: &str = "[::1]:4001";
/// Where clients on the left reach what [`Changes::plain`] leads to.
pub const PLAIN_DOOR: &str = "127.0.0.1:4002";
/// The name of that route.
pub const PLAIN: &str = "plain";
/// What the node greets with behind the tunnel.
pub const TUNNEL: char = 't';
/// What it greets with where connections arrive without the tunnel.
pub const DIRECT: char = 'd';

/// The time between two short streams of a row.
const PACE: Duration = Duration::from_millis(40);

/// A pair of sidecars. A is on the left, 10.90.0.1 and fd90::1, B on the right, 10.90.0.2 and fd90::2.
pub struct Pair {
    /// Sidecar A.
    pub a: TestSidecar,
    /// Sidecar B.
    pub b: TestSidecar,
    /// What lies between them.
    pub wan: Wan,
    /// Where A and the clients are.
    pub left: Namespace,
    /// Where B and the node are.
    pub right: Namespace,
    /// The authority of both.
    pub pki: Pki,
    /// A's files.
    pub id_a: IdentityFiles,
    /// B's files.
    pub id_b: IdentityFiles,
    to: &'static str,
}

/// The settings of A that tests change.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Whether `connection_pooling` is on.
    pub pooling: bool,
    /// The settings of `route_table`, as YAML.
    pub table: &'static str,
    /// More settings of it, as YAML: `max_connections: 1, `.
    pub more: String,
    /// Other filters, as lines of YAML.
    pub filters: String,
    /// Where one more route leads, past every tunnel, from [`PLAIN_DOOR`].
    pub plain: Option<&'static str>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            pooling: true,
            table: "enabled: false",
            more: String::new(),
            filters: String::new(),
            plain: None,
        }
    }
}

impl Pair {
    /// With a link of these settings, and the tunnel over IPv4.
    pub async fn start(link: &str) -> Self {
        Self::start_to(link, "10.90.0.2:4433").await
    }

    /// With the tunnel to this address of the right side.
    pub async fn start_to(link: &str, to: &'static str) -> Self {
        Self::start_in(Namespace::new(), link, to, &Changes::default()).await
    }

    /// With the tunnel to this address of the right side; the left one is a namespace that has been prepared.
    ///
    /// # Panics
    /// When anything does not come up.
    pub async fn start_in(left: Namespace, link: &str, to: &'static str, changes: &Changes) -> Self {
        let right = Namespace::new();
        let ends = ["10.90.0.1/24,fd90::1/64", "10.90.0.2/24,fd90::2/64"];
        let wan = Wan::connect(&left, ends[0], &right, ends[1], Settings::both(link.parse().unwrap()));
        node(&right, "127.0.0.1:8000", TUNNEL);
        node(&right, "10.90.0.2:4001", DIRECT);
        let pki = Pki::new().await;
        let (id_a, id_b) = (pki.issue("a").await, pki.issue("b").await);
        let b = Setup { yaml: &yaml_b(&id_b, &id_a, true, ""), namespace: Some(&right), env: &[] };
        let b = TestSidecar::with(b).await;
        let yaml = yaml_a(&id_a, &id_b, to, changes);
        let a = TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&left), env: &[] }).await;
        Self { a, b, wan: wan.unwrap(), left, right, pki, id_a, id_b, to }
    }

    /// Waits until new connections take the tunnel.
    pub async fn up(&self) {
        let up = async || {
            let told = self.a.cli_json(&["peers"]).await;
            (told["pools"][0]["connections"][0]["state"] == "live").then_some(())
        };
        eventually(PATIENCE, "the tunnel is up", up).await;
        self.returns().await;
    }

    /// Waits until a new connection takes the tunnel.
    pub async fn returns(&self) {
        let through = async || (self.greeted().await.ok()?.1 == TUNNEL).then_some(());
        eventually(PATIENCE, "connections take the tunnel", through).await;
    }

    /// Reloads A.
    pub async fn change(&self, changes: &Changes) {
        self.a.reload_with(&yaml_a(&self.id_a, &self.id_b, self.to, changes)).await.ok();
    }

    /// Reloads B with or without the tunnel's listener.
    pub async fn listen(&self, on: bool) {
        self.b.reload_with(&yaml_b(&self.id_b, &self.id_a, on, "")).await.ok();
    }

    /// Reloads B with more keys of `listeners.peer`, as lines of YAML.
    pub async fn change_b(&self, more: &str) {
        self.b.reload_with(&yaml_b(&self.id_b, &self.id_a, true, more)).await.ok();
    }

    /// What `peers` of A says of the pool.
    pub async fn pool(&self) -> Value {
        self.a.cli_json(&["peers"]).await["pools"][0].clone()
    }

    /// A counter of A.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.a.metric(name, labels).await
    }

    /// A new connection of a client on the left, with what it was greeted with.
    ///
    /// # Errors
    /// When it is reset.
    pub async fn greeted(&self) -> io::Result<(TcpStream, char)> {
        greeted(connect(&self.left, DOOR)).await
    }

    /// A load ([`Pair::load`]) whose steady streams all talk already.
    pub async fn under_load(&self, steady: usize, rows: usize) -> Load {
        let load = self.load(steady, rows);
        let all = async || (load.shared.talking.load(Ordering::SeqCst) >= steady as u64).then_some(());
        eventually(PATIENCE, "all streams are open", all).await;
        load
    }

    /// Clients: `steady` streams that stay open and talk all the time, and short ones in so many `rows`, 25 a second each.
    pub fn load(&self, steady: usize, rows: usize) -> Load {
        let shared =
            Arc::new(Shared { start: Instant::now(), over: AtomicBool::new(false), ..Shared::default() });
        let mut tasks = JoinSet::new();
        for _ in 0..steady {
            tasks.spawn(steady_stream(connect(&self.left, DOOR), Arc::clone(&shared)));
        }
        for _ in 0..rows {
            // The sockets of a row are made on one thread of its own, inside the namespace.
            let (give, sockets) = tokio::sync::mpsc::channel(1);
            let place = self.left.name().to_owned();
            std::thread::spawn(move || supply(&place, &give));
            tasks.spawn(short_streams(sockets, Arc::clone(&shared)));
        }
        Load { shared, tasks }
    }
}

fn yaml_a(own: &IdentityFiles, other: &IdentityFiles, to: &str, changes: &Changes) -> String {
    let (identity, name, Changes { pooling, table, more, filters, plain }) =
        (own.yaml(), &other.name, changes);
    let plain =
        plain.map(|to| format!("      - {{ name: {PLAIN}, bind: \"{PLAIN_DOOR}\", to: \"{to}\" }}\n"));
    let route = |route: &str, bind: &str| {
        format!(
            "      - {{ name: {route}, bind: \"{bind}\", to: \"10.90.0.2:4001\", sidecar: {{ to: [\"{to}\"], name: \
             \"{name}\" }} }}\n"
        )
    };
    format!(
        "listeners:\n  peer:\n    identity: {identity}\n    connect_timeout: 5s\n    outbound:\n{}{}{}filters:\n  peer:\n    \
         connection_pooling: {{ {more}enabled: {pooling} }}\n    route_table: {{ {table} }}\n{filters}",
        route("there", DOOR),
        route("there6", DOOR_V6),
        plain.unwrap_or_default()
    )
}

fn yaml_b(own: &IdentityFiles, other: &IdentityFiles, quic: bool, more: &str) -> String {
    let (identity, name) = (own.yaml(), &other.name);
    let quic = if quic { "\n    quic: \"[::]:4433\"" } else { "" };
    format!(
        "node: {{ name: b, p2p: \"127.0.0.1:8000\" }}\nlisteners:\n  peer:\n    identity: {identity}\n    allow: \
         [\"{name}\"]\n    inbound: [\"127.0.0.1:4101\"]{quic}\n{more}"
    )
}

/// A node that greets, and echoes what comes; FIN after FIN. It takes no more connections when the task is aborted.
///
/// # Panics
/// When it cannot listen.
pub fn node(place: &Namespace, at: &str, greeting: char) -> JoinHandle<()> {
    let listener = place.inside(|| TcpListener::bind(at)).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut tcp, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                tcp.write_all(&[greeting as u8]).await?;
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    })
}

/// A connection that a program in a namespace makes.
///
/// # Panics
/// When there is no socket.
pub fn connect(place: &Namespace, to: &str) -> impl Future<Output = io::Result<TcpStream>> + Send + use<> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = place.inside(|| socket(to)).unwrap();
    async move { socket?.connect(to).await }
}

fn socket(to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Reads the greeting of a new connection.
///
/// # Errors
/// When the connection is reset.
///
/// # Panics
/// When nothing comes.
pub async fn greeted(connect: impl Future<Output = io::Result<TcpStream>>) -> io::Result<(TcpStream, char)> {
    let work = async {
        let mut tcp = connect.await?;
        let greeting = tcp.read_u8().await?;
        Ok((tcp, char::from(greeting)))
    };
    timeout(PATIENCE, work).await.expect("a greeting in time")
}

/// Sends bytes and expects them back.
///
/// # Errors
/// When the connection is reset.
///
/// # Panics
/// When other bytes come, or none.
pub async fn echo(tcp: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let began = Instant::now();
    let work = async {
        let (mut read, mut write) = tcp.split();
        let mut back = vec![0; bytes.len()];
        tokio::try_join!(write.write_all(bytes), read.read_exact(&mut back))?;
        assert!(back == bytes, "other bytes came back");
        Ok(())
    };
    let done = timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("no echo of {} bytes since {began:?} on {tcp:?}", bytes.len()))
}

/// Sends so many bytes, ends, and expects exactly these bytes and then the end. Returns the greeting.
///
/// # Panics
/// When anything else comes.
pub async fn half_close(connect: impl Future<Output = io::Result<TcpStream>>, length: u32) -> char {
    let sent = noise(length);
    let mut tcp = connect.await.unwrap();
    let (mut read, mut write) = tcp.split();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let both = async { tokio::join!(send, read.read_to_end(&mut received)).1.unwrap() };
    timeout(2 * PATIENCE, both).await.expect("the end in time");
    assert!(received[1..] == sent, "{} bytes of {length}", received.len() - 1);
    char::from(received[0])
}

/// Bytes that repeat late.
pub fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[derive(Default)]
struct Tally {
    /// When steady streams ended before their time.
    lost: Vec<Instant>,
    shorts: Vec<Short>,
}

struct Shared {
    start: Instant,
    over: AtomicBool,
    /// Steady streams that talk.
    talking: AtomicU64,
    tally: Mutex<Tally>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            over: AtomicBool::new(false),
            talking: AtomicU64::new(0),
            tally: Mutex::default(),
        }
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// A short stream.
#[derive(Clone, Copy, Debug)]
pub struct Short {
    /// When it was opened.
    pub at: Instant,
    /// How long it took to be greeted; to its failure if it failed.
    pub took: Duration,
    /// Its greeting, if everything came back.
    pub way: Option<char>,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

async fn steady_stream(connect: impl Future<Output = io::Result<TcpStream>>, shared: Arc<Shared>) {
    let talk = async {
        let (mut tcp, _) = greeted(connect).await?;
        shared.talking.fetch_add(1, Ordering::SeqCst);
        for round in 0_u32.. {
            echo(&mut tcp, &noise(100 + round % 3000)).await?;
            if shared.is_over() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        io::Result::Ok(())
    };
    if talk.await.is_err() {
        shared.tally.lock().unwrap().lost.push(Instant::now());
    }
}

fn supply(place: &str, give: &tokio::sync::mpsc::Sender<TcpSocket>) {
    let enter = std::fs::File::open(format!("/run/netns/{place}")).unwrap();
    qudag_kit::netns::enter(&enter).unwrap();
    while give.blocking_send(socket(DOOR.parse().unwrap()).unwrap()).is_ok() {}
}

/// Begins streams at a steady pace, whether or not earlier ones have ended.
async fn short_streams(mut sockets: tokio::sync::mpsc::Receiver<TcpSocket>, shared: Arc<Shared>) {
    let mut streams = JoinSet::new();
    while !shared.is_over() {
        let Some(socket) = sockets.recv().await else { break };
        streams.spawn(short_stream(socket, Arc::clone(&shared)));
        while let Some(ended) = streams.try_join_next() {
            ended.unwrap();
        }
        sleep(PACE).await;
    }
    while let Some(ended) = streams.join_next().await {
        ended.unwrap();
    }
}

async fn short_stream(socket: TcpSocket, shared: Arc<Shared>) {
    let at = Instant::now();
    let mut took = None;
    let talk = async {
        let (mut tcp, way) = greeted(socket.connect(DOOR.parse().unwrap())).await?;
        took = Some(at.elapsed());
        echo(&mut tcp, &noise(2000)).await?;
        io::Result::Ok(way)
    };
    let way = talk.await.ok();
    let short = Short { at, took: took.unwrap_or_else(|| at.elapsed()), way };
    shared.tally.lock().unwrap().shorts.push(short);
}

impl Load {
    /// How many steady streams were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.tally.lock().unwrap().lost.len()
    }

    /// Waits until a short stream that began after `since` went this way; how long after.
    pub async fn goes(&self, way: char, since: Instant) -> Duration {
        let found = async || {
            let tally = self.shared.tally.lock().unwrap();
            let found = tally.shorts.iter().find(|short| short.at > since && short.way == Some(way));
            found.map(|short| short.at + short.took - since)
        };
        eventually(2 * PATIENCE, &format!("a stream goes by {way}"), found).await
    }

    /// The longest time to a greeting of the short streams that began since then and have it.
    pub fn slowest(&self, since: Instant) -> Duration {
        let tally = self.shared.tally.lock().unwrap();
        let recent = tally.shorts.iter().filter(|short| short.at > since && short.way.is_some());
        recent.map(|short| short.took).max().unwrap_or_default()
    }

    /// Ends all streams and says what became of them.
    ///
    /// # Panics
    /// When a stream hangs.
    pub async fn stop(mut self) -> Report {
        self.shared.over.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let tally = std::mem::take(&mut *self.shared.tally.lock().unwrap());
        let report = Report {
            seconds: self.shared.start.elapsed().as_secs_f64(),
            lost: tally.lost,
            shorts: tally.shorts,
        };
        println!("{report}");
        report
    }
}

/// What became of the streams of a load.
#[derive(Debug)]
pub struct Report {
    /// How long it went on.
    pub seconds: f64,
    /// When steady streams were lost.
    pub lost: Vec<Instant>,
    /// All short ones.
    pub shorts: Vec<Short>,
}

impl Report {
    /// How many short streams failed.
    pub fn failed(&self) -> usize {
        self.shorts.iter().filter(|short| short.way.is_none()).count()
    }

    /// The longest time to a greeting of those that began between two times.
    pub fn slowest(&self, from: Instant, to: Instant) -> Duration {
        let within = self.shorts.iter().filter(|short| (from..to).contains(&short.at));
        within.map(|short| short.took).max().unwrap_or_default()
    }

    /// How many short streams went this way.
    pub fn by(&self, way: char) -> usize {
        self.shorts.iter().filter(|short| short.way == Some(way)).count()
    }

    /// Nothing was lost.
    ///
    /// # Panics
    /// When something was.
    pub fn assert_nothing_lost(&self) {
        assert_eq!((self.lost.len(), self.failed()), (0, 0), "steady and short streams lost; 0 allowed");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut ways = BTreeMap::<_, u32>::new();
        for short in &self.shorts {
            *ways.entry(short.way.unwrap_or('-')).or_default() += 1;
        }
        let slowest = self.shorts.iter().map(|short| short.took).max().unwrap_or_default();
        let (lost, count, seconds) = (self.lost.len(), self.shorts.len(), self.seconds);
        write!(
            f,
            "{seconds:.1} s: {lost} steady streams lost, {count} short ones by way {ways:?}, the slowest greeted after \
             {slowest:?}"
        )
    }
}

/// Lets a sidecar stand still (SIGSTOP), or go on (SIGCONT).
///
/// # Panics
/// When it is gone.
pub async fn pause(sidecar: &TestSidecar, pause: bool) {
    let signal = if pause { "-STOP" } else { "-CONT" };
    Start::new("kill").args([signal, &sidecar.pid().to_string()]).output().await.ok();
}
