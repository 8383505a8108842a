//! Bytes on a connection of the admin API. The first byte chooses: a TCP connection of somebody without a token, who must not
//! change anything, or a Unix socket of the same user, who may.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use qudag_filter_api::{Address, Resolve};
use qudag_filter_common::Socket;
use qudag_filter_crypto::Backend;
use qudag_filter_dns::Question;
use qudag_sidecar::admin::{Auth, Flush, Operations, Role, serve};
use qudag_sidecar::control::{
    Applied, CacheRebuild, ConfigOrigin, ConfigStatus, ControlError, Explanation, Flushed, Override,
    PoolKind, Readiness, SettingStatus, Status,
};
use qudag_sidecar::telemetry::Metrics;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Changes that were granted.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Grants every wish and counts it.
#[derive(Clone)]
struct Generous;

fn granted() -> Result<Applied, ControlError> {
    CHANGES.fetch_add(1, Ordering::SeqCst);
    Ok(Applied {
        generation: 1,
        changed: false,
        took_ms: 0.0,
        filters: Vec::new(),
        settings: Vec::new(),
        notes: Vec::new(),
    })
}

impl Operations for Generous {
    fn status(&self) -> Status {
        Status {
            version: "0",
            pid: 1,
            node: "node".into(),
            uptime_seconds: 0,
            generation: 1,
            draining_generations: 0,
            bypass: false,
            draining: false,
            config: ConfigStatus {
                source: "embedded".into(),
                origin: ConfigOrigin::Embedded,
                fingerprint: String::new(),
                since: SystemTime::UNIX_EPOCH,
                refused: None,
            },
            capture: None,
            settings: Vec::new(),
            listeners: Vec::new(),
            filters: Vec::new(),
        }
    }
    fn ready(&self) -> Readiness {
        Readiness { ready: true, reasons: Vec::new() }
    }
    async fn reload(&self) -> Result<Applied, ControlError> {
        granted()
    }
    async fn set_override(&self, _: &str, _: Override) -> Result<Applied, ControlError> {
        granted()
    }
    async fn clear_override(&self, _: &str) -> Result<Applied, ControlError> {
        granted()
    }
    async fn bypass(&self, _: bool) -> Result<Applied, ControlError> {
        granted()
    }
    fn bypass_state(&self) -> Value {
        Value::Bool(false)
    }
    fn explain(&self, filter: &str) -> Result<Vec<Explanation>, ControlError> {
        Err(ControlError::NotFound(filter.to_owned()))
    }
    fn peers(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    fn db(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    fn db_pause(&self, paused: bool, _: Option<PoolKind>, _: Option<&str>) -> Result<Value, ControlError> {
        CHANGES.fetch_add(1, Ordering::SeqCst);
        Ok(Value::Bool(paused))
    }
    fn crypto(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    async fn crypto_selftest(&self, _: Option<Backend>) -> Result<Value, ControlError> {
        CHANGES.fetch_add(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
    fn db_cache(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    fn db_cache_flush(&self, _: Option<&str>, _: Option<&str>) -> Result<Value, ControlError> {
        CHANGES.fetch_add(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
    fn cache_stats(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    async fn cache_flush(&self, _: &Flush) -> Result<Flushed, ControlError> {
        granted().map(|_| Flushed { flushed: 0, fleet: None })
    }
    async fn cache_rebuild(&self) -> Result<CacheRebuild, ControlError> {
        granted().map(|_| CacheRebuild { rebuilding: false, total: 0, done: 0, failed: 0 })
    }
    fn dns_servers(&self) -> Result<Value, ControlError> {
        Ok(Value::Null)
    }
    async fn dns_lookup(&self, question: &Question) -> Result<Value, ControlError> {
        Ok(Value::String(format!("{question:?}")))
    }
    fn config_shown(&self, _: bool) -> Result<String, ControlError> {
        Ok("version: 1\n".into())
    }
    fn settings(&self) -> Vec<SettingStatus> {
        Vec::new()
    }
    async fn set(&self, _: &str, _: &str, _: Option<Duration>) -> Result<Applied, ControlError> {
        granted()
    }
    async fn unset(&self, _: Option<&str>) -> Result<Applied, ControlError> {
        granted()
    }
    fn drain(&self) {
        CHANGES.fetch_add(1, Ordering::SeqCst);
    }
}

/// The addresses here are not names.
struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        let why = std::io::Error::other(name.to_owned());
        Box::pin(async move { Err(why) })
    }
}

struct Server {
    tcp: SocketAddr,
    unix: PathBuf,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let tcp: Address = "127.0.0.1:0".parse().expect("an address");
            let unix = Address::Unix(folder.join("admin.sock"));
            let tcp = Socket::bind(&tcp, &NoNames).await.expect("a port");
            let unix = Socket::bind(&unix, &NoNames).await.expect("a socket");
            tell.send((tcp.address(), unix.address())).expect("somebody listens");
            let metrics = Metrics::install().expect("the first recorder");
            let serve = |socket: Socket| {
                let auth = Auth::default().token(Role::Write, "a token that nobody guesses 7b1f09");
                serve(socket, Generous, auth, metrics.clone(), CancellationToken::new())
            };
            tokio::join!(serve(tcp), serve(unix));
        });
    });
    let (Address::Tcp(tcp), Address::Unix(unix)) = told.recv().expect("it starts") else { unreachable!() };
    Server { tcp: tcp.socket_addr().expect("an address"), unix }
});

fn talk(mut stream: impl Read + Write, bytes: &[u8], finish: impl FnOnce()) -> Vec<u8> {
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    finish();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fuzz_target!(|data: (bool, &[u8])| {
    let (trusted, bytes) = data;
    let server = &*SERVER;
    let patience = Some(Duration::from_secs(20));
    let before = CHANGES.load(Ordering::SeqCst);
    let answer = if trusted {
        let stream = UnixStream::connect(&server.unix).expect("it accepts");
        stream.set_read_timeout(patience).expect("a timeout");
        let half = stream.try_clone().expect("a second handle");
        talk(stream, bytes, || drop(half.shutdown(std::net::Shutdown::Write)))
    } else {
        let stream = match TcpStream::connect(server.tcp) {
            // Closed connections rest for a while, each with its port.
            Err(why) if why.kind() == ErrorKind::AddrNotAvailable => return,
            connected => connected.expect("it accepts"),
        };
        stream.set_read_timeout(patience).expect("a timeout");
        let half = stream.try_clone().expect("a second handle");
        talk(stream, bytes, || drop(half.shutdown(std::net::Shutdown::Write)))
    };
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    let changed = CHANGES.load(Ordering::SeqCst) != before;
    let post = bytes.windows(4).any(|word| word == b"POST");
    assert!(!changed || (trusted && post), "changed without a token or without POST");
});
