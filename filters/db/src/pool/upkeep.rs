//! What is done for a pool once in a while, and how it is shown.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::time::sleep_until;

use super::conn::closed;
use super::places::Figures;
use super::registry::{PoolStatus, ServerStatus, ServerTrace, StatementStatus};
use super::servers::{Pool, Statement, lock};
use super::settings::Pressure;
use crate::session::Fingerprint;
use crate::startup::shown;

/// How often idle connections are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a pool without sessions and connections is kept.
const KEEP: Duration = Duration::from_secs(60);

/// Refuses those who have waited long enough, and closes what has been idle for too long.
pub(super) async fn look_after(pool: Arc<Pool>) {
    let mut looked = Instant::now();
    loop {
        let now = Instant::now();
        let next = {
            let mut places = lock(&pool.places);
            places.expire(now);
            places.wake()
        };
        if now.saturating_duration_since(looked) >= LOOK {
            looked = now;
            if pool.look(now) {
                return;
            }
        }
        let next = next.unwrap_or(now + LOOK).min(looked + LOOK);
        tokio::select! {
            () = sleep_until(next.into()) => {}
            () = pool.earlier.notified() => {}
        }
    }
}

impl Pool {
    /// Closes connections that are too old, idle for too long, or dead. Whether the pool is not needed any more.
    fn look(self: &Arc<Self>, now: Instant) -> bool {
        let (settings, unused) = {
            let known = lock(&self.known);
            (
                Arc::clone(&known.settings),
                known.sessions == 0 && now.saturating_duration_since(known.used) > KEEP,
            )
        };
        let gone = lock(&self.places).take_idle(|connection| {
            let since = |time| now.saturating_duration_since(time);
            let reason = if since(connection.idle_since) > settings.server_idle.0 {
                "idle"
            } else if since(connection.created) > settings.server_lifetime.0 {
                "lifetime"
            } else if !connection.is_quiet() {
                "ended_idle"
            } else {
                return false;
            };
            closed(reason);
            true
        });
        for _ in &gone {
            self.disconnected();
        }
        let figures = self.figures();
        self.show(&figures, now);
        unused
            && figures.connections == 0
            && figures.running == 0
            && self.home.upgrade().is_none_or(|home| home.forget(self))
    }

    /// Sets the gauges of the pool.
    fn show(&self, figures: &Figures, now: Instant) {
        let (user, database) = (shown(&self.key.user), shown(&self.key.database));
        let (sessions, pinned, limit) = {
            let known = lock(&self.known);
            // Names become labels only when the server knows them.
            if known.welcome.is_none() {
                return;
            }
            (known.sessions, known.pinned, known.limit.get(&Pressure::default().limit(known.settings.size)))
        };
        let busy = figures.connections.saturating_sub(figures.idle + figures.connecting);
        for (state, number) in [("active", busy), ("idle", figures.idle), ("connecting", figures.connecting)]
        {
            gauge!("qudag_sidecar_db_pool_servers", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        for (state, number) in [("pooled", sessions.saturating_sub(pinned)), ("pinned", pinned)] {
            gauge!("qudag_sidecar_db_pool_sessions", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        let age = figures.oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64());
        let labels = [("database", database), ("user", user)];
        gauge!("qudag_sidecar_db_pool_size", &labels).set(figures.size as f64);
        gauge!("qudag_sidecar_db_pool_limit", &labels).set(limit as f64);
        gauge!("qudag_sidecar_db_queue_depth", &labels).set(figures.waiting as f64);
        gauge!("qudag_sidecar_db_queue_oldest_seconds", &labels).set(age);
    }

    pub(super) fn figures(&self) -> Figures {
        lock(&self.places).figures()
    }

    /// The pool as it is shown.
    pub(crate) fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let Figures { size, limit, connecting, idle, running, waiting, oldest, paused, .. } = self.figures();
        let (sessions, pinned, adaptive, error, mut statements) = {
            let known = lock(&self.known);
            let adaptive = known.limit.get(&Pressure::default().limit(known.settings.size));
            let error = known.failure.as_ref().map(|failure| failure.why.to_string());
            let statements: Vec<_> =
                known.statements.iter().map(|(id, statement)| (*id, statement.clone())).collect();
            (known.sessions, known.pinned, adaptive, error, statements)
        };
        statements.sort_by_key(|(_, statement)| std::cmp::Reverse(statement.busy));
        PoolStatus {
            server: self.key.server.to_string(),
            user: shown(&self.key.user),
            database: shown(&self.key.database),
            size,
            limit,
            adaptive_limit: adaptive,
            active: running,
            idle,
            connecting,
            sessions,
            pinned,
            waiting,
            oldest_wait: oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64()),
            paused,
            error,
            clients: self.sessions.all().iter().map(|session| session.status(now)).collect(),
            connections: self.servers.all().iter().map(|server| server_status(server, now)).collect(),
            statements: statements.into_iter().map(statement_status).collect(),
        }
    }
}

fn server_status(server: &ServerTrace, now: Instant) -> ServerStatus {
    let (since, age) = server.trace.times(now);
    let transactions = server.trace.transactions.load(Relaxed);
    ServerStatus {
        process: server.process,
        doing: server.trace.doing(),
        since,
        age,
        transactions,
        tls: server.encrypted,
    }
}

fn statement_status((fingerprint, statement): (Fingerprint, Statement)) -> StatementStatus {
    let Statement { shape, calls, done, busy, .. } = statement;
    StatementStatus {
        fingerprint: fingerprint.to_string(),
        calls,
        done,
        busy: busy.as_secs_f64(),
        text: shape.to_string(),
    }
}
