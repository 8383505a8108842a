//! From a client to its server: names of statements are replaced, and what the server lacks is sent before.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::client::{Client, Violation};
use super::pins::Pins;
use super::relay::Relay;
use super::seen::Undo;
use super::server::{Copy, Expect, Kind, OUTSTANDING, Server, Unnamed};
use super::statements::{Name, Statement, Texts, foreign, nobodys};
use crate::wire::frontend::{self, Bind, Parse, Target};
use crate::wire::{HEADER, Head, WireError, build};

/// How many batches of a pipeline go to a server at a time; the next ones go when these are answered, and if the server is free then,
/// they wait for one like those of others.
const TURN: usize = 64;
/// How much of a long Parse or Bind must be there, for its names.
const NAMES: usize = 16 << 10;

/// How far a client's bytes were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Read on.
    More,
    /// There is more, but replies must come first: read nothing from the client, and ask again after the next
    /// [`Server::down`].
    Held,
    /// The client ends the session: [`Server::leave`].
    Terminate,
}

impl Client {
    /// Takes what a client that has a server has sent from `inbox`, puts what the server is to get into `out`, and what can be
    /// answered without it into `to_client`. An incomplete message stays in `inbox`, unless it is a long one.
    ///
    /// # Errors
    /// When the client is to be closed with [`Violation::write`].
    pub fn up(
        &mut self,
        server: &mut Server,
        texts: &mut Texts,
        inbox: &mut BytesMut,
        out: &mut BytesMut,
        to_client: &mut BytesMut,
    ) -> Result<Sent, Violation> {
        let mut relay = Relay::new(inbox, out);
        let sent = self.walk(server, texts, &mut relay);
        let relayed = relay.done();
        relayed.finish(inbox, out);
        server.settle(to_client);
        sent
    }

    fn walk(
        &mut self,
        server: &mut Server,
        texts: &mut Texts,
        relay: &mut Relay<'_>,
    ) -> Result<Sent, Violation> {
        if server.queue.is_empty() {
            self.turn = 0;
        }
        loop {
            if self.seen.sending > 0 {
                if !self.rest(relay) {
                    return Ok(Sent::More);
                }
                continue;
            }
            let rest = relay.rest();
            let Some(head) = frontend::head(rest)? else { return Ok(Sent::More) };
            // COPY goes on: the server answers nothing before it has the data.
            if server.copy == Copy::None {
                if server.queue.len() >= OUTSTANDING {
                    if server.open {
                        // The server may keep short replies to itself until it is asked for them.
                        relay.out().extend_from_slice(build::FLUSH);
                    }
                    return Ok(Sent::Held);
                }
                let most = if self.single { 1 } else { TURN };
                if self.turn >= most && !server.open {
                    return Ok(Sent::Held);
                }
            }
            let names = matches!(head.kind, frontend::PARSE | frontend::BIND);
            let wanted = match head.is_streamed() {
                true if names => head.len.min(NAMES),
                true => HEADER,
                false => head.len,
            };
            if rest.len() < wanted {
                return Ok(Sent::More);
            }
            if head.kind == frontend::TERMINATE {
                return Ok(Sent::Terminate);
            }
            let here = head.len.min(rest.len());
            let message = rest.get(..here).unwrap_or_default();
            if server.skipping && head.kind != frontend::SYNC {
                self.seen.sending = head.len - here;
                self.dropping = self.seen.sending > 0;
                relay.skip(here);
                continue;
            }
            // Within COPY, what is not of it fails it and is not carried out.
            let in_copy = matches!(server.copy, Copy::In | Copy::Both);
            let done = if in_copy {
                within_copy(server, relay, head.kind, here)
            } else {
                match self.message(server, texts, relay, head, message)? {
                    Some(done) => done,
                    None => return Ok(Sent::Held),
                }
            };
            relay.pass(here - done);
            self.seen.sending = head.len - here;
            let stale = matches!(server.queue.back(), Some(Expect { kind: Kind::Stale(_), .. }));
            self.dropping = (in_copy || stale) && done == here;
            if matches!(head.kind, frontend::QUERY | frontend::FUNCTION_CALL | frontend::SYNC) {
                self.turn += 1;
                self.parsed_unnamed = false;
                server.end_batch();
            }
        }
    }

