//! Batches of pooled sessions, for whoever taps them: how many commands and what they are called, never keys or values. The log has a line for
//! the session only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_filter_common::flow::{Audience, Details, Ended};

use crate::redis::machine::Batch;
use crate::redis::pool::Pool;
use crate::redis::resp::{CommandScan, arguments};

/// The name under which batches are tapped.
pub const BATCHES: &str = "redis_batches";
/// So many names of commands are shown.
const NAMES: usize = 8;

/// The batch that a session is in, where somebody wants to see it.
#[derive(Debug)]
pub(super) struct Tapped {
    audience: &'static Audience,
    begun: Option<Box<Begun>>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    /// When it had its connection.
    served: Option<Instant>,
    busy: Duration,
    commands: usize,
    names: String,
    refused: Option<&'static str>,
    /// Bytes from and to the client before it.
    before: (u64, u64),
}

impl Default for Tapped {
    fn default() -> Self {
        Self { audience: Audience::of(BATCHES), begun: None }
    }
}

impl Tapped {
    /// One begins, after so many bytes from and to the client. Costs one relaxed load while nobody taps.
    pub(super) fn begin(&mut self, inbox: &[u8], batch: Batch, before: (u64, u64)) {
        if self.audience.is_tapped() {
            let names = names(inbox.get(..batch.bytes).unwrap_or_default());
            let (served, busy, refused, commands) = (None, Duration::ZERO, None, batch.commands);
            let at = Instant::now();
            self.begun = Some(Box::new(Begun { at, served, busy, commands, names, refused, before }));
        }
    }

    /// It has its connection.
    pub(super) fn served(&mut self, now: Instant) {
        if let Some(begun) = &mut self.begun {
            begun.served = Some(now);
        }
    }

    /// All its answers have come.
    pub(super) fn busy(&mut self, busy: Duration) {
        if let Some(begun) = &mut self.begun {
            begun.busy = busy;
        }
    }

    /// The client was told that it is not carried out.
    pub(super) fn refused(&mut self, outcome: &'static str) {
        if let Some(begun) = &mut self.begun {
            begun.refused = Some(outcome);
        }
    }

    /// It is none any more.
    pub(super) fn forget(&mut self) {
        self.begun = None;
    }

    /// It has ended, after so many bytes; `end`: with the session.
    pub(super) fn end(
        &mut self,
        client: Option<SocketAddr>,
        pool: &Pool,
        end: Option<&'static str>,
        after: (u64, u64),
    ) {
        let Some(begun) = self.begun.take() else { return };
        let now = Instant::now();
        let millis = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let mut details = Details::default();
        details.add("user", pool.user()).add("database", pool.key.database);
        details.add("commands", begun.commands).add("names", &begun.names);
        let waited = begun.served.unwrap_or(now).saturating_duration_since(begun.at);
        details.add("waited_ms", millis(waited)).add("busy_ms", millis(begun.busy));
        self.audience.show_taps(&Ended {
            client,
            outcome: begun.refused.or(end).unwrap_or("ok"),
            duration: now.saturating_duration_since(begun.at),
            bytes_up: after.0.saturating_sub(begun.before.0),
            bytes_down: after.1.saturating_sub(begun.before.1),
            details: &details,
        });
    }
}

/// The names of the first commands.
fn names(batch: &[u8]) -> String {
    let (mut scan, mut rest, mut names) = (CommandScan::default(), batch, Vec::new());
    while !rest.is_empty() {
        if names.len() == NAMES {
            names.push("…".to_owned());
            break;
        }
        let Ok(scanned) = scan.feed(rest) else { break };
        let (command, after) = rest.split_at(scanned.taken.min(rest.len()));
        let name = match (command.first(), scan.name()) {
            (Some(b'*'), name) => name.map(<[u8]>::to_vec),
            _ => arguments(command).ok().and_then(|words| words.into_iter().next()),
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            names.push(shown(&name));
        }
        rest = after;
    }
    names.join(" ")
}

/// A name as it is shown. What cannot be one may be anything.
fn shown(name: &[u8]) -> String {
    let is_name =
        name.len() <= 32 && name.iter().all(|byte| byte.is_ascii_alphabetic() || b"._-".contains(byte));
    if is_name { String::from_utf8_lossy(name).to_ascii_uppercase() } else { "?".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::credentials::command;

    #[test]
    fn names_are_shown_and_nothing_else() {
        let batch = [
            command(&[b"set", b"key", b"secret"]),
            b"get key\r\n\r\n*0\r\n".to_vec(),
            command(&[b"JSON.GET", b"key"]),
            command(&[b"p4ssw0rd", b"x"]),
        ];
        assert_eq!(names(&batch.concat()), "SET GET JSON.GET ?");
        assert_eq!(names(&command(&[b"ping"]).repeat(10)), format!("{}…", "PING ".repeat(8)));
        // One that is still coming.
        assert_eq!(names(b"*3\r\n$3\r\nset\r\n$1\r\nk\r\n$100000\r\nsecret"), "SET");
    }
}
