//! Who sees flows when they have ended: the log, and taps that come and go.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use super::filter::FlowFilter;
use super::is_ordinary;

/// How many flows may wait for a tap. Further ones are counted and forgotten.
const WAITING: usize = 1024;

/// `key=value` for people: the details of a flow, in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(Vec<(&'static str, String)>);

impl Details {
    /// Adds a detail, in place of an earlier one with that key.
    pub fn add(&mut self, key: &'static str, value: impl fmt::Display) -> &mut Self {
        let value = value.to_string();
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, earlier)) => *earlier = value,
            None => self.0.push((key, value)),
        }
        self
    }

    /// The detail with a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str())
    }

    /// As the log has them; `None` when there are none.
    fn logged(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.to_string())
    }
}

/// Values come from peers as well: they are written in Rust's string notation where they hold more than visible ASCII without
/// quotes.
impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
            match plain {
                true => write!(f, "{space}{key}={value}")?,
                false => write!(f, "{space}{key}={value:?}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Details {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// A flow that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// `ok`, the label of an error or of a splice's end.
    pub outcome: &'static str,
    /// How long it took.
    pub duration: Duration,
    /// Payload bytes from the client.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// What else there is to say.
    pub details: &'a Details,
}

/// A flow as a tap gets it.
#[derive(Clone, Debug, Serialize)]
pub struct TappedFlow {
    /// The kind of traffic.
    pub kind: &'static str,
    /// When it ended, in seconds since the Unix epoch.
    pub at: f64,
    /// The client; null for a Unix socket.
    pub client: Option<SocketAddr>,
    /// `ok`, the label of an error or of a splice's end.
    pub outcome: &'static str,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// Payload bytes from the client.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// What else there is to say, by key.
    pub detail: Details,
}

/// Those who want to see the flows of one kind.
#[derive(Debug)]
pub struct Audience {
    kind: &'static str,
    /// [`LOG`], and [`TAP`] for each tap.
    wanted: AtomicU32,
    taps: RwLock<Vec<Arc<Sink>>>,
}

const LOG: u32 = 1;
const TAP: u32 = 2;

/// Every kind's audience. There are few kinds, and none goes away.
static AUDIENCES: RwLock<Vec<&'static Audience>> = RwLock::new(Vec::new());

/// Whether anybody wants to see flows of a kind that end well. Where it is asked often, keep the [`Audience`].
pub fn listening(kind: &'static str) -> bool {
    Audience::of(kind).listens()
}

impl Audience {
    /// The audience of a kind.
    pub fn of(kind: &'static str) -> &'static Self {
        let find = |known: &[&'static Self]| known.iter().find(|audience| audience.kind == kind).copied();
        if let Some(known) = find(&AUDIENCES.read().unwrap_or_else(PoisonError::into_inner)) {
            return known;
        }
        let mut all = AUDIENCES.write().unwrap_or_else(PoisonError::into_inner);
        find(&all).unwrap_or_else(|| {
            // Until somebody says otherwise the log takes everything.
            let new = Self { kind, wanted: AtomicU32::new(LOG), taps: RwLock::default() };
            let new: &'static Self = Box::leak(Box::new(new));
            all.push(new);
            new
        })
    }

    /// Whether anybody wants to see flows that end well: a tap, or the log. Costs one relaxed load while nobody does.
    pub fn listens(&self) -> bool {
        match self.wanted.load(Relaxed) {
            0 => false,
            LOG => tracing::enabled!(target: "flow", tracing::Level::INFO),
            _ => true,
        }
    }

    /// Whether anybody wants to see flows that end so.
    pub fn wants(&self, outcome: &str) -> bool {
        if outcome == "ok" { self.listens() } else { self.wants_details() }
    }

    /// Whether details of a flow whose end is not known yet may be of use.
    pub(super) fn wants_details(&self) -> bool {
        self.wanted.load(Relaxed) >= TAP || tracing::enabled!(target: "flow", tracing::Level::WARN)
    }

    /// Whether a tap is open. Costs one relaxed load.
    pub fn is_tapped(&self) -> bool {
        self.wanted.load(Relaxed) >= TAP
    }

    /// Shows a part of a flow to the taps, and not to the log, which has a line for the whole.
    pub fn show_taps(&self, part: &Ended<'_>) {
        if self.is_tapped() {
            self.offer(part);
        }
    }

    /// Tells whether the log keeps flows that end well; it gets the others in any case.
    pub fn log_takes_ok(&self, takes: bool) {
        if takes {
            self.wanted.fetch_or(LOG, Relaxed);
        } else {
            self.wanted.fetch_and(!LOG, Relaxed);
        }
    }

    /// Shows a flow to everybody who wants to see it. Counts nothing: the metrics are the caller's, who may count in batches.
    pub fn show(&self, flow: &Ended<'_>) {
        let wanted = self.wanted.load(Relaxed);
        if wanted >= TAP {
            self.offer(flow);
        }
        if flow.outcome == "ok" && wanted & LOG == 0 {
            return;
        }
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "flow",
                    kind = self.kind,
                    client = flow.client.map(tracing::field::display),
                    outcome = flow.outcome,
                    duration_ms = millis(flow.duration),
                    bytes_up = flow.bytes_up,
                    bytes_down = flow.bytes_down,
                    detail = flow.details.logged(),
                )
            };
        }
        if is_ordinary(flow.outcome) { line!(info) } else { line!(warn) }
    }

    fn offer(&self, flow: &Ended<'_>) {
        let mut shared = None;
        for tap in self.taps.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if !tap.filter.fits(flow) {
                continue;
            }
            // Without a place there is nothing to build: a tap that is too slow costs little.
            match tap.flows.try_reserve() {
                Ok(place) => place.send(Arc::clone(shared.get_or_insert_with(|| self.tapped(flow)))),
                Err(_) => drop(tap.lost.fetch_add(1, Relaxed)),
            }
        }
    }

    fn tapped(&self, flow: &Ended<'_>) -> Arc<TappedFlow> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Arc::new(TappedFlow {
            kind: self.kind,
            at: since.as_secs_f64(),
            client: flow.client,
            outcome: flow.outcome,
            duration_ms: millis(flow.duration),
            bytes_up: flow.bytes_up,
            bytes_down: flow.bytes_down,
            detail: flow.details.clone(),
        })
    }

    /// Listens from now on, until the tap is dropped. Details of flows that began before may be missing.
    pub fn tap(&'static self, filter: FlowFilter) -> Tap {
        let (sender, flows) = mpsc::channel(WAITING);
        let sink = Arc::new(Sink { filter, flows: sender, lost: AtomicU64::new(0) });
        self.taps.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&sink));
        self.wanted.fetch_add(TAP, Relaxed);
        Tap { audience: self, sink, flows }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The side of a tap that flows go into.
