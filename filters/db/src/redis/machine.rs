//! The machine of a pooled session: which commands form a batch, and whether the connection that carried it has to stay with the session.

use std::collections::VecDeque;

use bytes::BytesMut;
use xxhash_rust::xxh3::xxh3_64;

use super::class::{Class, Expect, class, classify};
use super::resp::{CommandScan, Reply, ReplyScan, RespError};

/// The most commands of a batch. More that wait in a client's socket make the next one, so that others have their turn.
const MOST_COMMANDS: usize = 1000;
/// A command that is longer is sent on while it comes.
pub(crate) const LONG: usize = 64 << 10;

/// A transaction, as far as the server's answers have told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// Between MULTI and EXEC or DISCARD.
    open: bool,
    /// Keys are watched.
    watching: bool,
}

impl Transaction {
    /// Whether the connection has to stay.
    pub(crate) fn is_pinned(self) -> bool {
        self.open || self.watching
    }

    /// What an answer says.
    fn answered(&mut self, to: Expect, error: Option<&[u8]>) {
        match (to, error) {
            // Refused for what was queued, and the keys are not watched any more. After any other error all is as it was.
            (Expect::Exec, Some(error)) if error.starts_with(b"EXECABORT") => *self = Self::default(),
            (_, Some(_)) | (Expect::Plain | Expect::Followed, None) => {}
            (Expect::Exec | Expect::Discard, None) => *self = Self::default(),
            (Expect::Multi, None) => self.open = true,
            // Within a transaction UNWATCH is queued like any other command.
            (Expect::Unwatch, None) if self.open => {}
            (Expect::Unwatch, None) => self.watching = false,
            (Expect::Watch, None) => self.watching = true,
        }
    }
}

/// Which batches take about as long as each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Like {
    /// A hash of the name of the first command.
    name: u64,
    /// The logarithm of how many commands there are.
    magnitude: u32,
}

/// A batch that was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) like: Like,
    pub(crate) commands: usize,
    /// A command was answered with an error: how long that took says nothing of others.
    pub(crate) failed: bool,
}

/// Why a batch ends before what has come ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is long enough.
    Full,
    /// A command that is handled alone, and its length.
    Alone(Class, usize),
    /// A command that is being sent on while it comes.
    Long,
    /// What comes next is no command, and nothing after it can be understood.
    Malformed(RespError),
}

/// What a client has sent and nobody has answered.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    scan: CommandScan,
    /// Bytes of complete commands of the batch to come.
    ready: usize,
    /// Bytes that were read of the command after these.
    partial: usize,
    /// The answers that the batch to come will have.
    coming: Vec<Expect>,
    stop: Option<Stop>,
    /// A hash of the name of its first command.
    first: u64,
    /// The batch that was sent last.
    done: Done,
    /// The answers that the server owes.
    owed: VecDeque<Expect>,
    transaction: Transaction,
    declined: bool,
}

/// A batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Its first bytes. All of them, unless its last command is long.
    pub(crate) bytes: usize,
    /// How many answers it will have.
    pub(crate) commands: usize,
    /// Its last command is not complete: more of it is still to come.
    pub(crate) long: bool,
    /// Refused, it leaves the client believing in a transaction that there is not.
    pub(crate) opens: bool,
}

impl Machine {
    /// Looks at what has come, `inbox`, of which it has seen the beginning before.
    pub(crate) fn look(&mut self, inbox: &[u8]) {
        if let Err(why) = self.try_look(inbox) {
            self.stop = Some(Stop::Malformed(why));
        }
    }

    /// Why what comes next is no command, when nothing is before it.
    pub(crate) fn malformed(&self) -> Option<RespError> {
        match self.stop {
            Some(Stop::Malformed(why)) if self.coming.is_empty() => Some(why),
            _ => None,
        }
    }

