//! Transactions of pooled sessions, for whoever taps them. The log has a line for the session only.

use std::time::{Duration, Instant};

use qudag_filter_common::flow::{Audience, Details, Ended};

use super::SessionInfo;
use crate::session::Fingerprint;
use crate::startup::shown;

/// The name under which transactions are tapped.
pub const TRANSACTIONS: &str = "db_transactions";

/// The transaction that a session is in, where somebody wants to see it.
#[derive(Debug)]
pub(crate) struct Tapped {
    audience: &'static Audience,
    begun: Option<Box<Begun>>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    /// When it had its server.
    served: Option<Instant>,
    busy: Duration,
    statement: Fingerprint,
    text: String,
    refused: Option<&'static str>,
    /// Bytes from and to the client before it.
    before: (u64, u64),
}

impl Default for Tapped {
    fn default() -> Self {
        Self { audience: Audience::of(TRANSACTIONS), begun: None }
    }
}

impl Tapped {
    /// One begins, after so many bytes from and to the client. Costs one relaxed load while nobody taps.
    pub(crate) fn begin(
        &mut self,
        at: Instant,
        statement: Fingerprint,
        text: impl FnOnce() -> String,
        before: (u64, u64),
    ) {
        if self.audience.is_tapped() {
            let (served, busy, refused) = (None, Duration::ZERO, None);
            let begun = Begun { at, served, busy, statement, text: text(), refused, before };
            self.begun = Some(Box::new(begun));
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

    /// It was answered without a server.
    pub(crate) fn cached(&mut self) {
        self.refused("cached");
    }

    /// The client was told that it is not carried out.
    pub(crate) fn refused(&mut self, outcome: &'static str) {
        if let Some(begun) = &mut self.begun {
            begun.refused = Some(outcome);
        }
    }

    /// It has ended, after so many bytes; `end`: with the session.
    pub(crate) fn end(&mut self, session: &SessionInfo, end: Option<&'static str>, after: (u64, u64)) {
        let Some(begun) = self.begun.take() else { return };
        let now = Instant::now();
        let millis = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let mut details = Details::default();
        details.add("user", shown(&session.pool.key.user)).add("database", shown(&session.pool.key.database));
        if !session.application.is_empty() {
            details.add("application", &session.application);
        }
        details.add("statement", begun.statement).add("text", &begun.text);
        let waited = begun.served.unwrap_or(now).saturating_duration_since(begun.at);
        details.add("waited_ms", millis(waited)).add("busy_ms", millis(begun.busy));
        self.audience.show_taps(&Ended {
            client: session.client,
            outcome: begun.refused.or(end).unwrap_or("ok"),
            duration: now.saturating_duration_since(begun.at),
            bytes_up: after.0.saturating_sub(begun.before.0),
            bytes_down: after.1.saturating_sub(begun.before.1),
            details: &details,
        });
    }
}
