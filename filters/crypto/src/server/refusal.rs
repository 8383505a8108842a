//! Errors of the chain, as programs are told them.

use qudag_core::offload::{Code, Refusal};
use qudag_filter_api::FilterError;

/// What an error means to a program.
pub(super) fn code(error: &FilterError) -> Code {
    match error {
        FilterError::Malformed(_) => Code::Malformed,
        FilterError::Refused(_) => Code::Refused,
        FilterError::RateLimited { .. } => Code::RateLimited,
        FilterError::Overloaded(_)
        | FilterError::Shed { .. }
        | FilterError::BreakerOpen { .. }
        | FilterError::Unavailable { .. } => Code::Overloaded,
        FilterError::Draining => Code::Draining,
        FilterError::Timeout { .. } => Code::Timeout,
        FilterError::Connect { .. }
        | FilterError::Resolve { .. }
        | FilterError::Upstream(_)
        | FilterError::ClientGone
        | FilterError::Internal(_) => Code::Internal,
    }
}

/// The error in the binary protocol.
pub(super) fn binary(error: &FilterError) -> Refusal {
    Refusal { code: code(error), retry_after: error.retry_after(), message: error.public() }
}
