//! Programs that take commands and tell events as JSON lines.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::program::{Program, Start};

/// A program that takes a JSON object a line on standard input and prints one for each event. Each command is answered by
/// `{"event":"done","value":…}` or `{"event":"failed","why":…}`; what else it prints is ignored.
pub(crate) struct Talker {
    name: &'static str,
    program: Program,
    /// Lines that were read.
    read: usize,
}

impl Talker {
    /// Starts it, and waits for the event `ready`, which is handed out as well.
    pub(crate) async fn start(name: &'static str, start: Start, dir: &Path) -> (Self, Value) {
        let program = start.named(name).with_stdin().spawn(dir);
        let mut talker = Self { name, program, read: 0 };
        let ready = talker.next_event("ready", |event| event["event"] == "ready").await;
        (talker, ready)
    }

    /// Gives it a command and waits for its answer.
    pub(crate) async fn command(&mut self, command: &Value) -> Result<Value, String> {
        writeln!(self.program.stdin().unwrap(), "{command}").unwrap();
        let answer = |event: &Value| event["event"] == "done" || event["event"] == "failed";
        let event = self.next_event("an answer", answer).await;
        if event["event"] == "done" { Ok(event["value"].clone()) } else { Err(event["why"].to_string()) }
    }

    /// The next event that `wanted` accepts; those before it are forgotten.
    pub(crate) async fn next_event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let (name, read) = (self.name, self.read);
        let next = |log: &str| {
            let events = log.lines().enumerate().skip(read);
            let mut events =
                events.filter_map(|(at, line)| Some((at, serde_json::from_str::<Value>(line).ok()?)));
            events.find(|(_, event)| wanted(event))
        };
        let expected = format!("{name} says {what}");
        let found = crate::eventually(Duration::from_secs(40), &expected, async || {
            if let Some(status) = self.program.ended() {
                panic!("{name} ended: {status}");
            }
            next(&self.program.log())
        });
        let (at, event) = found.await;
        self.read = at + 1;
        event
    }
}
