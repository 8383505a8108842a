//! What can go wrong in a chain, as a closed set.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Who caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client sent something wrong, too much, or went away.
    Client,
    /// The node, database or upstream server failed.
    Upstream,
    /// The sidecar itself refused or failed.
    Sidecar,
}

impl Origin {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Sidecar => "sidecar",
        }
    }
}

/// The error of every service in a chain.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FilterError {
    /// The request cannot be understood.
    #[error("malformed request: {0}")]
    Malformed(Cow<'static, str>),
    /// A policy forbids the request.
    #[error("refused: {0}")]
    Refused(Cow<'static, str>),
    /// The client or all clients together are over their rate.
    #[error("rate limit reached, try again in {retry_after:?}")]
    RateLimited {
        /// When a token will be there.
        retry_after: Duration,
    },
    /// The circuit breaker of the upstream is open.
    #[error("circuit breaker is open, next probe in {retry_after:?}")]
    BreakerOpen {
        /// When the breaker lets a probe through.
        retry_after: Duration,
    },
    /// A bounded queue is full.
    #[error("overloaded: {0}")]
    Overloaded(Cow<'static, str>),
    /// Under overload: others are served instead, so that they are served in time.
    #[error("overloaded ({why}), try again in {retry_after:?}")]
    Shed {
        /// Why, a label.
        why: &'static str,
        /// When it is worth while.
        retry_after: Duration,
    },
    /// The upstream serves nobody at the moment; no payload byte was sent.
    #[error("upstream is not available: {why}")]
    Unavailable {
        /// What is known of it.
        why: Cow<'static, str>,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// Nothing came in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The limit that passed.
        after: Duration,
    },
    /// No connection to the upstream could be made; no payload byte was sent.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The upstream as configured.
        to: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The upstream's name cannot be resolved.
    #[error("cannot resolve {name}: {why}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        why: Cow<'static, str>,
    },
    /// The upstream broke off or broke its protocol after it had been reached.
    #[error("upstream failed: {0}")]
    Upstream(Cow<'static, str>),
    /// The client went away.
    #[error("client closed the connection")]
    ClientGone,
    /// The sidecar is stopping.
    #[error("draining")]
    Draining,
    /// A fault of the sidecar.
    #[error("internal error: {0}")]
    Internal(Cow<'static, str>),
}

impl FilterError {
    /// A [`FilterError::Connect`].
    pub fn connect(to: impl Into<String>, source: io::Error) -> Self {
        Self::Connect { to: to.into(), source: Arc::new(source) }
    }

    /// What a client is told: nothing of the addresses and names behind the sidecar, nor of its inside. The log has the whole error.
    pub fn public(&self) -> String {
        match self {
            Self::Connect { source, .. } => format!("cannot connect to the upstream: {}", source.kind()),
            Self::Resolve { .. } => "cannot resolve the upstream's name".to_owned(),
            Self::Unavailable { .. } => "the upstream is not available".to_owned(),
            Self::Internal(_) => "internal error".to_owned(),
            error => error.to_string(),
        }
    }

    /// The metric label: one per variant, never from data.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Refused(_) => "refused",
            Self::RateLimited { .. } => "rate_limited",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Overloaded(_) => "overloaded",
            Self::Shed { .. } => "shed",
            Self::Unavailable { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::Connect { .. } => "connect",
            Self::Resolve { .. } => "resolve",
            Self::Upstream(_) => "upstream",
            Self::ClientGone => "client_gone",
            Self::Draining => "draining",
            Self::Internal(_) => "internal",
        }
    }

    /// Who caused it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Malformed(_) | Self::RateLimited { .. } | Self::ClientGone => Origin::Client,
            Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. }
            | Self::Resolve { .. }
            | Self::Upstream(_) => Origin::Upstream,
            Self::Refused(_)
            | Self::BreakerOpen { .. }
            | Self::Overloaded(_)
            | Self::Shed { .. }
            | Self::Draining
            | Self::Internal(_) => Origin::Sidecar,
        }
    }

    /// Whether another attempt may succeed. Whether it is *safe* is for [`Kind::replay`](crate::Kind::replay) to say.
    pub fn retryable(&self) -> bool {
        self.origin() == Origin::Upstream
    }

    /// When the client should come back, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after }
            | Self::BreakerOpen { retry_after }
            | Self::Shed { retry_after, .. }
            | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// Why a filter, listener or terminal service could not be built from valid settings.
#[derive(Debug, thiserror::Error)]
#[error("cannot build {what}: {why}")]
pub struct BuildError {
    /// The part, by its configuration path.
    pub what: String,
    /// Why.
    pub why: String,
}

impl BuildError {
    /// A build error of the part at a configuration path.
    pub fn new(what: impl Into<String>, why: impl ToString) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_learn_nothing_of_what_lies_behind() {
        let connect =
            FilterError::connect("10.1.2.3:5432", io::Error::from(io::ErrorKind::ConnectionRefused));
        let resolve =
            FilterError::Resolve { name: "db.internal".into(), why: "no answer from 10.1.2.3".into() };
        let internal = FilterError::Internal("/etc/secret".into());
        for (error, inside) in [(connect, "10.1.2.3"), (resolve, "db.internal"), (internal, "secret")] {
            assert!(error.to_string().contains(inside));
            assert!(!error.public().contains(inside), "{}", error.public());
        }
        assert_eq!(FilterError::Draining.public(), "draining");
    }
}
