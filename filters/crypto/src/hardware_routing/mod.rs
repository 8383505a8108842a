//! `hardware_routing`: batches that another sidecar's processor verifies sooner.
//!
//! No batch fails because of it: whatever goes wrong over there, the rest of the chain does the work here.

mod connection;
mod link;
mod meters;
mod rule;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use qudag_filter_api::{
    Address, BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Percent, Period, Resolve,
    Svc, service_fn,
};
use qudag_mldsa::Backend;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::work::sample;
use crate::{Crypto, CryptoCall, CryptoReply, Operations, RoutingStatus, Verdict};
use link::{Kept, Link, Turn, now};
use meters::Meters;
use rule::{Slowness, times, work};

/// The most other sidecars.
const MOST_SIDECARS: usize = 16;
/// The most connections to each.
const MOST_CONNECTIONS: u32 = 16;
/// The most operations that a batch may be required to have: no batch has more.
const MOST_OPERATIONS: u32 = 65_535;
/// The longest time that a batch may be waited for.
const MOST_TIMEOUT: Period = Period::secs(10);

/// Settings of `hardware_routing`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HardwareRouting {
    /// The other sidecars, at most 16.
    #[schemars(length(max = 16))]
    pub sidecars: Vec<OtherSidecar>,
    /// How many operations a batch has at least that is routed.
    #[schemars(range(min = 1, max = 65_535))]
    pub min_operations: u32,
    /// How long the verdicts may take. Then the batch is done here.
    pub timeout: Period,
    /// How many connections are kept to each sidecar.
    #[schemars(range(min = 1, max = 16))]
    pub connections: u32,
    /// The percentage of the verdicts from elsewhere that are made once more here, by the portable implementation. When one differs, nothing is
    /// routed to that sidecar any more, and the batch is done here. 0 for never.
    pub verify: Percent,
}

/// Another sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtherSidecar {
    /// What leads to its crypto listener: the `bind` of a route of `listeners.peer.outbound` here whose tunnel ends there, which encrypts and
    /// makes sure who it is. A name is resolved at each connection.
    pub address: Address,
}

impl Default for HardwareRouting {
    fn default() -> Self {
        Self {
            sidecars: Vec::new(),
            min_operations: 32,
            timeout: Period::millis(250),
            connections: 2,
            verify: Percent::new(1.0).unwrap_or(Percent::NONE),
        }
    }
}

/// What is known of the other sidecars. Connections are kept while a chain in force has the filter.
pub struct RoutingState {
    sidecars: Vec<OtherSidecar>,
    connections: usize,
    resolve: Arc<dyn Resolve>,
    /// Of the chains that have the filter.
    others: Mutex<Weak<Others>>,
}

impl RoutingState {
    /// What is known; nothing while no chain has the filter.
    pub fn status(&self) -> RoutingStatus {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        others.map(|others| others.status()).unwrap_or_default()
    }

    /// The connections, made where there are none.
    fn others(&self) -> Arc<Others> {
        let mut weak = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        weak.upgrade().unwrap_or_else(|| {
            let others = Arc::new(Others::start(self));
            *weak = Arc::downgrade(&others);
            others
        })
    }
}

impl FilterSpec for HardwareRouting {
    type Kind = Crypto;
    type State = RoutingState;
    const NAME: &'static str = "hardware_routing";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut range = |key: &str, number: u32, most: u32| {
            if !(1..=most).contains(&number) {
                let error = at.key(key).error(format!("{number} is out of range"));
                errors.push(error.hint(format!("1 to {most}")));
            }
        };
        range("min_operations", self.min_operations, MOST_OPERATIONS);
        range("connections", self.connections, MOST_CONNECTIONS);
        if !(Period::millis(1)..=MOST_TIMEOUT).contains(&self.timeout) {
            let error = at.key("timeout").error(format!("{} is out of range", self.timeout));
            errors.push(error.hint(format!("1ms to {MOST_TIMEOUT}, for instance 250ms")));
        }
        let at = at.key("sidecars");
        if self.sidecars.len() > MOST_SIDECARS {
            errors.push(at.error("too many").hint(format!("at most {MOST_SIDECARS}")));
        }
        let mut seen = HashSet::new();
        for (place, sidecar) in self.sidecars.iter().enumerate() {
            let at = at.index(place).key("address");
            if matches!(&sidecar.address, Address::Tcp(address) if address.port == 0) {
                let hint = "the port of the route of `listeners.peer.outbound` that leads there";
                errors.push(at.error("port 0 cannot be dialled").hint(hint));
            } else if !seen.insert(sidecar) {
                errors.push(at.error("it is in the list already").hint("each sidecar once"));
            }
        }
        errors
    }

    fn state(
        &self,
        env: &Env,
        previous: Option<(&Self, Arc<RoutingState>)>,
    ) -> Result<Arc<RoutingState>, BuildError> {
        if self.sidecars.is_empty() {
            let why = "there is no other sidecar: add `sidecars: [{ address: HOST:PORT }]`";
            return Err(BuildError::new("filters.crypto.hardware_routing", why));
        }
        // The rest belongs to the layer.
        if let Some((before, state)) = previous
            && (&before.sidecars, before.connections) == (&self.sidecars, self.connections)
        {
            return Ok(state);
        }
        Ok(Arc::new(RoutingState {
            sidecars: self.sidecars.clone(),
            connections: usize::try_from(self.connections).unwrap_or(1),
            resolve: Arc::clone(&env.resolve),
            others: Mutex::default(),
        }))
    }

    fn wrap(&self, state: Arc<RoutingState>, inner: Svc<Crypto>) -> Svc<Crypto> {
        let layer = Arc::new(Layer {
            least: usize::try_from(self.min_operations).unwrap_or(usize::MAX),
            timeout: self.timeout.0,
            verify: self.verify,
            others: state.others(),
        });
        service_fn::<Crypto, _, _>(move |call: CryptoCall| {
            let (layer, inner) = (Arc::clone(&layer), inner.clone());
            async move {
                match &*call.operations {
                    Operations::Status => {
                        let mut reply = inner.oneshot(call).await?;
                        if let CryptoReply::Status(status) = &mut reply {
                            status.hardware_routing = Some(layer.others.status());
                        }
                        Ok(reply)
                    }
                    Operations::Signatures(_) | Operations::Fingerprints(_)
                        if !call.independent && !call.routed =>
                    {
                        layer.perform(call, inner).await
                    }
                    _ => inner.oneshot(call).await,
                }
            }
        })
    }
}

