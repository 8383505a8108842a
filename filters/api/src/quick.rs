//! Answers that need no waiting, given by the thread on which a request arrived.
//!
//! A boxed service costs a task, an allocation and two clock readings a filter, which is nothing for a session and too much for a
//! DNS query that the cache can answer. So a filter may also look at a request without taking it ([`Quick`]). The filters are shown it
//! in the order of the chain; the first one that has to wait is asked as a service, and those before it are not asked again.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tower::ServiceExt;

use crate::metered::{Arm, Meters};
use crate::{FilterError, Flow, FlowKey, Kind, Percent, Svc};

/// One answer in so many is timed; its times count as those of all.
const TIMED: u32 = 16;

/// What a filter makes of a request that it is shown.
#[derive(Debug)]
pub enum Look {
    /// It has answered. The failure that the answer reports, as in [`Kind::failure`].
    Answered(Option<&'static str>),
    /// It has refused.
    Refused(FilterError),
    /// It has nothing to say, now or later; the next filter is shown the request.
    Pass,
    /// It has to be asked as a service. Nothing has been counted or changed.
    Wait,
}

/// A filter as it is asked without waiting. What it does to a request is what its service would do.
pub trait Quick<K: Kind>: Send + Sync {
    /// Looks at a request and, when it can, answers it.
    fn look(&self, glance: &mut K::Glance<'_>) -> Look;
}

/// A filter's place in the chain.
pub(crate) struct Step<K: Kind> {
    /// The filter's name.
    pub(crate) filter: &'static str,
    /// From this filter on, switch and meters included.
    pub(crate) service: Svc<K>,
    /// `None` for a filter that is always asked as a service.
    pub(crate) quick: Option<Box<dyn Quick<K>>>,
    pub(crate) rollout: Percent,
    pub(crate) salt: u64,
    pub(crate) with: Arc<Meters>,
    /// `None` where there is no other arm.
    pub(crate) without: Option<Arc<Meters>>,
}

impl<K: Kind> Step<K> {
    fn meters(&self, arm: Arm) -> &Arc<Meters> {
        match (arm, &self.without) {
            (Arm::Without, Some(without)) => without,
            _ => &self.with,
        }
    }

    fn arm(&self, glance: &K::Glance<'_>) -> Arm {
        let with = self.rollout == Percent::ALL || self.rollout.covers(glance.key().bucket(self.salt));
        if with { Arm::With } else { Arm::Without }
    }
}

/// The chain of a kind: as one service, and filter by filter. Clones share it.
pub struct Chain<K: Kind>(Arc<Parts<K>>);

struct Parts<K: Kind> {
    steps: Vec<Step<K>>,
    terminal: Svc<K>,
}

impl<K: Kind> Clone for Chain<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What came of showing a request to the filters.
pub enum Looked<K: Kind> {
    /// It is answered.
    Answered,
    /// It is refused.
    Refused(FilterError),
    /// The rest of the chain has to be asked.
    Wait(Rest<K>),
}

impl<K: Kind> Chain<K> {
    /// The chain of filters, from the first to the last, each with its service from there on.
    pub(crate) fn new(steps: Vec<Step<K>>, terminal: Svc<K>) -> Self {
        Self(Arc::new(Parts { steps, terminal }))
    }

    /// A chain without filters.
    pub fn bare(terminal: Svc<K>) -> Self {
        Self::new(Vec::new(), terminal)
    }

    /// Whether a filter is in it, for all flows or a share of them.
    pub fn has(&self, filter: &str) -> bool {
        self.0.steps.iter().any(|step| step.filter == filter)
    }

    /// The whole chain as a service.
    pub fn service(&self) -> Svc<K> {
        self.0.steps.first().map_or(&self.0.terminal, |step| &step.service).clone()
    }

    /// Asks the whole chain.
    ///
    /// # Errors
    /// What the chain fails with.
    pub async fn call(&self, request: K::Req) -> Result<K::Rsp, FilterError> {
        self.service().oneshot(request).await
    }

