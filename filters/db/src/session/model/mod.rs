//! The machines against a model: several clients share servers, in any pieces and any order, and each must see byte for byte what it
//! would see alone.

mod script;
pub(super) mod server;

use std::sync::Arc;

use bytes::BytesMut;

use super::{Client, Down, Parameters, Sent, Server, Step, Texts, Tidy};
use crate::wire::backend;
use crate::wire::build::ErrorResponse;
pub(crate) use script::Choices;
use script::{Piece, script};
use server::{ModelServer, kinds};

const CLIENTS: usize = 3;
const STATEMENTS: usize = 2;

struct Party {
    client: Client,
    script: std::vec::IntoIter<Piece>,
    /// How many batches it has sent.
    sent: usize,
    /// What the client has sent and is still on its way.
    way: BytesMut,
    inbox: BytesMut,
    /// What the client has got.
    got: BytesMut,
    /// What a session of its own has answered.
    alone: ModelServer,
    server: Option<Link>,
    refusals: bool,
    dies: bool,
    gone: bool,
    refused: usize,
}

struct Link {
    machine: Server,
    model: ModelServer,
    up: BytesMut,
    down: BytesMut,
    ready: bool,
}

/// Plays what the bytes decide.
///
/// # Panics
/// When a client sees something else than it would alone, or a server goes to the next client in another state than it should.
pub fn fuzz_session(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let refusals = choices.of(3) == 1;
    // After DISCARD ALL through a pool, parameters are those of the server's login and not of the client's.
    let same_names = choices.of(2) == 1;
    let mut texts = Texts::new(3);
    let mut pool: Vec<Link> = (0..=choices.of(2)).map(|_| link()).collect();
    let servers = pool.len();
    let mut parties: Vec<Party> = Vec::new();
    for number in 0..CLIENTS {
        let script = script(&mut choices, number, refusals, same_names);
        parties.push(party(number, script, choices.of(8) == 1, refusals, same_names));
    }
    let mut cleaning: Vec<Link> = Vec::new();
    for _ in 0..1_000_000 {
        let which = choices.of(CLIENTS + 1);
        let patient = choices.is_over();
        let mut moved = false;
        for (number, party) in parties.iter_mut().enumerate() {
            if patient || number == which {
                moved |= party.turn(&mut choices, &mut pool, &mut cleaning, &mut texts);
            }
        }
        if patient || which == CLIENTS {
            for mut link in std::mem::take(&mut cleaning) {
                moved |= link.clean(&mut choices);
                match link.machine.tidy(&mut link.up) {
                    // What COPY ignores after an error may still be on its way.
                    Tidy::Clean if !link.is_flushed() => cleaning.push(link),
                    Tidy::Clean => {
                        assert!(link.model.is_clean(), "an unclean server: {:?}", link.model);
                        let (known, had) = (link.machine.statements(), link.model.statements());
                        assert!(known == had && had <= STATEMENTS, "{known} statements are {had}");
                        pool.push(link);
                        moved = true;
                    }
                    Tidy::Close(_) => {
                        pool.push(self::link());
                        moved = true;
                    }
                    Tidy::Wait | Tidy::Cancelling => cleaning.push(link),
                }
            }
        }
        if patient && !moved {
            break;
        }
    }
    for (number, party) in parties.iter().enumerate() {
        party.check(number);
    }
    assert!(cleaning.is_empty() && pool.len() == servers, "a server is lost");
}

fn link() -> Link {
    let mut parameters = Parameters::default();
    parameters.report(b"application_name", b"pool");
    let machine = Server::new(Arc::new(parameters), STATEMENTS);
    Link {
        machine,
        model: ModelServer::new(b"pool"),
        up: BytesMut::new(),
        down: BytesMut::new(),
        ready: false,
    }
}

fn party(number: usize, script: Vec<Piece>, dies: bool, refusals: bool, same_names: bool) -> Party {
    let name = if same_names { "pool".to_owned() } else { format!("c{number}") };
    let mut parameters = Parameters::default();
    parameters.report(b"application_name", name.as_bytes());
    Party {
        client: Client::new(Arc::new(parameters)),
        script: script.into_iter(),
        sent: 0,
        way: BytesMut::new(),
        inbox: BytesMut::new(),
        got: BytesMut::new(),
        alone: ModelServer::new(name.as_bytes()),
        server: None,
        refusals,
        dies,
        gone: false,
        refused: 0,
    }
}

impl Link {
    /// Bytes go both ways while no client has it.
    fn clean(&mut self, choices: &mut Choices<'_>) -> bool {
        let moved = self.exchange(choices);
        let down = self.machine.down(&mut self.down, &mut BytesMut::new(), None);
        assert!(down.is_ok(), "{down:?}");
        moved
    }

    fn is_flushed(&self) -> bool {
        self.up.is_empty() && self.model.is_idle()
    }

    fn exchange(&mut self, choices: &mut Choices<'_>) -> bool {
        let up = if choices.is_over() { self.up.len() } else { choices.of(40).min(self.up.len()) };
        let piece = self.up.split_to(up);
        self.model.take(&piece);
        let before = self.down.len();
        self.model.give(if choices.is_over() { usize::MAX } else { choices.of(40) }, &mut self.down);
        up > 0 || self.down.len() > before
    }
}

