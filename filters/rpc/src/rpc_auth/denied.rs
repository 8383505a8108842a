//! Why a call does not pass.

use std::time::Duration;

use qudag_core::replay::NotTaken;
use qudag_filter_api::FilterError;
use qudag_mldsa::Rejected;

/// Why a call does not pass. The text is what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// There are no credentials.
    #[error("authentication is required: `params.auth_token`, or `params.client_id` and `params.signature`")]
    Missing,
    /// A credential is there twice.
    #[error("`auth_token`, `client_id` or `signature` is there twice")]
    Ambiguous,
    /// The token is none of the known ones.
    #[error("the token is not known")]
    Token,
    /// There is no client of that name.
    #[error("the client is not known")]
    Client,
    /// The signature is none in its form.
    #[error("the signature is not the hexadecimal digits of one")]
    Form,
    /// A coefficient of z is out of range. A node on AVX2 would not look at that.
    #[error("the signature is out of range")]
    Range,
    /// The signature is of something else, or by another key.
    #[error("the signature does not match")]
    Mismatch,
    /// The id was taken before.
    #[error("the id was used before")]
    Replayed,
    /// The id carries no time.
    #[error("the id has to be a UUID of version 7")]
    Timeless,
    /// The id is too old.
    #[error("the id was made too long ago")]
    Old,
    /// The id is of the future.
    #[error("the id was made in the future")]
    Ahead,
    /// Another id could not be remembered.
    #[error("too many signed calls")]
    Full {
        /// Of this client; otherwise of all together.
        of_client: bool,
        /// When one is forgotten.
        retry_after: Duration,
    },
}

impl Denied {
    /// The metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Token => "unknown_token",
            Self::Client => "unknown_client",
            Self::Form => "malformed_signature",
            Self::Range => "out_of_range",
            Self::Mismatch => "mismatch",
            Self::Replayed => "replayed",
            Self::Timeless => "timeless",
            Self::Old => "old",
            Self::Ahead => "ahead",
            Self::Full { of_client: true, .. } => "full_client",
            Self::Full { of_client: false, .. } => "full",
        }
    }
}

impl From<Denied> for FilterError {
    fn from(denied: Denied) -> Self {
        match denied {
            // The caller is who it says, and comes too often.
            Denied::Full { retry_after, .. } => Self::RateLimited { retry_after },
            denied => Self::Refused(denied.to_string().into()),
        }
    }
}

impl From<Rejected> for Denied {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Length | Rejected::Hints => Self::Form,
            Rejected::Range => Self::Range,
            Rejected::Context | Rejected::Mismatch => Self::Mismatch,
        }
    }
}

impl From<NotTaken> for Denied {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Replayed => Self::Replayed,
            NotTaken::Timeless => Self::Timeless,
            NotTaken::Old => Self::Old,
            NotTaken::Ahead => Self::Ahead,
            NotTaken::Full { of_client, retry_after } => Self::Full { of_client, retry_after },
        }
    }
}