/// The other sidecars, and what is known of this one.
struct Others {
    links: Vec<Arc<Link>>,
    /// How slow this sidecar is.
    here: Mutex<Slowness>,
    meters: Meters,
    _connections: Vec<AbortOnDropHandle<()>>,
}

impl Others {
    fn start(state: &RoutingState) -> Self {
        let links: Vec<_> = state
            .sidecars
            .iter()
            .map(|sidecar| Link::new(sidecar.address.clone(), state.connections))
            .collect();
        let mut connections = Vec::new();
        // A chain that is built only to be looked at has no runtime.
        if let Ok(runtime) = Handle::try_current() {
            for link in &links {
                for place in 0..state.connections {
                    let keep = connection::keep(Arc::clone(link), place, Arc::clone(&state.resolve));
                    connections.push(AbortOnDropHandle::new(runtime.spawn(keep)));
                }
            }
        }
        Self { links, here: Mutex::default(), meters: Meters::new(), _connections: connections }
    }

    fn status(&self) -> RoutingStatus {
        RoutingStatus { sidecars: self.links.iter().map(|link| link.status()).collect() }
    }

    fn here(&self) -> std::sync::MutexGuard<'_, Slowness> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sidecar that does a batch sooner than this one, if there is one.
    fn choose(&self, operations: &Operations, backend: Backend, now: Instant) -> Result<Turn, Kept> {
        let mut kept = Kept::Unreachable;
        let here = times(work(operations, backend), self.here().factor(now));
        let mut sooner = Vec::new();
        for link in &self.links {
            match link.estimate(operations, backend, now) {
                Ok(there) if there < here => sooner.push((there, link)),
                Ok(_) => kept = kept.max(Kept::Slower),
                Err(why) => kept = kept.max(why),
            }
        }
        sooner.sort_by_key(|(there, _)| *there);
        let turn = sooner.iter().find_map(|(_, link)| link.admit(now));
        turn.ok_or(if sooner.is_empty() { kept } else { Kept::BreakerOpen })
    }
}

/// The filter in one chain.
struct Layer {
    least: usize,
    timeout: Duration,
    verify: Percent,
    others: Arc<Others>,
}

impl Layer {
    /// Signatures or fingerprints of a program.
    async fn perform(&self, call: CryptoCall, inner: Svc<Crypto>) -> Result<CryptoReply, FilterError> {
        let turn = match self.choose(&call) {
            Ok(turn) => turn,
            Err(why) => {
                self.others.meters.kept(why);
                return self.here(call, inner).await;
            }
        };
        let (link, operations) = (Arc::clone(&turn.link), call.operations.len());
        match turn.ask(&call.operations, self.timeout).await {
            Ok(verdicts) => {
                if let Some(why) = self.wrong(&call, &verdicts, &inner).await {
                    link.stop(why);
                    self.others.meters.mismatch(operations);
                    return self.here(call, inner).await;
                }
                self.others.meters.answered(operations);
                Ok(CryptoReply::Routed(verdicts))
            }
            Err(failure) => {
                self.others.meters.failed(failure, operations);
                self.here(call, inner).await
            }
        }
    }

    fn choose(&self, call: &CryptoCall) -> Result<Turn, Kept> {
        if call.operations.len() < self.least {
            return Err(Kept::Small);
        }
        if !wire::has_all_keys(&call.operations) {
            return Err(Kept::KeysById);
        }
        self.others.choose(&call.operations, call.backend, now())
    }

    /// Does a batch here, and remembers how long that took.
    async fn here(&self, call: CryptoCall, inner: Svc<Crypto>) -> Result<CryptoReply, FilterError> {
        let (expected, counts) = (work(&call.operations, call.backend), call.operations.len() >= self.least);
        let started = now();
        let reply = inner.oneshot(call).await?;
        if counts {
            let now = now();
            self.others.here().note(now.saturating_duration_since(started), expected, now);
        }
        Ok(reply)
    }

    /// Makes some of the verdicts once more; what is wrong with the others, if something is.
    async fn wrong(&self, call: &CryptoCall, verdicts: &[Verdict], inner: &Svc<Crypto>) -> Option<String> {
        let places = sample(&call.operations, self.verify);
        if places.is_empty() {
            return None;
        }
        let meters = &self.others.meters;
        let some = CryptoCall {
            operations: Arc::new(call.operations.pick(&places)),
            backend: Backend::Portable,
            independent: true,
            ..call.clone()
        };
        // Whoever has too much to do is not asked to do it twice.
        let Ok(CryptoReply::Verdicts(right)) = inner.clone().oneshot(some).await else {
            meters.skipped.increment(places.len() as u64);
            return None;
        };
        let mut wrong = None;
        for (seen, right) in places.iter().filter_map(|place| verdicts.get(*place)).zip(&right) {
            if seen == right {
                meters.same.increment(1);
            } else {
                meters.different.increment(1);
                wrong = Some(format!("it judged a signature {seen:?} that portable judges {right:?}"));
            }
        }
        wrong
    }
}
