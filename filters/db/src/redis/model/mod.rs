//! The machine against a model: several sessions share connections, in any pieces and any order, and each client must see byte for byte
//! what it would see alone.

mod script;
mod server;

use bytes::{Buf, BytesMut};

use super::class::Class;
use super::machine::{Batch, LONG, Machine};
use super::resp::{ReplyScan, arguments};
use crate::session::Choices;
use script::{Piece, script};
use server::{ModelServer, OUT_OF_RANGE, PROTOCOL_ERROR};

const SESSIONS: usize = 3;
/// A session reads no more of its client before something was done with it.
const MOST_INBOX: usize = 2 * LONG;
const REFUSED: &[u8] = b"-LOADING no\r\n";

struct Party {
    machine: Machine,
    script: std::vec::IntoIter<Piece>,
    /// What the client has sent and is still on its way.
    way: BytesMut,
    inbox: BytesMut,
    /// What the client has got.
    got: BytesMut,
    /// What a connection of its own has answered.
    alone: ModelServer,
    /// What each answer has to say, as far as the client has asked.
    asked: Vec<Option<Vec<u8>>>,
    database: u32,
    /// The database before what the server is being asked for.
    before: Option<u32>,
    state: State,
    refusals: bool,
    dies: bool,
}

enum State {
    /// Without a connection.
    Free,
    /// It keeps this one for its transaction.
    Holds(Link),
    /// A batch is on this one.
    Exchanges(Link),
    /// The rest of a long command is thrown away.
    Refuses(Batch),
    /// This one is its own.
    Owns(Link),
    Gone,
}

struct Link {
    database: u32,
    model: ModelServer,
    scan: ReplyScan,
    up: BytesMut,
    down: BytesMut,
}

/// Plays what the bytes decide.
///
/// # Panics
/// When a client sees something else than it would alone, a connection stays that need not, or one goes to others in another state than
/// it should.
pub fn fuzz_redis_session(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let refusals = choices.of(3) == 1;
    let each = 1 + choices.of(2);
    let mut pool: Vec<Link> =
        [0, 1, 3].iter().flat_map(|database| (0..each).map(|_| link(*database))).collect();
    let links = pool.len();
    let mut parties: Vec<Party> = Vec::new();
    for number in 0..SESSIONS {
        let script = script(&mut choices, number, refusals);
        parties.push(party(script, choices.of(8) == 1, refusals));
    }
    for _ in 0..1_000_000 {
        let (which, patient) = (choices.of(SESSIONS), choices.is_over());
        let mut moved = false;
        for (number, party) in parties.iter_mut().enumerate() {
            if patient || number == which {
                moved |= party.turn(&mut choices, &mut pool);
            }
        }
        if patient && !moved {
            break;
        }
    }
    for (number, party) in parties.iter().enumerate() {
        party.check(number);
    }
    assert!(pool.len() == links, "a connection is lost");
}

fn link(database: u32) -> Link {
    let (up, down) = (BytesMut::new(), BytesMut::new());
    Link { database, model: ModelServer::new(database), scan: ReplyScan::default(), up, down }
}

fn party(script: Vec<Piece>, dies: bool, refusals: bool) -> Party {
    Party {
        machine: Machine::default(),
        script: script.into_iter(),
        way: BytesMut::new(),
        inbox: BytesMut::new(),
        got: BytesMut::new(),
        alone: ModelServer::new(0),
        asked: Vec::new(),
        database: 0,
        before: None,
        state: State::Free,
        refusals,
        dies,
    }
}

/// So many bytes, or fewer; long ways are gone in long steps.
fn step(choices: &mut Choices<'_>, most: usize) -> usize {
    if choices.is_over() {
        return most;
    }
    let step = choices.of(60);
    if most > 10_000 { (step * 1000).min(most) } else { step.min(most) }
}

impl Link {
    fn exchange(&mut self, choices: &mut Choices<'_>) -> bool {
        let up = step(choices, self.up.len());
        self.model.take(&self.up.split_to(up));
        let down = step(choices, self.model.out.len());
        self.down.extend_from_slice(&self.model.out.split_to(down));
        up + down > 0
    }
}

