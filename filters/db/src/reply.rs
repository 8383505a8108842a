//! What the sidecar itself says to a client: PostgreSQL's ErrorResponse at connect, where every error is FATAL.

use std::time::Duration;

use bytes::BytesMut;
use qudag_filter_api::FilterError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::wire::build::ErrorResponse;

/// How long an ErrorResponse may take to be sent and read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// `protocol_violation` (PostgreSQL documentation, appendix A).
const PROTOCOL_VIOLATION: &str = "08P01";
/// `connection_failure`.
const CONNECTION_FAILURE: &str = "08006";
/// `invalid_authorization_specification`.
const NOT_ALLOWED: &str = "28000";
/// `too_many_connections`.
const TOO_MANY_CONNECTIONS: &str = "53300";
/// `configuration_limit_exceeded`.
const LIMIT_EXCEEDED: &str = "53400";
/// `admin_shutdown`.
const ADMIN_SHUTDOWN: &str = "57P01";
/// `cannot_connect_now`.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// `internal_error`.
const INTERNAL_ERROR: &str = "XX000";

/// The SQLSTATE of an error.
pub(crate) fn sqlstate(error: &FilterError) -> &'static str {
    match error {
        FilterError::Malformed(_) => PROTOCOL_VIOLATION,
        FilterError::Refused(_) => NOT_ALLOWED,
        FilterError::RateLimited { .. } => LIMIT_EXCEEDED,
        FilterError::BreakerOpen { .. } | FilterError::Unavailable { .. } => CANNOT_CONNECT_NOW,
        FilterError::Overloaded(_) | FilterError::Shed { .. } => TOO_MANY_CONNECTIONS,
        FilterError::Timeout { .. }
        | FilterError::Connect { .. }
        | FilterError::Resolve { .. }
        | FilterError::Upstream(_)
        | FilterError::ClientGone => CONNECTION_FAILURE,
        FilterError::Draining => ADMIN_SHUTDOWN,
        FilterError::Internal(_) => INTERNAL_ERROR,
    }
}

/// The ErrorResponse for an error at connect.
pub(crate) fn error_response(error: &FilterError) -> BytesMut {
    let hint = error.retry_after().map(|after| format!("retry-after: {}", seconds(after)));
    let message = format!("qudag-sidecar: {}", error.public());
    let (sqlstate, hint) = (sqlstate(error), hint.as_deref());
    let mut out = BytesMut::new();
    ErrorResponse { fatal: true, sqlstate, message: &message, detail: None, hint }.write(&mut out);
    out
}

/// Writes the ErrorResponse that a pooled session ends with, or that there is none.
pub(crate) fn fatal(error: &FilterError, out: &mut BytesMut) {
    let (sqlstate, message, hint) = refusal(error);
    ErrorResponse { fatal: true, sqlstate, message: &message, detail: None, hint: Some(&hint) }.write(out);
}

/// Sends an ErrorResponse and closes. Closing while there are unread bytes would send RST, which can destroy it on its way, so a little is
/// read and thrown away.
pub(crate) async fn say_last(mut client: impl AsyncRead + AsyncWrite + Unpin, response: &[u8]) {
    let said = async {
        client.write_all(response).await?;
        client.flush().await?;
        client.shutdown().await?;
        tokio::io::copy(&mut (&mut client).take(64 << 10), &mut tokio::io::sink()).await
    };
    // Nothing more can be done for a client that does not take it.
    let _ = timeout(LAST_WORDS, said).await;
}

/// SQLSTATE, message and HINT of an error within a pooled session. By the HINT it is told from the server's own.
pub(crate) fn refusal(error: &FilterError) -> (&'static str, String, String) {
    let sqlstate = match error {
        // Nothing was sent to the server: it cannot be used at the moment, which is no failure of a connection that the client has.
        FilterError::Timeout { .. } | FilterError::Connect { .. } | FilterError::Resolve { .. } => {
            CANNOT_CONNECT_NOW
        }
        error => sqlstate(error),
    };
    let hint = match error.retry_after() {
        Some(after) => format!("qudag-sidecar: retry after {} ms", after.as_micros().div_ceil(1000).max(1)),
        None => "said by qudag-sidecar, not by the server".to_owned(),
    };
    (sqlstate, format!("qudag-sidecar: {}", error.public()), hint)
}

/// Seconds with milliseconds, rounded up, so that whoever waits so long is not early.
fn seconds(after: Duration) -> String {
    let millis = after.as_micros().div_ceil(1000);
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_has_its_fields_and_length() {
        let error = FilterError::RateLimited { retry_after: Duration::from_micros(1_500_001) };
        let bytes = error_response(&error);
        assert_eq!(bytes[0], b'E');
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 1);
        assert!(bytes.ends_with(b"\0\0"));
        let text = String::from_utf8(bytes[5..].to_vec()).unwrap();
        let fields: Vec<_> = text.trim_end_matches('\0').split('\0').collect();
        assert_eq!(fields[..3], ["SFATAL", "VFATAL", "C53400"]);
        assert!(fields[3].starts_with("Mqudag-sidecar: rate limit reached"), "{fields:?}");
        assert_eq!(fields[4], "Hretry-after: 1.501 s");
    }

    #[test]
    fn zero_bytes_in_a_message_do_not_break_the_frame() {
        let bytes = error_response(&FilterError::Upstream("a\0b".into()));
        assert_eq!(
            bytes.iter().filter(|byte| **byte == 0).count(),
            3 + 4 + 1,
            "three in the length, one a field, one at the end"
        );
    }
}