    /// More of a long message; `false` when none is there.
    fn rest(&mut self, relay: &mut Relay<'_>) -> bool {
        let rest = relay.rest();
        let piece = rest.get(..self.seen.sending).unwrap_or(rest);
        if piece.is_empty() {
            return false;
        }
        if let Some(look) = &mut self.look {
            look.feed(piece);
        }
        self.seen.sending -= piece.len();
        if self.dropping {
            relay.skip(piece.len())
        } else {
            relay.pass(piece.len())
        }
        if self.seen.sending == 0 {
            self.dropping = false;
            if let Some(look) = self.look.take() {
                self.seen.pins |= look.end();
            }
        }
        true
    }

    /// One message, or what is there of a long one; how many of its bytes were replaced or left out. `None` when it must wait.
    fn message(
        &mut self,
        server: &mut Server,
        texts: &mut Texts,
        relay: &mut Relay<'_>,
        head: Head,
        message: &[u8],
    ) -> Result<Option<usize>, Violation> {
        let body = message.get(HEADER..).unwrap_or_default();
        match head.kind {
            frontend::QUERY => {
                if head.is_streamed() {
                    self.begin_look();
                    if let Some(look) = &mut self.look {
                        look.feed(body);
                    }
                    self.note_unseen();
                } else {
                    let text = frontend::query(body)?;
                    self.seen.pins |= self.look(text);
                    self.note_text(text);
                }
                // A Query drops the unnamed statement.
                let undo = Some(Undo { name: Box::default(), previous: self.seen.unnamed.take() });
                server.unnamed = Unnamed::None;
                server.expect(Kind::Query, false, undo);
            }
            frontend::FUNCTION_CALL => {
                self.seen.pins |= Pins::CODE;
                self.note_unseen();
                server.expect(Kind::FunctionCall, false, None);
            }
            frontend::SYNC => {
                server.expect(Kind::Sync, false, None);
            }
            frontend::PARSE => return self.parse(server, texts, relay, head, body),
            frontend::BIND => {
                let names = bind_names(body, head)?;
                if self.must_wait(server, names.statement) {
                    return Ok(None);
                }
                let statement = self.ready_statement(server, relay, names.statement);
                if let Some(statement) = statement.as_deref().filter(|_| !names.statement.is_empty()) {
                    match as_told(server, relay, statement) {
                        Some(true) => {}
                        Some(false) => return Ok(Some(stale(server, relay, statement.id, message.len()))),
                        None => return Ok(None),
                    }
                }
                server.expect(Kind::Bind(statement.as_ref().map(|statement| statement.id)), false, None);
                if let Some(statement) = &statement {
                    self.seen.pins |= statement.pins;
                    match statement.text() {
                        Some(text) => self.note_text(text),
                        None => self.note_unseen(),
                    }
                }
                let Some(name) = at_server(names.statement, statement.as_deref()) else { return Ok(Some(0)) };
                let name = name.as_bytes();
                let length = head.len - HEADER - names.statement.len() + name.len();
                let out = relay.out();
                build::header(out, frontend::BIND, length);
                out.put_slice(names.portal);
                out.put_u8(0);
                out.put_slice(name);
                out.put_u8(0);
                return Ok(Some(replaced(relay, HEADER + names.names_len())));
            }
            frontend::DESCRIBE => match Target::read(head.kind, body)? {
                Target::Portal(_) => server.expect(Kind::DescribePortal, false, None),
                Target::Statement(name) if self.must_wait(server, name) => return Ok(None),
                Target::Statement(name) => {
                    let statement = self.ready_statement(server, relay, name);
                    let named = statement.as_ref().filter(|_| !name.is_empty());
                    let id = named.map(|statement| statement.id);
                    server.expect(Kind::DescribeStatement(id), false, None);
                    if let Some(name) = at_server(name, statement.as_deref()) {
                        build::target(relay.out(), head.kind, name.as_bytes());
                        return Ok(Some(replaced(relay, head.len)));
                    }
                }
            },
            frontend::CLOSE => match Target::read(head.kind, body)? {
                Target::Portal(_) => server.expect(Kind::Close(None), false, None),
                Target::Statement(name) if self.must_wait(server, name) => return Ok(None),
                Target::Statement(b"") => {
                    let undo = Undo { name: Box::default(), previous: self.seen.unnamed.take() };
                    server.unnamed = Unnamed::None;
                    server.expect(Kind::Close(None), false, Some(undo));
                }
                Target::Statement(name) => {
                    // The statement stays for others. The server knows nothing under the client's name, which is no error.
                    let undo = Undo { name: name.into(), previous: self.seen.put(name.into(), None) };
                    server.expect(Kind::Close(None), false, Some(undo));
                    if let Cow::Owned(other) = foreign(name) {
                        build::target(relay.out(), head.kind, &other);
                        return Ok(Some(replaced(relay, head.len)));
                    }
                }
            },
            frontend::EXECUTE => server.expect(Kind::Execute, false, None),
            frontend::COPY_DONE | frontend::COPY_FAIL => server.expect(Kind::CopyEnd, false, None),
            _ => {}
        }
        Ok(Some(0))
    }