impl Party {
    /// Something happens to the session; whether it did.
    fn turn(&mut self, choices: &mut Choices<'_>, pool: &mut Vec<Link>) -> bool {
        if matches!(self.state, State::Gone) {
            return false;
        }
        let moved = self.send(choices);
        if self.dies && choices.of(60) == 1 || self.is_done() {
            self.leave(pool);
            return true;
        }
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Free => self.next(choices, pool, None) || moved,
            State::Holds(link) => self.next(choices, pool, Some(link)) || moved,
            State::Exchanges(link) => self.exchange(choices, pool, link) || moved,
            State::Refuses(batch) => self.refuse(batch) || moved,
            State::Owns(mut link) => {
                let came = self.inbox.len();
                link.up.unsplit(self.inbox.split());
                let exchanged = link.exchange(choices);
                let closed = link.model.closed && link.model.out.is_empty();
                self.got.extend_from_slice(&link.down.split());
                self.state = if closed { State::Gone } else { State::Owns(link) };
                moved || came > 0 || exchanged || closed
            }
            State::Gone => moved,
        }
    }

    /// The connection that it has is closed, and the pool has room for another one.
    fn leave(&mut self, pool: &mut Vec<Link>) {
        if let State::Holds(link) | State::Exchanges(link) = std::mem::replace(&mut self.state, State::Gone) {
            pool.push(self::link(link.database));
        }
    }

    fn is_done(&self) -> bool {
        self.way.is_empty()
            && self.script.len() == 0
            && self.is_answered()
            && !matches!(self.state, State::Exchanges(_))
    }

    fn is_answered(&self) -> bool {
        if self.refusals {
            return answers(&self.got).len() >= self.asked.len();
        }
        self.got.len() >= self.alone.out.len()
    }

    fn send(&mut self, choices: &mut Choices<'_>) -> bool {
        if self.way.is_empty() {
            let waits = self.script.as_slice().first().is_some_and(|piece| piece.waits);
            if waits && !self.is_answered() {
                return false;
            }
            let Some(piece) = self.script.next() else { return false };
            self.alone.take(&piece.bytes);
            self.asked.extend(piece.asks);
            self.way.extend_from_slice(&piece.bytes);
            return true;
        }
        if self.inbox.len() >= MOST_INBOX {
            return false;
        }
        let piece = step(choices, self.way.len()).min(MOST_INBOX);
        self.inbox.extend_from_slice(&self.way.split_to(piece));
        piece > 0
    }

    /// No batch is under way: the next one, or what is handled alone.
    fn next(&mut self, choices: &mut Choices<'_>, pool: &mut Vec<Link>, held: Option<Link>) -> bool {
        self.machine.look(&self.inbox);
        let empty = self.machine.take_empty();
        self.inbox.advance(empty);
        if let Some(batch) = self.machine.batch() {
            if held.is_none() && self.refusals && choices.of(3) == 1 {
                self.inbox.advance(batch.bytes);
                self.machine.refused();
                self.database = self.before.take().unwrap_or(self.database);
                self.got.extend_from_slice(&REFUSED.repeat(batch.commands));
                return self.refuse(batch);
            }
            let free = pool.iter().position(|link| link.database == self.database);
            let Some(mut link) = held.or_else(|| free.map(|free| pool.swap_remove(free))) else {
                self.state = State::Free;
                return empty > 0;
            };
            link.up.unsplit(self.inbox.split_to(batch.bytes));
            self.machine.sent();
            self.state = State::Exchanges(link);
            return true;
        }
        let alone = self.machine.take_alone();
        if let Some((class, length)) = alone {
            self.alone(class, length, pool, held);
        } else if self.machine.malformed().is_some() {
            self.got.extend_from_slice(PROTOCOL_ERROR);
            self.state = held.map_or(State::Gone, State::Holds);
            self.leave(pool);
        } else {
            self.state = held.map_or(State::Free, State::Holds);
            return empty > 0;
        }
        true
    }

    /// As a session handles it, with one server that knows the databases 0 and 1, and has known 3.
    fn alone(&mut self, class: Class, length: usize, pool: &mut Vec<Link>, held: Option<Link>) {
        if matches!(class, Class::Own(_)) || held.is_some() && class != Class::Quit {
            pool.extend(held.iter().map(|link| self::link(link.database)));
            self.state = State::Owns(held.unwrap_or_else(|| link(self.database)));
            return;
        }
        self.state = held.map_or(State::Free, State::Holds);
        let bytes = self.inbox.split_to(length);
        let words = arguments(&bytes).unwrap_or_default();
        match (class, &words[..]) {
            (Class::Quit, _) => {
                self.got.extend_from_slice(b"+OK\r\n");
                self.leave(pool);
            }
            (Class::Reset, _) => {
                self.database = 0;
                self.got.extend_from_slice(b"+RESET\r\n");
            }
            (Class::Select, [_, database]) => match &database[..] {
                b"0" | b"1" | b"3" => {
                    let database = database.first().map_or(0, |digit| u32::from(*digit - b'0'));
                    self.before = Some(std::mem::replace(&mut self.database, database));
                    self.machine.put_first(&mut self.inbox, &bytes);
                }
                _ => self.got.extend_from_slice(OUT_OF_RANGE),
            },
            _ => self.machine.put_first(&mut self.inbox, &bytes),
        }
    }

    fn exchange(&mut self, choices: &mut Choices<'_>, pool: &mut Vec<Link>, mut link: Link) -> bool {
        let mut moved = link.exchange(choices);
        if self.machine.is_long() {
            let more = self.machine.more(&self.inbox).unwrap_or_default();
            link.up.unsplit(self.inbox.split_to(more));
            moved |= more > 0;
        }
        let passed = self.machine.pass(&mut link.scan, &mut link.down, &mut self.got);
        assert!(passed.is_some(), "no answer to anything: {}", link.down.escape_ascii());
        if !self.machine.is_answered() || self.machine.is_long() || !link.up.is_empty() {
            self.state = State::Exchanges(link);
            return moved;
        }
        let needed = link.model.is_pinned();
        assert!(self.machine.is_pinned() == needed, "to be kept: {needed}, {:?}", link.model);
        if needed {
            self.state = State::Holds(link);
        } else {
            assert!(link.model.is_as_new(link.database), "not as it was: {:?}", link.model);
            assert!(link.scan.is_between() && link.down.is_empty(), "half an answer");
            pool.push(link);
            self.state = State::Free;
        }
        if let Some(before) = self.before.take()
            && self.machine.was_declined()
        {
            self.database = before;
        }
        true
    }

    fn refuse(&mut self, batch: Batch) -> bool {
        let mut moved = false;
        if self.machine.is_long() {
            let more = self.machine.more(&self.inbox).unwrap_or_default();
            self.inbox.advance(more);
            moved = more > 0;
        }
        self.state = match self.machine.is_long() {
            true => State::Refuses(batch),
            false if batch.opens => State::Gone,
            false => State::Free,
        };
        moved || !matches!(self.state, State::Refuses(_))
    }

    fn check(&self, number: usize) {
        let (got, alone) = (&self.got[..], &self.alone.out[..]);
        let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert!(
            matches!(self.state, State::Gone),
            "session {number} is stuck: {:?}\n got {}\nalone {}",
            self.machine,
            show(got),
            show(alone)
        );
        if self.refusals {
            let got = answers(got);
            assert!(got.len() <= self.asked.len(), "{} answers to {}", got.len(), self.asked.len());
            for (said, asked) in got.iter().zip(&self.asked) {
                let Some(asked) = asked else { continue };
                let own = said.windows(asked.len()).any(|window| window == asked);
                assert!(
                    own || said == REFUSED || said == b"+QUEUED\r\n",
                    "session {number} got {} for {}",
                    show(said),
                    show(asked)
                );
            }
        } else if self.dies {
            assert!(alone.starts_with(got), "session {number}:\n got {}\nalone {}", show(got), show(alone));
        } else {
            assert!(got == alone, "session {number}:\n got {}\nalone {}", show(got), show(alone));
        }
    }
}

/// The answers in what a client has got.
fn answers(got: &[u8]) -> Vec<Vec<u8>> {
    let (mut scan, mut rest, mut found) = (ReplyScan::default(), got, Vec::new());
    while !rest.is_empty() {
        let Ok((taken, Some(_))) = scan.feed(rest) else { break };
        let (answer, after) = rest.split_at(taken);
        found.push(answer.to_vec());
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
        #[test]
        fn each_client_sees_what_it_would_see_alone(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            super::fuzz_redis_session(&bytes);
        }
    }
}
