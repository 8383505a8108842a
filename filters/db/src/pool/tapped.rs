//! Transactions of pooled sessions, as they are tapped.

use std::time::Instant;

use super::SessionInfo;
use crate::session::Fingerprint;
use crate::startup::shown;
use crate::tapped::{self, Part};

/// The name under which transactions are tapped.
pub const TRANSACTIONS: &str = "db_transactions";

/// The transaction that a session is in, where somebody wants to see it.
pub(crate) type Tapped = tapped::Tapped<Transaction>;

/// A transaction, as far as it is shown.
#[derive(Debug)]
pub(crate) struct Transaction {
    statement: Fingerprint,
    text: String,
}

impl Part for Transaction {
    const NAME: &'static str = TRANSACTIONS;
}

impl Tapped {
    /// One begins, after so many bytes from and to the client.
    pub(crate) fn begin(
        &mut self,
        at: Instant,
        statement: Fingerprint,
        text: impl FnOnce() -> String,
        before: (u64, u64),
    ) {
        self.start(before, || (at, Transaction { statement, text: text() }));
    }

    /// It was answered without a server.
    pub(crate) fn cached(&mut self) {
        self.refused("cached");
    }

    /// It has ended, after so many bytes; `end`: with the session.
    pub(crate) fn end(&mut self, session: &SessionInfo, end: Option<&'static str>, after: (u64, u64)) {
        self.finish(session.client, end, after, |details, transaction| {
            let key = &session.pool.key;
            details.add("user", shown(&key.user)).add("database", shown(&key.database));
            if !session.application.is_empty() {
                details.add("application", &session.application);
            }
            details.add("statement", transaction.statement).add("text", &transaction.text);
        });
    }
}
