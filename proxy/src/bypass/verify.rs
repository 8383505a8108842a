//! Whether a bypass, or its end, had its effect: asked over the wire, one step after the other, each timed.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use metrics::{counter, gauge};
use qudag_filter_api::{HostPort, Resolve};
use qudag_filter_dns::update::{self, not_before};
use qudag_filter_dns::wire::Name;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Published, Publisher, wanted};
use crate::config::{BypassConfig, BypassName, UpdateConfig};
use crate::net::socket_addrs;

/// How long names may take to move: their time to live and a second.
const NAMES: Duration = Duration::from_secs(6);
/// How long one question or connection may take.
const ONE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It is under way.
    Running,
    /// What it looked for is so.
    Ok,
    /// It is not so.
    Failed,
    /// There is nothing to look for.
    Skipped,
}

impl StepState {
    fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One thing that is verified.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `switches`, `zone`, `update`, `authoritatives`, `resolver`, `connect` or `drain`.
    pub name: &'static str,
    /// How it stands.
    pub state: StepState,
    /// How long it took, or has taken so far, in milliseconds.
    pub took_ms: f64,
    /// What was found.
    pub detail: String,
}

/// What was verified.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether it is `bypass on` that is verified, or `bypass off`.
    pub bypass: bool,
    /// When the command came, seconds since the Unix epoch.
    pub started: u64,
    /// Whether all steps are over.
    pub done: bool,
    /// Whether none has failed so far.
    pub ok: bool,
    /// From the command to the end of the last step, in milliseconds.
    pub took_ms: f64,
    /// The steps in order.
    pub steps: Vec<Step>,
}

/// A report that grows.
#[derive(Clone)]
pub struct Verification {
    report: Arc<Mutex<Report>>,
    start: Instant,
}

/// What is looked for, and where.
pub struct Check {
    /// The names.
    pub config: BypassConfig,
    /// Whether they should lead to the node itself.
    pub direct: bool,
    /// Where the sidecar's own zone is served, and its serial number.
    pub zone: Option<(SocketAddr, u32)>,
    /// The wish whose result is awaited.
    pub wish: u64,
    /// Publishes names on other servers.
    pub publisher: Arc<Publisher>,
    /// Finds servers that are given by name.
    pub resolve: Arc<dyn Resolve>,
    /// How many calls, requests and sessions are under way, by kind.
    pub flows: Box<dyn Fn() -> Vec<(&'static str, usize)> + Send + Sync>,
}

/// `Err` where it is not so; `Ok(None)` where there is nothing to look for.
type Found = Result<Option<String>, String>;

impl Verification {
    /// A report of a command that came at `start`; its first step, the switches, is over.
    pub fn begin(bypass: bool, start: Instant, switches: Result<String, String>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let report = Report {
            bypass,
            started: since.as_secs(),
            done: false,
            ok: true,
            took_ms: 0.0,
            steps: Vec::new(),
        };
        let this = Self { report: Arc::new(Mutex::new(report)), start };
        this.open("switches", start);
        this.close("switches", start, switches.map(Some));
        this
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !report.done {
            report.took_ms = millis(self.start);
        }
        report
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn open(&self, name: &'static str, _: Instant) {
        let step = Step { name, state: StepState::Running, took_ms: 0.0, detail: String::new() };
        self.change(|report| report.steps.push(step));
    }

    /// Says how far the step under way is.
    fn progress(&self, since: Instant, detail: String) {
        self.change(|report| {
            if let Some(step) = report.steps.last_mut() {
                step.detail = detail;
                step.took_ms = millis(since);
            }
        });
    }

    fn close(&self, name: &'static str, since: Instant, found: Found) {
        let (state, detail) = match found {
            Ok(Some(detail)) => (StepState::Ok, detail),
            Ok(None) => (StepState::Skipped, "nothing to verify".to_owned()),
            Err(why) => (StepState::Failed, why),
        };
        self.progress(since, detail);
        self.change(|report| {
            report.ok &= state != StepState::Failed;
            report.took_ms = millis(self.start);
            if let Some(step) = report.steps.last_mut() {
                step.state = state;
            }
        });
        counter!("qudag_sidecar_bypass_steps_total", "step" => name, "outcome" => state.label()).increment(1);
        gauge!("qudag_sidecar_bypass_step_seconds", "step" => name).set(since.elapsed().as_secs_f64());
    }

    async fn step(&self, name: &'static str, find: impl AsyncFnOnce(Instant) -> Found) {
        let since = Instant::now();
        self.open(name, since);
        let found = find(since).await;
        self.close(name, since, found);
    }

    /// Verifies everything.
    pub async fn run(self, check: Check) {
        let check = &check;
        self.step("zone", async |_| within(NAMES, || check.own_zone()).await).await;
        let mut published = None;
        self.step("update", async |_| check.update(&mut published).await).await;
        self.step("authoritatives", async |_| {
            within(NAMES, || check.authoritatives(published.as_ref())).await
        })
        .await;
        self.step("resolver", async |_| within(NAMES, || check.resolver()).await).await;
        self.step("connect", async |_| check.connect().await).await;
        if check.direct {
            self.step("drain", async |since| check.drain(&self, since).await).await;
        }
        self.change(|report| {
            report.done = true;
            gauge!("qudag_sidecar_bypass_verified").set(f64::from(u8::from(report.ok)));
            tracing::info!(
                bypass = report.bypass,
                ok = report.ok,
                took_ms = report.took_ms,
                "bypass verified"
            );
        });
    }
}

/// Looks until it is so, or the time is over.
async fn within<F: Future<Output = Found>>(limit: Duration, look: impl Fn() -> F) -> Found {
    let start = Instant::now();
    loop {
        let found = look().await;
        if found.is_ok() || start.elapsed() >= limit {
            return found;
        }
        sleep(PAUSE).await;
    }
}

impl Check {
    /// The names in a zone with the addresses that they should have.
    fn names<'a>(&'a self, zone: &'a str) -> impl Iterator<Item = (&'a BypassName, Name, BTreeSet<IpAddr>)> {
        let zone = Name::from_text(zone).ok();
        self.config.names.iter().filter_map(move |moved| {
            let name = Name::from_text(&moved.name).ok()?;
            let addresses = wanted(moved, self.direct).iter().copied().collect();
            zone.as_ref().is_some_and(|zone| name.is_within(zone)).then_some((moved, name, addresses))
        })
    }