    /// Notes what a text changes that is carried out, if somebody asks for it.
    fn note_text(&mut self, text: &[u8]) {
        let parameters = &self.seen.parameters;
        if let Some(writes) = &mut self.writes {
            if parameters.is_ascii_safe() {
                writes.look(text, parameters.escapes());
            } else {
                writes.everything();
            }
        }
    }

    fn note_unseen(&mut self) {
        if let Some(writes) = &mut self.writes {
            writes.everything();
        }
    }

    /// Whether it is not known yet what a statement's name means, since an earlier batch that changes it is not answered: an error in
    /// that would leave the change undone.
    fn must_wait(&self, server: &mut Server, name: &[u8]) -> bool {
        server.is_guessing(!name.is_empty()) && !(name.is_empty() && self.parsed_unnamed)
    }

    fn parse(
        &mut self,
        server: &mut Server,
        texts: &mut Texts,
        relay: &mut Relay<'_>,
        head: Head,
        body: &[u8],
    ) -> Result<Option<usize>, Violation> {
        let end = body.iter().position(|byte| *byte == 0).ok_or(WireError::Body(head.kind))?;
        let (name, _) = body.split_at(end);
        if !name.is_empty() && self.must_wait(server, name) {
            return Ok(None);
        }
        let (name, statement) = if head.is_streamed() {
            let text = body.get(end..).unwrap_or_default();
            self.begin_look();
            if let Some(look) = &mut self.look {
                look.feed(text.get(1..).unwrap_or_default());
            }
            self.seen.pins |= Pins::LONG_STATEMENT;
            (name, texts.long())
        } else {
            let parse = Parse::read(body)?;
            (parse.name, self.statement_of(&parse, texts))
        };
        let id = statement.id;
        if name.is_empty() {
            let previous = self.seen.unnamed.replace(statement);
            server.unnamed = Unnamed::Is(id);
            server.expect(Kind::Parse(None), false, Some(Undo { name: Box::default(), previous }));
            self.parsed_unnamed = true;
            return Ok(Some(0));
        }
        if self.seen.names.contains_key(name) {
            return Ok(Some(duplicate(server, relay, name, head, body)));
        }
        let long = statement.rest.is_none();
        self.seen.put(name.into(), Some(statement));
        if !self.seen.is_within_limits() {
            return Err(Violation::Statements);
        }
        let undo = Some(Undo { name: name.into(), previous: None });
        if server.held.touch(id) {
            if server.may_copy() {
                build::target(relay.out(), frontend::CLOSE, foreign(Name::of(id).as_bytes()).as_ref());
                server.expect(Kind::StandIn, false, undo);
            } else {
                server.expect(Kind::Parsed, false, undo);
            }
            return Ok(Some(replaced(relay, head.len)));
        }
        server.make_room(relay.out());
        if long {
            server.held.insert_for_good(id)
        } else {
            server.held.insert(id)
        }
        server.expect(Kind::Parse(Some(id)), false, undo);
        let own = Name::of(id);
        let out = relay.out();
        build::header(out, frontend::PARSE, head.len - HEADER - name.len() + own.as_bytes().len());
        out.put_slice(own.as_bytes());
        Ok(Some(replaced(relay, HEADER + name.len())))
    }

    /// The client's statement of a name, after the server has been made to have it.
    fn ready_statement(
        &mut self,
        server: &mut Server,
        relay: &mut Relay<'_>,
        name: &[u8],
    ) -> Option<Arc<Statement>> {
        if !name.is_empty() {
            let statement = self.seen.names.get(name).map(Arc::clone)?;
            if !server.held.touch(statement.id)
                && let Some(rest) = &statement.rest
            {
                let out = relay.out();
                server.make_room(out);
                build::parse(out, Name::of(statement.id).as_bytes(), rest);
                server.held.insert(statement.id);
                server.expect(Kind::Parse(Some(statement.id)), true, None);
            }
            return Some(statement);
        }
        match &self.seen.unnamed {
            Some(statement) => {
                if server.unnamed != Unnamed::Is(statement.id)
                    && let Some(rest) = &statement.rest
                {
                    build::parse(relay.out(), b"", rest);
                    server.unnamed = Unnamed::Is(statement.id);
                    server.expect(Kind::Parse(None), true, None);
                }
                Some(Arc::clone(statement))
            }
            None => {
                // What the server has under no name is another client's.
                if server.unnamed != Unnamed::None {
                    build::target(relay.out(), frontend::CLOSE, b"");
                    server.unnamed = Unnamed::None;
                    server.expect(Kind::Close(None), true, None);
                }
                None
            }
        }
    }
}