    fn try_look(&mut self, inbox: &[u8]) -> Result<(), RespError> {
        while self.stop.is_none() {
            // Also when it was read while a batch before it was under way.
            if self.partial > LONG && self.coming.is_empty() {
                self.stop = Some(self.long()?);
                break;
            }
            let Some(rest) = inbox.get(self.ready + self.partial..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let scanned = self.scan.feed(rest)?;
            self.partial += scanned.taken;
            if !scanned.complete {
                continue;
            }
            let command = inbox.get(self.ready..self.ready + self.partial).unwrap_or_default();
            let (name, first) = (self.scan.name().unwrap_or_default(), self.scan.first().unwrap_or_default());
            match classify(command, name, first)? {
                Class::Empty => {}
                Class::Shared(expect) => {
                    if self.coming.is_empty() {
                        self.first = xxh3_64(name);
                    }
                    self.coming.push(expect);
                }
                alone => {
                    self.stop = Some(Stop::Alone(alone, self.partial));
                    break;
                }
            }
            self.ready += std::mem::take(&mut self.partial);
            if self.coming.len() >= MOST_COMMANDS {
                self.stop = Some(Stop::Full);
            }
        }
        Ok(())
    }

    /// What becomes of a command that is long and not complete.
    fn long(&mut self) -> Result<Stop, RespError> {
        // Its name is at its beginning, or it has none.
        let name = self.scan.name().ok_or(RespError::Length)?;
        match class(name, self.scan.first().unwrap_or_default()) {
            Class::Shared(expect) => {
                self.first = xxh3_64(name);
                self.coming.push(expect);
                self.ready += std::mem::take(&mut self.partial);
                Ok(Stop::Long)
            }
            Class::Own(why) => Ok(Stop::Alone(Class::Own(why), 0)),
            Class::Read => Ok(Stop::Alone(Class::Own("blocking"), 0)),
            // Nobody has a password or a name of that length.
            _ => Err(RespError::Length),
        }
    }

    /// The batch that can be sent now.
    pub(crate) fn batch(&self) -> Option<Batch> {
        if self.coming.is_empty() {
            return None;
        }
        let mut as_wished = Transaction::default();
        self.coming.iter().for_each(|expect| as_wished.answered(*expect, None));
        Some(Batch {
            bytes: self.ready,
            commands: self.coming.len(),
            long: self.stop == Some(Stop::Long),
            opens: as_wished.is_pinned(),
        })
    }

    /// Bytes at the beginning that nothing is to be done with.
    pub(crate) fn take_empty(&mut self) -> usize {
        if self.coming.is_empty() { std::mem::take(&mut self.ready) } else { 0 }
    }

    /// The batch is sent: its answers are owed.
    pub(crate) fn sent(&mut self) {
        let commands = self.coming.len();
        let like = Like { name: self.first, magnitude: commands.checked_ilog2().unwrap_or(0) };
        self.done = Done { like, commands, failed: false };
        self.owed.extend(self.coming.drain(..));
        self.begin_anew();
    }

    /// The batch that was sent last.
    pub(crate) fn done(&self) -> Done {
        self.done
    }

    /// The batch was refused and its first bytes are gone.
    pub(crate) fn refused(&mut self) {
        self.coming.clear();
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.ready = 0;
        if matches!(self.stop, Some(Stop::Full)) {
            self.stop = None;
        }
    }

    /// A command of the sidecar's own goes before everything else that has come, in the place of one that was handled alone. It is a
    /// batch by itself, and whether its answer is an error is remembered.
    pub(crate) fn put_first(&mut self, inbox: &mut BytesMut, command: &[u8]) {
        let rest = std::mem::take(inbox);
        inbox.extend_from_slice(command);
        inbox.unsplit(rest);
        self.coming = vec![Expect::Followed];
        self.first = 0;
        self.ready = command.len();
        self.stop = Some(Stop::Full);
        self.declined = false;
    }

    /// Whether the server's answer to what was put first last was an error.
    pub(crate) fn was_declined(&self) -> bool {
        self.declined
    }

    /// A command that is to be handled alone, when nothing is before it; its class and length. Its bytes are taken away next.
    pub(crate) fn take_alone(&mut self) -> Option<(Class, usize)> {
        match self.stop {
            Some(Stop::Alone(class, length)) if self.coming.is_empty() && self.ready == 0 => {
                self.stop = None;
                self.partial = 0;
                Some((class, length))
            }
            _ => None,
        }
    }

    /// Whether a long command is still to be completed.
    pub(crate) fn is_long(&self) -> bool {
        self.stop == Some(Stop::Long)
    }

    /// More of a long command: how many of the bytes belong to it.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) fn more(&mut self, bytes: &[u8]) -> Result<usize, RespError> {
        let scanned = self.scan.feed(bytes)?;
        if scanned.complete {
            self.stop = None;
        }
        Ok(scanned.taken)
    }