impl Party {
    /// Something happens to the client; whether it did.
    fn turn(
        &mut self,
        choices: &mut Choices<'_>,
        pool: &mut Vec<Link>,
        cleaning: &mut Vec<Link>,
        texts: &mut Texts,
    ) -> bool {
        if self.gone {
            return false;
        }
        let mut moved = self.send(choices);
        if self.dies && choices.of(60) == 1 || self.is_done() {
            self.gone = true;
            if let Some(link) = self.server.take() {
                self.leave(link, cleaning);
            }
            return true;
        }
        match self.server.take() {
            None => moved |= self.without(choices, pool),
            Some(link) => moved |= self.with(link, choices, cleaning, texts),
        }
        moved
    }

    fn is_done(&self) -> bool {
        self.way.is_empty() && self.script.len() == 0 && self.is_answered() && self.inbox.is_empty()
    }

    /// Whether nothing is owed to it. With refusals only the numbers are known.
    fn is_answered(&self) -> bool {
        let owed = |bytes: &[u8]| kinds(bytes).iter().filter(|kind| **kind == backend::READY).count();
        if !self.refusals && self.got.len() < self.alone.out.len() {
            return false;
        }
        owed(&self.got) == if self.refusals { self.sent } else { owed(&self.alone.out) }
    }

    fn send(&mut self, choices: &mut Choices<'_>) -> bool {
        if self.way.is_empty() && self.inbox.is_empty() && self.is_answered() {
            let Some(next) = self.script.next() else { return false };
            // Alone, all of it is answered at once.
            self.alone.take(&next.bytes);
            self.sent += next.batches;
            self.way = next.bytes;
            return true;
        }
        let piece = if choices.is_over() { self.way.len() } else { choices.of(60).min(self.way.len()) };
        self.inbox.extend_from_slice(&self.way.split_to(piece));
        piece > 0
    }

    fn without(&mut self, choices: &mut Choices<'_>, pool: &mut Vec<Link>) -> bool {
        let before = (self.inbox.len(), self.got.len());
        let step = self.client.feed(&mut self.inbox, &mut self.got);
        assert!(step.is_ok(), "{step:?}");
        if step != Ok(Step::Batch) {
            return before != (self.inbox.len(), self.got.len());
        }
        if self.refusals && choices.of(3) == 1 {
            let error =
                ErrorResponse { fatal: false, sqlstate: "53300", message: "", detail: None, hint: None };
            self.client.refuse(&self.inbox, &mut self.got, &error);
            self.refused += 1;
            return true;
        }
        let Some(mut link) = pool.pop() else { return false };
        link.ready = link.machine.attach(&mut self.client, &mut link.up);
        self.server = Some(link);
        true
    }

    fn with(
        &mut self,
        mut link: Link,
        choices: &mut Choices<'_>,
        cleaning: &mut Vec<Link>,
        texts: &mut Texts,
    ) -> bool {
        let before = (self.inbox.len(), self.got.len(), link.up.len(), link.down.len());
        if link.ready {
            let sent = self.client.up(&mut link.machine, texts, &mut self.inbox, &mut link.up, &mut self.got);
            assert!(matches!(sent, Ok(Sent::More | Sent::Held)), "{sent:?}");
        }
        let moved = link.exchange(choices);
        let down = link.machine.down(&mut link.down, &mut self.got, Some(&mut self.client.seen));
        match down {
            Ok(Down::Ready) => link.ready = true,
            Ok(Down::Free) => {
                self.leave(link, cleaning);
                return true;
            }
            Ok(Down::More) => {}
            other => assert!(other.is_ok() && other != Ok(Down::SetupFailed), "{other:?}"),
        }
        let after = (self.inbox.len(), self.got.len(), link.up.len(), link.down.len());
        self.server = Some(link);
        moved || before != after
    }

    fn leave(&mut self, mut link: Link, cleaning: &mut Vec<Link>) {
        link.ready = false;
        let _ = link.machine.leave(&mut self.client, &mut link.up);
        cleaning.push(link);
    }

    fn check(&self, number: usize) {
        let (got, alone) = (&self.got[..], &self.alone.out[..]);
        let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert!(
            self.gone,
            "client {number} is stuck: {:?}\n got {}\nalone {}",
            self.client,
            show(got),
            show(alone)
        );
        if self.refusals {
            let kinds = kinds(got);
            let ready = kinds.iter().filter(|kind| **kind == backend::READY).count();
            assert!(ready == self.sent || self.dies, "{ready} of {}: {}", self.sent, show(got));
            let errors = kinds.iter().filter(|kind| **kind == backend::ERROR).count();
            assert!(errors >= self.refused && errors <= self.sent, "{errors} errors: {}", show(got));
        } else if self.dies {
            assert!(alone.starts_with(got), "client {number}:\n got {}\nalone {}", show(got), show(alone));
        } else {
            assert!(got == alone, "client {number}:\n got {}\nalone {}", show(got), show(alone));
        }
        // Rows are its own or everybody's.
        for other in (0..CLIENTS).filter(|other| *other != number) {
            let foreign = format!("SELECT '{other}:");
            assert!(
                !got.windows(foreign.len()).any(|window| window == foreign.as_bytes()),
                "client {number} got rows of client {other}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
        #[test]
        fn each_client_sees_what_it_would_see_alone(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            super::fuzz_session(&bytes);
        }
    }
}
