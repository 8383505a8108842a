//! What a chain itself costs: no chain, all filters off, one filter, a split filter. Times are noisy; instructions are not, so both are shown.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use qudag_filter_api::{
    Address, BuildError, ChainSpec, Env, FilterError, FilterSpec, Flow, FlowKey, HostPort, Kind, Lanes, Node,
    Percent, Resolve, Slot, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, instructions};

/// A request that costs nothing besides the chain.
struct Call(u64);

impl Flow for Call {
    fn key(&self) -> FlowKey {
        FlowKey::of(&self.0.to_le_bytes())
    }
    fn client(&self) -> Option<IpAddr> {
        None
    }
}

struct Bench;

impl Kind for Bench {
    const NAME: &'static str = "bench";
    type Req = Call;
    type Rsp = u64;
    type Glance<'a> = std::convert::Infallible;
    type Settings = ();
}

macro_rules! nothing {
    ($($type:ident = $name:literal,)+) => {$(
        /// A filter that hands on what it gets, so that only what every filter costs is seen.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct $type {}

        impl FilterSpec for $type {
            type Kind = Bench;
            type State = ();
            const NAME: &'static str = $name;
            fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
                Ok(Arc::new(()))
            }
            fn wrap(&self, _: Arc<()>, inner: Svc<Bench>) -> Svc<Bench> {
                inner
            }
        }
    )+};
}

nothing! {
    First = "first",
    Second = "second",
    Third = "third",
    Fourth = "fourth",
}

qudag_filter_api::chain! {
    /// As many filters as the longest chain has.
    struct Filters for Bench, states States {
        /// The first.
        first: First,
        /// The second.
        second: Second,
        /// The third.
        third: Third,
        /// The fourth.
        fourth: Fourth,
    }
}

/// What stands before the terminal service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// The terminal service itself, no chain was built.
    None,
    /// A chain of four filters, all of them off.
    Off,
    /// One of the four is on.
    One,
    /// One of the four is on for half of the flows.
    Split,
    /// All four are on.
    Four,
}

impl With {
    const ALL: [Self; 5] = [Self::None, Self::Off, Self::One, Self::Split, Self::Four];

    fn label(self) -> &'static str {
        match self {
            Self::None => "no chain",
            Self::Off => "four filters off",
            Self::One => "one filter on",
            Self::Split => "one filter at 50 %",
            Self::Four => "four filters on",
        }
    }

    fn service(self) -> Result<Svc<Bench>, Failure> {
        let terminal = service_fn::<Bench, _, _>(|call: Call| async move { Ok(call.0.wrapping_add(1)) });
        let mut filters = Filters::default();
        match self {
            Self::None => return Ok(terminal),
            Self::Off => {}
            Self::One => filters.first.enabled = true,
            Self::Split => {
                let half = Percent::new(50.0).unwrap_or_default();
                filters.first = Slot { enabled: true, rollout: half, settings: First::default() };
            }
            Self::Four => {
                filters.first.enabled = true;
                filters.second.enabled = true;
                filters.third.enabled = true;
                filters.fourth.enabled = true;
            }
        }
        let (chain, _) = filters.build(&env(), &(), &States::default(), terminal)?;
        Ok(chain.service())
    }
}

struct NoNames;

impl Resolve for NoNames {
    fn resolve(
        &self,
        name: &str,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send + 'static>> {
        let why = std::io::Error::other(name.to_owned());
        Box::pin(async move { Err(why) })
    }
}

fn env() -> Env {
    let here = |port| HostPort { host: qudag_filter_api::Host::Ip(Ipv4Addr::LOCALHOST.into()), port };
    let node = Node { name: "bench".into(), p2p: here(1), rpc: Address::Tcp(here(2)), http: here(3) };
    Env { node: Arc::new(node), resolve: Arc::new(NoNames), service: Arc::default(), lanes: Lanes::default() }
}