    /// The listener itself is asked, over UDP.
    async fn own_zone(&self) -> Found {
        let Some((zone, (listener, serial))) = self.config.zone.as_deref().zip(self.zone) else {
            return Ok(None);
        };
        shows(listener, zone, serial, self.names(zone))
            .await
            .map(|()| Some(format!("{zone} has serial {serial}")))
    }

    async fn update(&self, result: &mut Option<Published>) -> Found {
        if self.config.update.is_none() {
            return Ok(None);
        }
        let start = Instant::now();
        loop {
            let left = NAMES.saturating_sub(start.elapsed());
            let published = self.publisher.result(self.wish, left).await;
            let Some(published) = published else { return Err("no server has answered yet".to_owned()) };
            if published.complete {
                let outcomes = published.names.iter().map(|name| format!("{} {}", name.name, name.outcome));
                let outcomes = outcomes.collect::<Vec<_>>().join(", ");
                *result = Some(published);
                return Ok(Some(outcomes));
            }
            if start.elapsed() >= NAMES || published.names.iter().any(|name| name.outcome == "conflict") {
                let why = published.names.into_iter().filter_map(|name| name.error).collect::<Vec<_>>();
                return Err(why.join("; "));
            }
            sleep(PAUSE).await;
        }
    }

    async fn authoritatives(&self, published: Option<&Published>) -> Found {
        let Some(update) = &self.config.update else { return Ok(None) };
        let serial = published.and_then(|published| published.serial).unwrap_or_default();
        let servers = shown_by(update);
        for server in servers {
            let addrs = socket_addrs(server, self.resolve.as_ref())
                .await
                .map_err(|why| format!("{server}: {why}"))?;
            for addr in addrs {
                shows(addr, &update.zone, serial, self.names(&update.zone)).await?;
            }
        }
        Ok(Some(format!("{} show serial {serial} or a later one", servers.len())))
    }

    /// What programs on this host see.
    async fn resolver(&self) -> Found {
        if !self.config.verify.resolver {
            return Ok(None);
        }
        let mut seen = Vec::new();
        for moved in &self.config.names {
            let found = timeout(ONE * 3, tokio::net::lookup_host((moved.name.as_str(), 0))).await;
            let found = found.map_err(|_| format!("this host's resolver is silent about {}", moved.name))?;
            let found =
                found.map_err(|why| format!("this host's resolver does not know {}: {why}", moved.name))?;
            let found: BTreeSet<IpAddr> = found.map(|addr| addr.ip()).collect();
            let wanted = wanted(moved, self.direct);
            if found.is_empty() || !found.iter().all(|ip| wanted.contains(ip)) {
                return Err(format!("this host resolves {} to {}", moved.name, list(&found)));
            }
            seen.push(format!("{} is {}", moved.name, list(&found)));
        }
        Ok(Some(seen.join(", ")))
    }

    async fn connect(&self) -> Found {
        let mut reached = Vec::new();
        for moved in &self.config.names {
            let Some(port) = moved.port else { continue };
            for ip in wanted(moved, self.direct) {
                let addr = SocketAddr::new(*ip, port);
                match timeout(ONE, TcpStream::connect(addr)).await {
                    Ok(Ok(_)) => reached.push(addr.to_string()),
                    Ok(Err(why)) => return Err(format!("cannot connect to {addr}: {why}")),
                    Err(_) => return Err(format!("cannot connect to {addr}: nothing within {ONE:?}")),
                }
            }
        }
        Ok((!reached.is_empty()).then(|| format!("connected to {}", reached.join(", "))))
    }

    async fn drain(&self, to: &Verification, since: Instant) -> Found {
        loop {
            let left: Vec<_> = (self.flows)().into_iter().filter(|(_, count)| *count > 0).collect();
            if left.is_empty() {
                return Ok(Some("no call, request or session is left in the sidecar".to_owned()));
            }
            let left =
                left.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
            let left = format!("{left} still in the sidecar");
            if since.elapsed() >= self.config.verify.drain_timeout.0 {
                return Err(left);
            }
            to.progress(since, left);
            sleep(PAUSE).await;
        }
    }
}

fn shown_by(update: &UpdateConfig) -> &[HostPort] {
    if update.authoritatives.is_empty() { &update.servers } else { &update.authoritatives }
}

/// Whether a server has this serial number or a later one, and these addresses.
async fn shows<'a>(
    server: SocketAddr,
    zone: &str,
    serial: u32,
    names: impl Iterator<Item = (&'a BypassName, Name, BTreeSet<IpAddr>)>,
) -> Result<(), String> {
    let zone = Name::from_text(zone).map_err(|why| why.to_string())?;
    let has = update::serial(server, &zone, ONE).await.map_err(|why| why.to_string())?;
    if !not_before(has, serial) {
        return Err(format!("{server} has serial {has}, before {serial}"));
    }
    for (_, name, wanted) in names {
        let found = update::addresses(server, &name, ONE).await.map_err(|why| why.to_string())?;
        if found != wanted {
            return Err(format!("{server} gives {name} {}", list(&found)));
        }
    }
    Ok(())
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "no address".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
