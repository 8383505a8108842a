//! What the sidecar itself says to a client.
//!
//! An error begins with a code by which clients decide what to do. `LOADING` is the one that a client of a single server takes for "nothing was
//! done, come again": servers say it while they read their data, to every command, before doing any of it. go-redis, redis-rs and redis-py
//! repeat a command that was answered so, a few times and with growing pauses. `BUSY` is for a script that runs, and `TRYAGAIN` and `CLUSTERDOWN`
//! are understood by clients of clusters only.

use std::time::Duration;

use qudag_filter_api::FilterError;

/// How soon a server that does not answer may be tried again, where nothing better is known.
const SOON: Duration = Duration::from_millis(100);

/// The error for a command of which nothing was sent to the server.
pub(crate) fn refusal(error: &FilterError) -> Vec<u8> {
    let after = match error {
        FilterError::RateLimited { .. }
        | FilterError::BreakerOpen { .. }
        | FilterError::Shed { .. }
        | FilterError::Unavailable { .. }
        | FilterError::Overloaded(_)
        | FilterError::Timeout { .. }
        | FilterError::Connect { .. }
        | FilterError::Resolve { .. }
        | FilterError::Upstream(_)
        | FilterError::Draining => Some(error.retry_after().unwrap_or(SOON)),
        FilterError::Malformed(_)
        | FilterError::Refused(_)
        | FilterError::ClientGone
        | FilterError::Internal(_) => None,
    };
    let what = error.public();
    match after {
        Some(after) => {
            let millis = after.as_micros().div_ceil(1000).max(1);
            line(&format!("LOADING qudag-sidecar: {what}; retry after {millis} ms"))
        }
        None => line(&format!("ERR qudag-sidecar: {what}")),
    }
}

/// An error of these words.
pub(crate) fn line(text: &str) -> Vec<u8> {
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    format!("-{text}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_to_come_again_and_when() {
        let say = |error: &FilterError| String::from_utf8(refusal(error)).unwrap();
        let shed = say(&FilterError::Shed { why: "late", retry_after: Duration::from_micros(14_001) });
        assert!(shed.starts_with("-LOADING qudag-sidecar: overloaded (late)"), "{shed}");
        assert!(shed.ends_with("; retry after 15 ms\r\n"), "{shed}");
        assert!(say(&FilterError::Overloaded("a\r\nb".into())).contains("a  b; retry after 100 ms"));
        assert_eq!(say(&FilterError::Refused("no".into())), "-ERR qudag-sidecar: refused: no\r\n");
    }
}