#[derive(Debug)]
struct Sink {
    filter: FlowFilter,
    flows: mpsc::Sender<Arc<TappedFlow>>,
    lost: AtomicU64,
}

/// The flows of a kind, live, as far as they are taken out quickly enough. Dropping it ends it.
#[derive(Debug)]
pub struct Tap {
    audience: &'static Audience,
    sink: Arc<Sink>,
    flows: mpsc::Receiver<Arc<TappedFlow>>,
}

impl Tap {
    /// The next flow; waits for it.
    pub async fn next(&mut self) -> Option<Arc<TappedFlow>> {
        self.flows.recv().await
    }

    /// The next flow, if there is one already.
    pub fn ready(&mut self) -> Option<Arc<TappedFlow>> {
        self.flows.try_recv().ok()
    }

    /// How many flows were forgotten since the last time it was asked, because they were not taken out quickly enough.
    pub fn lost(&self) -> u64 {
        self.sink.lost.swap(0, Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.audience.wanted.fetch_sub(TAP, Relaxed);
        let mut taps = self.audience.taps.write().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|sink| !Arc::ptr_eq(sink, &self.sink));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FlowLine;

    fn end(audience: &Audience, outcome: &'static str, name: &str) {
        let mut details = Details::default();
        details.add("name", name);
        let duration = Duration::from_micros(1500);
        audience.show(&Ended {
            client: None,
            outcome,
            duration,
            bytes_up: 3,
            bytes_down: 4,
            details: &details,
        });
    }

    #[tokio::test]
    async fn a_tap_sees_what_it_asked_for_while_it_is_there() {
        let audience = Audience::of("tap-some");
        audience.log_takes_ok(false);
        assert!(!audience.listens() && !listening("tap-some"));
        end(audience, "ok", "before.example");
        let filter = FlowFilter::parse(["name=example", "outcome!=timeout"]).unwrap();
        let mut tap = audience.tap(filter);
        assert!(audience.listens() && listening("tap-some"));
        assert!(
            !listening("tap-other-kind-without-log")
                || tracing::enabled!(target: "flow", tracing::Level::INFO)
        );
        end(audience, "timeout", "a.example");
        end(audience, "ok", "a.test");
        end(audience, "ok", "b.example");
        let flow = serde_json::to_value(&*tap.next().await.unwrap()).unwrap();
        assert!(flow["at"].as_f64().is_some_and(|at| at > 1.7e9));
        assert_eq!(flow["detail"], serde_json::json!({"name": "b.example"}));
        assert_eq!(flow["kind"], "tap-some");
        assert_eq!(flow["client"], serde_json::Value::Null);
        assert_eq!((&flow["outcome"], &flow["duration_ms"]), (&"ok".into(), &1.5.into()));
        assert_eq!((&flow["bytes_up"], &flow["bytes_down"]), (&3.into(), &4.into()));
        assert!(tap.ready().is_none());
        drop(tap);
        assert!(!audience.listens());
        assert!(audience.taps.read().unwrap().is_empty());
    }

    #[tokio::test]
    async fn parts_are_seen_by_taps_that_want_them() {
        let audience = Audience::of("tap-parts");
        let (details, duration) = (Details::default(), Duration::ZERO);
        let part = |outcome| {
            audience.show_taps(&Ended {
                client: None,
                outcome,
                duration,
                bytes_up: 0,
                bytes_down: 0,
                details: &details,
            });
        };
        assert!(!audience.is_tapped());
        part("before");
        let mut tap = audience.tap(FlowFilter::parse(["outcome!=ok"]).unwrap());
        assert!(audience.is_tapped());
        part("ok");
        part("shed");
        assert_eq!(tap.ready().map(|part| part.outcome), Some("shed"));
        assert!(tap.ready().is_none());
    }

    #[tokio::test]
    async fn what_is_too_much_is_counted_and_not_waited_for() {
        let audience = Audience::of("tap-slow");
        let (mut slow, mut other) =
            (audience.tap(FlowFilter::default()), audience.tap(FlowFilter::default()));
        let mut seen = 0;
        for _ in 0..WAITING + 10 {
            end(audience, "ok", "a.example");
            seen += usize::from(other.ready().is_some());
        }
        assert_eq!((seen, other.lost()), (WAITING + 10, 0));
        assert_eq!((slow.lost(), slow.lost()), (10, 0));
        let kept = std::iter::from_fn(|| slow.ready()).count();
        assert_eq!(kept, WAITING);
    }

    #[tokio::test]
    async fn lines_of_flows_are_seen_with_their_details() {
        let mut tap = Audience::of("tap-line").tap(FlowFilter::default());
        let mut line = FlowLine::start("tap-line", Some("10.0.0.1:5".parse().unwrap()));
        line.detail("name", "a b").detail("type", "A").detail("name", "c");
        line.end("ok", 1, 2);
        drop(FlowLine::start("tap-line", None));
        let first = tap.next().await.unwrap();
        assert_eq!(first.detail.to_string(), "name=c type=A");
        assert_eq!(first.client, Some("10.0.0.1:5".parse().unwrap()));
        assert_eq!(tap.next().await.unwrap().outcome, "aborted");
    }
}