/// Whether a statement is at this server what clients were told of it: it was prepared there at another time, and tables change. `None`: the
/// server was asked.
fn as_told(server: &mut Server, relay: &mut Relay<'_>, statement: &Statement) -> Option<bool> {
    // Where no client was told anything, none relies on it; and what cannot be prepared again has stayed at one server.
    let Some(told) = statement.told.get().filter(|_| statement.rest.is_some()) else { return Some(true) };
    let shape = server.held.shape(statement.id);
    if shape.is_none() && !server.is_describing(statement.id) {
        let out = relay.out();
        build::target(out, frontend::DESCRIBE, Name::of(statement.id).as_bytes());
        out.extend_from_slice(build::FLUSH);
        server.expect(Kind::DescribeStatement(Some(statement.id)), true, None);
    }
    shape.map(|shape| shape == *told)
}

/// Sends something that fails instead of a message whose statement has changed; how many bytes it replaces.
fn stale(server: &mut Server, relay: &mut Relay<'_>, id: u64, here: usize) -> usize {
    build::target(relay.out(), frontend::DESCRIBE, nobodys().as_bytes());
    server.expect(Kind::Stale(id), false, None);
    replaced(relay, here)
}

/// The name that replaces a client's.
enum Replacement {
    Own(Name),
    Other(Vec<u8>),
}

impl Replacement {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Own(name) => name.as_bytes(),
            Self::Other(name) => name,
        }
    }
}

/// The name at the server; `None` when it is the client's.
fn at_server(name: &[u8], statement: Option<&Statement>) -> Option<Replacement> {
    match statement {
        _ if name.is_empty() => None,
        Some(statement) => Some(Replacement::Own(Name::of(statement.id))),
        None => match foreign(name) {
            Cow::Borrowed(_) => None,
            Cow::Owned(other) => Some(Replacement::Other(other)),
        },
    }
}

fn bind_names(body: &[u8], head: Head) -> Result<Bind<'_>, WireError> {
    let known = if head.is_streamed() { body.get(..NAMES).unwrap_or(body) } else { body };
    Bind::read(known)
}

fn replaced(relay: &mut Relay<'_>, bytes: usize) -> usize {
    relay.skip(bytes);
    bytes
}

/// A Parse under a name that the client has already, which is an error of the server's own words. It has nothing under that name, so
/// it gets an empty statement before, and is reset afterwards.
fn duplicate(server: &mut Server, relay: &mut Relay<'_>, name: &[u8], head: Head, body: &[u8]) -> usize {
    let known = foreign(name);
    let out = relay.out();
    build::target(out, frontend::CLOSE, &known);
    server.expect(Kind::Close(None), true, None);
    build::parse(out, &known, b"\0\0\0");
    server.expect(Kind::Parse(None), true, None);
    server.expect(Kind::Parse(None), false, None);
    server.dirty = true;
    build::header(out, frontend::PARSE, head.len - HEADER - name.len() + known.len());
    out.put_slice(&known);
    debug_assert!(body.starts_with(name));
    replaced(relay, HEADER + name.len())
}

/// A message within COPY; how many of its bytes were replaced. What does not belong there fails a COPY without being carried out.
/// Whether the server is still in it cannot be known, so CopyFail is sent for it, which does nothing outside of COPY.
fn within_copy(server: &mut Server, relay: &mut Relay<'_>, kind: u8, here: usize) -> usize {
    match kind {
        frontend::COPY_DATA | frontend::FLUSH => {}
        frontend::COPY_DONE | frontend::COPY_FAIL => server.expect(Kind::CopyEnd, false, None),
        frontend::SYNC => server.expect(Kind::Sync, false, None),
        _ if server.copy == Copy::Both => {}
        _ => {
            build::copy_fail(
                relay.out(),
                &format!("unexpected message type 0x{kind:02X} during COPY from stdin"),
            );
            server.expect(Kind::CopyEnd, false, None);
            return replaced(relay, here);
        }
    }
    0
}
