//! What every filter is measured by: calls, errors and its own time, for each arm.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram, counter, histogram};
use pin_project_lite::pin_project;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::{FilterError, Kind, Svc};

thread_local! {
    /// Time that the service inside the filter being polled took, of calls that ended in this poll.
    static INNER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The side of a split that a call went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Through the filter.
    With,
    /// Past it.
    Without,
}

impl Arm {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::With => "with",
            Self::Without => "without",
        }
    }
}

/// The handles of one arm of one filter.
pub(crate) struct Meters {
    kind: &'static str,
    filter: &'static str,
    arm: Arm,
    calls: Counter,
    total_time: Histogram,
    self_time: Histogram,
}

impl Meters {
    pub(crate) fn new(kind: &'static str, filter: &'static str, arm: Arm) -> Arc<Self> {
        let labels = [("kind", kind), ("filter", filter), ("arm", arm.label())];
        Arc::new(Self {
            kind,
            filter,
            arm,
            calls: counter!("qudag_sidecar_filter_calls_total", &labels),
            total_time: histogram!("qudag_sidecar_filter_duration_seconds", &labels),
            self_time: histogram!("qudag_sidecar_filter_self_seconds", &labels),
        })
    }

    /// One call, its duration and that of what it called.
    fn record(&self, total: Duration, inner: Duration, error: Option<&'static str>) {
        self.self_time.record(total.saturating_sub(inner).as_secs_f64());
        self.passed(total, error);
    }

    /// One call that the filter passed on at a glance, which took it no time worth knowing.
    pub(crate) fn passed(&self, total: Duration, error: Option<&'static str>) {
        self.calls(1);
        self.total_time.record(total.as_secs_f64());
        if let Some(error) = error {
            self.error(error);
        }
    }

    pub(crate) fn calls(&self, count: u64) {
        self.calls.increment(count);
    }

    /// The times of a call that stands for so many.
    pub(crate) fn times(&self, total: Duration, own: Duration, count: usize) {
        self.total_time.record_many(total.as_secs_f64(), count);
        self.self_time.record_many(own.as_secs_f64(), count);
    }

    pub(crate) fn error(&self, error: &'static str) {
        let labels =
            [("kind", self.kind), ("filter", self.filter), ("arm", self.arm.label()), ("error", error)];
        counter!("qudag_sidecar_filter_errors_total", &labels).increment(1);
    }
}

/// What a call failed with, or the failure that its reply reports.
pub(crate) fn failure<K: Kind>(result: &Result<K::Rsp, FilterError>) -> Option<&'static str> {
    match result {
        Ok(reply) => K::failure(reply),
        Err(error) => Some(error.label()),
    }
}

/// Measures a filter from outside: `Metered::boxed(…, |inner| filter.wrap(state, inner), inner)`.
///
/// A call's own time is its duration minus the durations of the calls that it made to the inner service. Calls that a
/// filter makes from another task count as its own time.
pub struct Metered<K: Kind> {
    service: Svc<K>,
    meters: Arc<Meters>,
}

impl<K: Kind> Clone for Metered<K> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), meters: Arc::clone(&self.meters) }
    }
}

impl<K: Kind> Metered<K> {
    /// Measures what `wrap` makes of `inner`, as one arm of a filter.
    pub(crate) fn boxed(meters: Arc<Meters>, inner: Svc<K>, wrap: impl FnOnce(Svc<K>) -> Svc<K>) -> Svc<K> {
        let service = wrap(BoxCloneSyncService::new(Inner::<K> { service: inner }));
        BoxCloneSyncService::new(Self { service, meters })
    }
}

impl<K: Kind> Service<K::Req> for Metered<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = Measured<K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        let start = Instant::now();
        let outside = INNER.replace(Duration::ZERO);
        let call = self.service.call(request);
        let inner = INNER.replace(outside);
        Measured { call, start, inner, meters: Arc::clone(&self.meters) }
    }
}

type Call<K> = <Svc<K> as Service<<K as Kind>::Req>>::Future;

pin_project! {
    /// A call that is being measured.
    pub struct Measured<K: Kind> {
        #[pin]
        call: Call<K>,
        start: Instant,
        inner: Duration,
        meters: Arc<Meters>,
    }
}

impl<K: Kind> Future for Measured<K> {
    type Output = Result<K::Rsp, FilterError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outside = INNER.replace(Duration::ZERO);
        let polled = this.call.poll(cx);
        *this.inner += INNER.replace(outside);
        if let Poll::Ready(result) = &polled {
            this.meters.record(this.start.elapsed(), *this.inner, failure::<K>(result));
        }
        polled
    }
}

/// The service inside a filter: adds the duration of each call to what the filter around it subtracts.
struct Inner<K: Kind> {
    service: Svc<K>,
}

impl<K: Kind> Clone for Inner<K> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone() }
    }
}

impl<K: Kind> Service<K::Req> for Inner<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = InnerCall<K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        InnerCall { start: Instant::now(), call: self.service.call(request) }
    }
}

pin_project! {
    struct InnerCall<K: Kind> {
        start: Instant,
        #[pin]
        call: Call<K>,
    }
}

impl<K: Kind> Future for InnerCall<K> {
    type Output = Result<K::Rsp, FilterError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = this.call.poll(cx);
        if polled.is_ready() {
            INNER.set(INNER.get() + this.start.elapsed());
        }
        polled
    }
}