/// One call as a listener makes it: clone the chain, call it once, poll it to its end.
fn call(service: &Svc<Bench>, number: u64) -> Result<u64, FilterError> {
    let mut future = std::pin::pin!(service.clone().oneshot(Call(number)));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(FilterError::Internal("nothing here waits".into())),
    }
}

/// Calls a chain once, for [`instructions::count`].
///
/// # Errors
/// When the answer is wrong, or the process cannot be traced.
pub fn counted(with: With) -> Result<(), Failure> {
    install_recorder()?;
    let service = with.service()?;
    instructions::counted(|| check(&service, 1))
}

fn check(service: &Svc<Bench>, number: u64) -> Result<(), Failure> {
    let answer = call(std::hint::black_box(service), std::hint::black_box(number))?;
    if answer == number.wrapping_add(1) { Ok(()) } else { Err("a wrong answer".into()) }
}

/// Metrics are recorded into the same recorder as in the product.
///
/// # Errors
/// When there is one already.
pub fn install_recorder() -> Result<(), Failure> {
    metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    Ok(())
}

/// The rows: nanoseconds a call, interleaved, and instructions a call.
///
/// # Errors
/// When an answer is wrong or a process cannot be traced.
pub fn rows(plan: Plan) -> Result<Vec<Row>, Failure> {
    install_recorder()?;
    let mut rows = times(plan)?;
    rows.extend(instructions_a_call()?);
    Ok(rows)
}

fn times(plan: Plan) -> Result<Vec<Row>, Failure> {
    let services = With::ALL.map(|with| with.service().map(|service| (with, service)));
    let services = services.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); services.len()];
    let progress = Progress::new("chain", (plan.rounds * 10) as u64);
    for _ in 0..plan.rounds * 10 {
        progress.step("ns");
        for ((_, service), samples) in services.iter().zip(&mut samples) {
            samples.push(nanos_a_call(service, plan.slice / 40)?);
        }
    }
    let medians: Vec<f64> = samples.into_iter().map(median).collect();
    let base = medians.first().copied().unwrap_or_default();
    let rows = With::ALL.iter().zip(&medians).skip(1);
    Ok(rows.map(|(with, ns)| beside_none(*with, "time", *ns, "ns/call", base)).collect())
}

fn beside_none(with: With, what: &str, ours: f64, unit: &'static str, base: f64) -> Row {
    Row::beside(format!("chain, {}: {what}", with.label()), ours, unit, With::None.label(), base)
}

fn nanos_a_call(service: &Svc<Bench>, slice: Duration) -> Result<f64, FilterError> {
    const BATCH: u64 = 2_000;
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed() < slice {
        for number in 0..BATCH {
            std::hint::black_box(call(std::hint::black_box(service), std::hint::black_box(number))?);
        }
        calls += BATCH;
    }
    Ok(start.elapsed().as_nanos() as f64 / calls.max(1) as f64)
}

fn instructions_a_call() -> Result<Vec<Row>, Failure> {
    let program = std::env::current_exe()?;
    let mut counts = Vec::new();
    for with in With::ALL {
        counts.push((with, instructions_with(&program, with)? as f64));
    }
    let base = counts.first().map(|(_, count)| *count).unwrap_or_default();
    let mut rows: Vec<Row> = counts
        .iter()
        .skip(1)
        .map(|(with, count)| beside_none(*with, "instructions", *count, "instr/call", base))
        .collect();
    if let Some((_, off)) = counts.iter().find(|(with, _)| *with == With::Off) {
        rows.push(Row::alone("chain, four filters off: added", off - base, "instr/call").at_most(0.0));
    }
    Ok(rows)
}

/// What one call takes, in a process of its own that runs this benchmark.
///
/// # Errors
/// When the process fails or cannot be traced.
pub fn instructions_with(program: &Path, with: With) -> Result<u64, Failure> {
    let name = with.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    instructions::count(program, &["counted-call", "--with", &name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_gives_the_same_answers() {
        for with in With::ALL {
            let service = with.service().unwrap();
            (0..100).for_each(|number| check(&service, number).unwrap());
        }
    }
}