    /// Passes on what has come of answers; how many bytes that was. `None` for what is no answer, or answers nothing: there is no way to tell
    /// any more what belongs to whom.
    pub(crate) fn pass(
        &mut self,
        scan: &mut ReplyScan,
        down: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Option<usize> {
        let before = down.len();
        while !down.is_empty() {
            let (taken, reply) = scan.feed(down).ok()?;
            if reply.is_some_and(|reply| !self.answered(&reply)) {
                return None;
            }
            let answer = down.split_to(taken);
            if out.is_empty() {
                *out = answer;
            } else {
                out.unsplit(answer);
            }
        }
        Some(before)
    }

    /// An answer has come. `false` when none was owed: nothing is known of the connection then.
    fn answered(&mut self, reply: &Reply) -> bool {
        if reply.is_push() {
            return true;
        }
        let Some(to) = self.owed.pop_front() else { return false };
        self.done.failed |= reply.is_error();
        self.declined |= to == Expect::Followed && reply.is_error();
        self.transaction.answered(to, reply.is_error().then_some(&reply.error));
        true
    }

    /// Whether all answers have come.
    pub(crate) fn is_answered(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether the session has to keep its connection.
    pub(crate) fn is_pinned(&self) -> bool {
        self.transaction.is_pinned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &str) -> Vec<u8> {
        let words: Vec<_> = words.split(' ').collect();
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        bytes.into_bytes()
    }

    fn reply(text: &str) -> Reply {
        let kind = text.as_bytes()[0];
        Reply { kind, error: if kind == b'-' { text[1..].into() } else { Vec::new() } }
    }

    /// Sends commands that are answered so; whether the session is pinned after each.
    fn talk(turns: &[(&str, &str)]) -> Vec<bool> {
        let mut machine = Machine::default();
        turns
            .iter()
            .map(|(words, answer)| {
                machine.look(&command(words));
                machine.batch().unwrap();
                machine.sent();
                assert!(!machine.is_answered());
                assert!(machine.answered(&reply(answer)) && machine.is_answered());
                machine.is_pinned()
            })
            .collect()
    }

    #[test]
    fn a_connection_stays_for_a_transaction() {
        assert_eq!(
            talk(&[("get a", "$"), ("multi", "+"), ("get a", "+"), ("exec", "*")]),
            [false, true, true, false]
        );
        assert_eq!(
            talk(&[("watch a", "+"), ("get a", "$"), ("multi", "+"), ("exec", "_")]),
            [true, true, true, false]
        );
        assert_eq!(talk(&[("watch a", "+"), ("unwatch", "+")]), [true, false]);
        assert_eq!(talk(&[("multi", "+"), ("unwatch", "+"), ("discard", "+")]), [true, true, false]);
        assert_eq!(
            talk(&[("multi", "+"), ("nonsense", "-ERR"), ("exec", "-EXECABORT x")]),
            [true, true, false]
        );
        // What the server did not do does not count.
        assert_eq!(talk(&[("multi", "-NOPERM"), ("exec", "-ERR EXEC without MULTI")]), [false, false]);
        assert_eq!(talk(&[("watch a", "+"), ("exec", "-ERR EXEC without MULTI")]), [true, true]);
        assert_eq!(talk(&[("multi", "+"), ("exec", "-NOPERM"), ("discard", "+")]), [true, true, false]);
    }

    #[test]
    fn batches_end_before_commands_that_are_handled_alone() {
        let mut machine = Machine::default();
        let inbox =
            [command("get a"), b"\r\n".to_vec(), command("get b"), command("select 1"), command("get c")]
                .concat();
        for end in 1..=inbox.len() {
            machine.look(&inbox[..end]);
        }
        let first = inbox.len() - command("select 1").len() - command("get c").len();
        assert_eq!(machine.batch(), Some(Batch { bytes: first, commands: 2, long: false, opens: false }));
        assert_eq!(machine.take_alone(), None);
        machine.sent();
        let inbox = &inbox[first..];
        machine.look(inbox);
        assert_eq!((machine.batch(), machine.take_empty()), (None, 0));
        let (class, length) = machine.take_alone().unwrap();
        assert_eq!((class, length), (Class::Select, command("select 1").len()));
        machine.look(&inbox[length..]);
        assert_eq!(machine.batch().unwrap().commands, 1);
    }

    #[test]
    fn long_commands_are_sent_while_they_come() {
        let mut machine = Machine::default();
        let inbox = [&b"*3\r\n$3\r\nset\r\n$1\r\na\r\n$1000000\r\n"[..], &[b'x'; LONG]].concat();
        machine.look(&inbox);
        let batch = machine.batch().unwrap();
        assert_eq!(batch, Batch { bytes: inbox.len(), commands: 1, long: true, opens: false });
        machine.sent();
        assert_eq!(machine.more(&vec![b'x'; 1_000_000 - LONG]).unwrap(), 1_000_000 - LONG);
        assert!(machine.is_long());
        assert_eq!(machine.more(b"\r\n*1\r\n").unwrap(), 2);
        assert!(!machine.is_long() && !machine.is_answered());
        machine.look(&command("ping"));
        assert_eq!(machine.batch().unwrap().commands, 1);

        let mut machine = Machine::default();
        let inbox = [&b"*2\r\n$4\r\nauth\r\n$1000000\r\n"[..], &[b'x'; LONG]].concat();
        machine.look(&inbox);
        assert_eq!(machine.malformed(), Some(RespError::Length));
    }

    #[test]
    fn commands_before_what_is_none_are_carried_out() {
        let mut machine = Machine::default();
        let inbox = [command("ping"), b"*1\r\n$x\r\n".to_vec(), command("ping")].concat();
        machine.look(&inbox);
        assert_eq!((machine.batch().unwrap().commands, machine.malformed()), (1, None));
        machine.sent();
        machine.look(&inbox[command("ping").len()..]);
        assert_eq!((machine.batch(), machine.malformed()), (None, Some(RespError::Length)));
    }

    #[test]
    fn a_refused_batch_says_whether_it_leaves_something_open() {
        let opens = |commands: &[&str]| {
            let mut machine = Machine::default();
            machine.look(&commands.iter().flat_map(|words| command(words)).collect::<Vec<_>>());
            machine.batch().unwrap().opens
        };
        assert!(opens(&["multi", "get a"]) && opens(&["watch a"]));
        assert!(
            !opens(&["multi", "get a", "exec"])
                && !opens(&["watch a", "multi", "exec"])
                && !opens(&["get a"])
        );
    }

    #[test]
    fn pushes_answer_nothing_and_a_stray_answer_is_found() {
        let mut machine = Machine::default();
        assert!(machine.answered(&reply(">")));
        assert!(!machine.answered(&reply("+")));
    }
}
