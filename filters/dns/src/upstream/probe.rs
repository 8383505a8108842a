//! Probes: whether servers in trouble are back, and whether those that nobody asks still answer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::message::question;
use super::{Upstream, UpstreamState};

/// How often it is looked whether a probe is due: so many times in the interval.
const LOOKS: u32 = 8;
/// No query for this time, and servers are probed less often.
const QUIET: Duration = Duration::from_secs(60);

/// Probes the servers of a generation until it is gone.
pub(super) async fn run(upstream: Weak<Upstream>, interval: Duration) {
    loop {
        sleep(interval / LOOKS).await;
        let Some(upstream) = upstream.upgrade() else { return };
        round(&upstream, interval).await;
    }
}

async fn round(upstream: &Upstream, interval: Duration) {
    let Some((name, rtype)) = upstream.settings.probe.question() else { return };
    let now = Instant::now();
    let quiet = UpstreamState::is_quiet(&upstream.state, now, QUIET);
    let asked = Arc::new(question(name, rtype));
    for (_, member) in upstream.members().await.iter() {
        member.sweep(now);
        if member.probe_due(now, interval, quiet, &upstream.means) {
            drop(tokio::spawn(Arc::clone(member).probe(Arc::clone(&upstream.means), Arc::clone(&asked))));
        }
    }
}
