//! What is done for a pool once in a while, and how it is shown.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use qudag_core::queue::Refusal;
use tokio::sync::Notify;

use super::conn::{Conn, closed};
use super::desk::{Desk, lock};
use super::places::{Figures, Places, Seat};
use super::registry::{PoolStatus, ServerStatus, ServerTrace, StatementStatus};
use super::servers::{Pool, Statement};
use super::settings::Pressure;
use crate::session::Fingerprint;
use crate::startup::shown;

/// How long a pool without sessions and connections is kept.
const KEEP: Duration = Duration::from_secs(60);

impl Desk for Pool {
    type Conn = Conn;

    fn places(&self) -> &Mutex<Places<Box<Conn>>> {
        &self.places
    }

    fn earlier(&self) -> &Notify {
        &self.earlier
    }

    fn closed(&self, reason: &'static str) {
        closed(reason);
        self.disconnected();
    }

    fn put(self: &Arc<Self>, seat: Seat, connection: Option<Box<Conn>>, now: Instant) {
        let lost = connection.is_none();
        let surplus = lock(&self.places).release(seat, connection, now);
        if surplus.is_some() {
            self.closed("shrunk");
        } else if lost {
            self.disconnected();
        }
        if let Some(home) = self.home.upgrade() {
            home.share(self);
        }
        if lost {
            self.make_connections();
        }
    }

    /// Closes connections that are too old, idle for too long, or dead. Whether the pool is not needed any more.
    fn look(self: &Arc<Self>, now: Instant) -> bool {
        let (ages, unused) = {
            let known = lock(&self.known);
            (known.settings.ages(), known.sessions == 0 && now.saturating_duration_since(known.used) > KEEP)
        };
        self.close_outlived(ages, now);
        let figures = self.figures();
        self.show(&figures, now);
        unused
            && figures.connections == 0
            && figures.running == 0
            && self.home.upgrade().is_none_or(|home| home.forget(self))
    }

    fn shed(&self, why: Refusal) {
        counter!("qudag_sidecar_db_sheds_total", "reason" => why.label()).increment(1);
    }

    fn waited(&self, time: Duration) {
        self.meters.wait.record(time.as_secs_f64());
    }
}

impl Pool {
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
        for (state, number) in
            [("active", figures.in_use()), ("idle", figures.idle), ("connecting", figures.connecting)]
        {
            gauge!("qudag_sidecar_db_pool_servers", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        for (state, number) in [("pooled", sessions.saturating_sub(pinned)), ("pinned", pinned)] {
            gauge!("qudag_sidecar_db_pool_sessions", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        let labels = [("database", database), ("user", user)];
        gauge!("qudag_sidecar_db_pool_size", &labels).set(figures.size as f64);
        gauge!("qudag_sidecar_db_pool_limit", &labels).set(limit as f64);
        gauge!("qudag_sidecar_db_queue_depth", &labels).set(figures.waiting as f64);
        gauge!("qudag_sidecar_db_queue_oldest_seconds", &labels).set(figures.oldest_wait(now));
    }

    /// The pool as it is shown.
    pub(crate) fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let figures = self.figures();
        let Figures { size, limit, connecting, idle, running, waiting, paused, .. } = figures;
        let (sessions, pinned, adaptive, error, mut statements) = {
            let known = lock(&self.known);
            let adaptive = known.limit.get(&Pressure::default().limit(known.settings.size));
            let error = known.attempts.failure().map(|failure| failure.why.to_string());
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
            oldest_wait: figures.oldest_wait(now),
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
