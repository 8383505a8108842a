//! What a server says of its load, in one row.

/// Any user may ask this; what only members of `pg_read_all_stats` see is empty for others, and not what they see of themselves.
pub(super) const QUESTION: &[u8] = b"SELECT pg_catalog.pg_backend_pid(), \
COALESCE(pg_catalog.host(pg_catalog.inet_client_addr()) || '(' || pg_catalog.inet_client_port() || ')', ''), \
pg_catalog.current_setting('max_connections'), pg_catalog.current_setting('superuser_reserved_connections'), \
CASE WHEN sees THEN of.clients ELSE sums.backends END, \
CASE WHEN sees THEN of.active END, CASE WHEN sees THEN of.locks END, CASE WHEN sees THEN of.io END, \
CASE WHEN sees THEN of.oldest END, sums.commits, sums.rollbacks, sums.deadlocks, sums.temporary \
FROM (SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees OFFSET 0) AS who, \
(SELECT count(*) AS clients, count(*) FILTER (WHERE state = 'active' AND pid <> pg_catalog.pg_backend_pid()) AS active, \
count(*) FILTER (WHERE state = 'active' AND wait_event_type = 'Lock') AS locks, \
count(*) FILTER (WHERE state = 'active' AND wait_event_type = 'IO') AS io, \
COALESCE(EXTRACT(epoch FROM max(pg_catalog.clock_timestamp() - xact_start) FILTER (WHERE pid <> pg_catalog.pg_backend_pid())), 0) AS oldest \
FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS of, \
(SELECT sum(numbackends) AS backends, sum(xact_commit) AS commits, sum(xact_rollback) AS rollbacks, sum(deadlocks) AS deadlocks, \
sum(temp_bytes) AS temporary FROM pg_catalog.pg_stat_database) AS sums";

/// What is asked that not everybody sees.
pub(super) const OF_ALL_STATS: [&str; 4] = ["active", "lock_waits", "io_waits", "oldest_transaction"];

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) process: u32,
    /// Our end of the connection; empty for a Unix socket.
    pub(super) client: String,
    pub(super) most: u64,
    pub(super) reserved: u64,
    pub(super) connections: u64,
    pub(super) active: Option<u64>,
    pub(super) lock_waits: Option<u64>,
    pub(super) io_waits: Option<u64>,
    /// Seconds.
    pub(super) oldest: Option<f64>,
    pub(super) totals: Totals,
}

/// What only grows, of all databases, as long as nobody resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) commits: u64,
    pub(super) rollbacks: u64,
    pub(super) deadlocks: u64,
    pub(super) temporary: u64,
}

impl Totals {
    /// Since an earlier answer; nothing when they were reset in between.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            commits: self.commits.saturating_sub(before.commits),
            rollbacks: self.rollbacks.saturating_sub(before.rollbacks),
            deadlocks: self.deadlocks.saturating_sub(before.deadlocks),
            temporary: self.temporary.saturating_sub(before.temporary),
        }
    }
}

pub(super) fn figures(row: &[&[u8]]) -> Option<Figures> {
    let text: Option<Vec<&str>> = row.iter().map(|column| std::str::from_utf8(column).ok()).collect();
    let text = text?;
    let [
        process,
        client,
        most,
        reserved,
        connections,
        active,
        locks,
        io,
        oldest,
        commits,
        rollbacks,
        deadlocks,
        temporary,
    ] = text.as_slice()
    else {
        return None;
    };
    fn seen<T: std::str::FromStr>(text: &str) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
    }
    let totals = Totals {
        commits: commits.parse().ok()?,
        rollbacks: rollbacks.parse().ok()?,
        deadlocks: deadlocks.parse().ok()?,
        temporary: temporary.parse().ok()?,
    };
    Some(Figures {
        process: process.parse().ok()?,
        client: (*client).to_owned(),
        most: most.parse().ok()?,
        reserved: reserved.parse().ok()?,
        connections: connections.parse().ok()?,
        active: seen(active)?,
        lock_waits: seen(locks)?,
        io_waits: seen(io)?,
        oldest: seen::<f64>(oldest)?.filter(|age| age.is_finite()).map(|age| age.max(0.0)),
        totals,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_refused() {
        let row = ["7", "127.0.0.1(9)", "100", "3", "12", "2", "1", "0", "1.5", "10", "1", "0", "4096"];
        let of = |row: &[&str]| figures(&row.iter().map(|column| column.as_bytes()).collect::<Vec<_>>());
        let all = of(&row).unwrap();
        assert_eq!(
            (all.connections, all.active, all.oldest, all.totals.temporary),
            (12, Some(2), Some(1.5), 4096)
        );
        let mut less = row;
        less[5..9].fill("");
        let less = of(&less).unwrap();
        assert_eq!((less.connections, less.active, less.oldest), (12, None, None));
        for place in (0..row.len()).filter(|place| *place != 1) {
            let mut wrong = row;
            wrong[place] = "x";
            assert_eq!(of(&wrong), None, "{place}");
        }
        assert_eq!(of(&row[1..]), None);
        let reset = Totals::default().since(all.totals);
        assert_eq!(reset, Totals::default());
    }
}
