//! A peer whose sidecar dies: how soon that is known, how often it is dialled, and how long connections take meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::stand::Stand;
use crate::contenders::{Sidecar, Stage};
use crate::measure::{Plan, pause};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, clients, servers};

/// Connections to each of the crowded ones.
const CONNECTS: u32 = 1000;
/// Until a breaker is open, ms.
const OPEN_WITHIN: f64 = 5_000.0;
/// For a connection from then on, ms.
const DIRECT_WITHIN: f64 = 1_000.0;
/// As often as with one connection.
const MOST_DIALS: f64 = 1.2;
/// Before a breaker is open.
const PACE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);
/// The name of the route.
const ROUTE: &str = "far";

/// A sidecar beside the dead one.
struct Near {
    sidecar: Sidecar,
    at: SocketAddr,
}

impl Near {
    /// What `peers` says of the breaker, and how many connections there are.
    fn pool(&self) -> Result<(String, usize), Failure> {
        let told = self.sidecar.get("/peers")?;
        let pool = told.pointer("/pools/0").ok_or("no pool")?;
        let breaker = pool["breaker"].as_str().unwrap_or_default().to_owned();
        Ok((breaker, pool["connections"].as_array().map_or(0, Vec::len)))
    }

    fn dials(&self) -> Result<f64, Failure> {
        self.sidecar.metric("qudag_sidecar_peer_dials_total", &[])
    }

    /// How long a new connection takes.
    fn connect(&self) -> Result<Duration, Failure> {
        let start = Instant::now();
        clients::opened(self.at)?;
        Ok(start.elapsed())
    }

    /// Connects until the breaker is open; how long after `death` that is.
    fn opens(&self, death: Instant) -> Result<Duration, Failure> {
        loop {
            self.connect()?;
            if self.pool()?.0 == "open" {
                return Ok(death.elapsed());
            }
            if death.elapsed() > PATIENCE {
                return Err("the breaker does not open".into());
            }
            pause(PACE);
        }
    }

    /// So many connections, evenly until `end`; the slowest.
    fn crowd(&self, connects: u32, end: Instant) -> Result<Duration, Failure> {
        let mut slowest = Duration::ZERO;
        for left in (1..=connects).rev() {
            slowest = slowest.max(self.connect()?);
            pause(end.saturating_duration_since(Instant::now()) / left);
        }
        Ok(slowest)
    }
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    // The breaker's waits are drawn by lot; many make up for that.
    let (each, time) = if plan.is_quick() { (2, 5) } else { (8, 20) };
    let time = Duration::from_secs(time);
    let stand = Stand::local(stage);
    let server = stand.server(servers::echo)?;
    let far = stand.far_end("far", server)?;
    let near = (0..2 * each)
        .map(|_| {
            let sidecar = stand.near_with_fallback(ROUTE, &far, server)?;
            let at = sidecar.at_named(ROUTE)?;
            Ok(Near { sidecar, at })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let start = Instant::now();
    for near in &near {
        while near.pool()?.1 == 0 {
            if start.elapsed() > PATIENCE {
                return Err("the tunnel does not come up".into());
            }
            pause(PACE);
        }
        near.connect()?;
    }
    let progress = Progress::new("peer, dead", 2);
    progress.step("sidecar");
    let death = Instant::now();
    drop(far);
    let opened = together(&near, |near| near.opens(death))?;
    let before = near.iter().map(Near::dials).collect::<Result<Vec<_>, _>>()?;
    progress.step("sidecar");
    let end = Instant::now() + time;
    let slowest = together(&near, |this| {
        let place = near.iter().position(|near| std::ptr::eq(near, this)).unwrap_or_default();
        this.crowd(if place < each { 1 } else { CONNECTS }, end)
    })?;
    let dials = near.iter().zip(before).map(|(near, before)| Ok(near.dials()? - before));
    let dials = dials.collect::<Result<Vec<_>, Failure>>()?;
    drop(progress);
    let (one, crowd) = dials.split_at(each);
    let (one, crowd): (f64, f64) = (one.iter().sum(), crowd.iter().sum());
    let worst = |times: &[Duration]| times.iter().max().map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let each = each as f64;
    let seconds = time.as_secs();
    Ok(vec![
        Row::alone("peer, its sidecar dies: until the breaker is open, slowest", worst(&opened), "ms")
            .at_most(OPEN_WITHIN),
        Row::alone("peer, its sidecar is dead: slowest new connection", worst(&slowest), "ms")
            .at_most(DIRECT_WITHIN),
        Row::beside(
            format!("peer, its sidecar is dead: dials in {seconds} s, with {CONNECTS} connections"),
            crowd / each,
            "",
            "one connection",
            one / each,
        )
        .ratio_at_most(MOST_DIALS),
    ])
}

/// Does something with all of them at once.
fn together<T: Send>(
    near: &[Near],
    work: impl Fn(&Near) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            near.iter().map(|near| scope.spawn(move || work(near).map_err(|why| why.to_string()))).collect();
        let results =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a panic".to_owned())));
        results.map(|result| result.map_err(Failure::from)).collect()
    })
}