    /// Shows a request to the filters. What is answered is counted in `tally`, which is to be [settled](Chain::settle) with this chain.
    pub fn look(&self, glance: &mut K::Glance<'_>, tally: &mut Tally) -> Looked<K> {
        tally.counts.resize_with(self.0.steps.len(), Counts::default);
        let mut clock = (tally.untimed + 1 >= TIMED).then(Clock::start);
        for (i, step) in self.0.steps.iter().enumerate() {
            let arm = step.arm(glance);
            let look = match (&step.quick, arm) {
                (_, Arm::Without) => Look::Pass,
                (Some(quick), Arm::With) => quick.look(glance),
                (None, Arm::With) => Look::Wait,
            };
            let error = match look {
                Look::Pass => {
                    if let Some(clock) = &mut clock {
                        clock.lap();
                    }
                    continue;
                }
                Look::Wait => return Looked::Wait(self.rest(i, step.service.clone(), glance)),
                Look::Answered(failure) => Ok(failure),
                Look::Refused(error) => Err(error),
            };
            let label = error.as_ref().map_or_else(|error| Some(error.label()), |failure| *failure);
            self.count(i, glance, label, clock, tally);
            return error.map_or_else(Looked::Refused, |_| Looked::Answered);
        }
        Looked::Wait(self.rest(self.0.steps.len(), self.0.terminal.clone(), glance))
    }

    /// Counts an answer of step `last` for it and those before it.
    fn count(
        &self,
        last: usize,
        glance: &K::Glance<'_>,
        label: Option<&'static str>,
        clock: Option<Clock>,
        tally: &mut Tally,
    ) {
        let end = clock.map(|clock| (clock.start, clock.laps, Instant::now()));
        tally.untimed = if end.is_some() { 0 } else { tally.untimed + 1 };
        for (i, (step, counts)) in self.0.steps.iter().zip(&mut tally.counts).enumerate().take(last + 1) {
            let arm = step.arm(glance);
            match arm {
                Arm::With => counts.with += 1,
                Arm::Without => counts.without += 1,
            }
            let meters = step.meters(arm);
            if let Some(label) = label {
                meters.error(label);
            }
            if let Some((start, laps, end)) = &end {
                let from = i.checked_sub(1).and_then(|before| laps.get(before)).unwrap_or(start);
                let to = laps.get(i).unwrap_or(end);
                meters.times(end.duration_since(*from), to.duration_since(*from), TIMED as usize);
            }
        }
    }

    /// What is left of the chain for a request that steps before `next` have passed on.
    fn rest(&self, next: usize, service: Svc<K>, glance: &K::Glance<'_>) -> Rest<K> {
        let passed = self.0.steps.iter().take(next);
        let passed = passed.map(|step| Arc::clone(step.meters(step.arm(glance)))).collect();
        Rest { service, passed, start: Instant::now() }
    }

    /// Adds up what was counted since the last time. To be called before the tally is used with another chain, and often enough for
    /// somebody who watches the metrics.
    pub fn settle(&self, tally: &mut Tally) {
        for (step, counts) in self.0.steps.iter().zip(&mut tally.counts) {
            let Counts { with, without } = std::mem::take(counts);
            if with > 0 {
                step.with.calls(with);
            }
            if without > 0 {
                step.meters(Arm::Without).calls(without);
            }
        }
    }
}

/// What one thread has counted since it last [settled](Chain::settle).
#[derive(Debug, Default)]
pub struct Tally {
    counts: Vec<Counts>,
    /// Answers since the last one that was timed.
    untimed: u32,
}

#[derive(Debug, Default)]
struct Counts {
    with: u64,
    without: u64,
}

/// When a look began, and when each filter had passed the request on.
struct Clock {
    start: Instant,
    laps: Vec<Instant>,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self) {
        self.laps.push(Instant::now());
    }
}

/// The rest of a chain, behind the filters that have passed a request on.
pub struct Rest<K: Kind> {
    service: Svc<K>,
    passed: Vec<Arc<Meters>>,
    start: Instant,
}

impl<K: Kind> Rest<K> {
    /// Asks it; the filters that have passed the request on are measured as if they had called it.
    ///
    /// # Errors
    /// What the rest of the chain fails with.
    pub async fn call(self, request: K::Req) -> Result<K::Rsp, FilterError> {
        let result = self.service.oneshot(request).await;
        if !self.passed.is_empty() {
            let (total, error) = (self.start.elapsed(), crate::metered::failure::<K>(&result));
            self.passed.iter().for_each(|meters| meters.passed(total, error));
        }
        result
    }
}

/// The glance of a kind whose requests all wait.
impl Flow for Infallible {
    fn key(&self) -> FlowKey {
        match *self {}
    }
    fn client(&self) -> Option<IpAddr> {
        match *self {}
    }
}
