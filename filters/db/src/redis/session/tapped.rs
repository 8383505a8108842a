//! Batches of pooled sessions, as they are tapped: how many commands and what they are called, never keys or values.

use std::net::SocketAddr;
use std::time::Instant;

use crate::redis::machine::Batch;
use crate::redis::pool::Pool;
use crate::redis::resp::{CommandScan, arguments};
use crate::tapped::{self, Part};

/// The name under which batches are tapped.
pub const BATCHES: &str = "redis_batches";
/// So many names of commands are shown.
const NAMES: usize = 8;

/// The batch that a session is in, where somebody wants to see it.
pub(super) type Tapped = tapped::Tapped<Commands>;

/// A batch, as far as it is shown.
#[derive(Debug)]
pub(super) struct Commands {
    number: usize,
    names: String,
}

impl Part for Commands {
    const NAME: &'static str = BATCHES;
}

impl Tapped {
    /// One begins, after so many bytes from and to the client.
    pub(super) fn begin(&mut self, inbox: &[u8], batch: Batch, before: (u64, u64)) {
        self.start(before, || {
            let names = names(inbox.get(..batch.bytes).unwrap_or_default());
            (Instant::now(), Commands { number: batch.commands, names })
        });
    }

    /// It has ended, after so many bytes; `end`: with the session.
    pub(super) fn end(
        &mut self,
        client: Option<SocketAddr>,
        pool: &Pool,
        end: Option<&'static str>,
        after: (u64, u64),
    ) {
        self.finish(client, end, after, |details, batch| {
            details.add("user", pool.user()).add("database", pool.key.database);
            details.add("commands", batch.number).add("names", &batch.names);
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
