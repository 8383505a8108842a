//! What pooled sessions carry for which they ask for a server, for whoever taps it: transactions, batches. The log has a line for the session
//! only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_filter_common::flow::{Audience, Details, Ended};

/// What is carried, as far as it is shown.
pub(crate) trait Part {
    /// The name under which it is tapped.
    const NAME: &'static str;
}

/// The part that a session is in, where somebody wants to see it.
#[derive(Debug)]
pub(crate) struct Tapped<P> {
    audience: &'static Audience,
    begun: Option<Box<Begun<P>>>,
}

#[derive(Debug)]
struct Begun<P> {
    at: Instant,
    /// When it had its server.
    served: Option<Instant>,
    busy: Duration,
    part: P,
    refused: Option<&'static str>,
    /// Bytes from and to the client before it.
    before: (u64, u64),
}

impl<P: Part> Default for Tapped<P> {
    fn default() -> Self {
        Self { audience: Audience::of(P::NAME), begun: None }
    }
}

impl<P> Tapped<P> {
    /// One begins, after so many bytes from and to the client. Costs one relaxed load while nobody taps.
    pub(crate) fn start(&mut self, before: (u64, u64), part: impl FnOnce() -> (Instant, P)) {
        if self.audience.is_tapped() {
            let (at, part) = part();
            let (served, busy, refused) = (None, Duration::ZERO, None);
            self.begun = Some(Box::new(Begun { at, served, busy, part, refused, before }));
        }
    }

    /// It has its server.
    pub(crate) fn served(&mut self, now: Instant) {
        if let Some(begun) = &mut self.begun {
            begun.served = Some(now);
        }
    }

    /// Its server has been busy with it for so long.
    pub(crate) fn busy(&mut self, busy: Duration) {
        if let Some(begun) = &mut self.begun {
            begun.busy = busy;
        }
    }

    /// The client was told that it is not carried out.
    pub(crate) fn refused(&mut self, outcome: &'static str) {
        if let Some(begun) = &mut self.begun {
            begun.refused = Some(outcome);
        }
    }

    /// It is none any more.
    pub(crate) fn forget(&mut self) {
        self.begun = None;
    }

    /// It has ended, after so many bytes; `end`: with the session.
    pub(crate) fn finish(
        &mut self,
        client: Option<SocketAddr>,
        end: Option<&'static str>,
        after: (u64, u64),
        describe: impl FnOnce(&mut Details, &P),
    ) {
        let Some(begun) = self.begun.take() else { return };
        let now = Instant::now();
        let millis = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let mut details = Details::default();
        describe(&mut details, &begun.part);
        let waited = begun.served.unwrap_or(now).saturating_duration_since(begun.at);
        details.add("waited_ms", millis(waited)).add("busy_ms", millis(begun.busy));
        self.audience.show_taps(&Ended {
            client,
            outcome: begun.refused.or(end).unwrap_or("ok"),
            duration: now.saturating_duration_since(begun.at),
            bytes_up: after.0.saturating_sub(begun.before.0),
            bytes_down: after.1.saturating_sub(begun.before.1),
            details: &details,
        });
    }
}
