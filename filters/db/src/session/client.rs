//! The client's side of a pooled session while it has no server: batches are collected, and refused or answered here.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::fingerprint::{Fingerprint, digest, shape, whole_shape};
use super::parameters::Parameters;
use super::pins::Pins;
use super::reads::{self, Asks};
use super::seen::Seen;
use super::tables::{self, Writes};
use super::text::{Look, look};
use crate::wire::backend::Status;
use crate::wire::build::ErrorResponse;
use crate::wire::frontend::{self, Target};
use crate::wire::{HEADER, Head, WireError, body, build};

/// How much of a batch is waited for; of a longer one a server is taken before it is complete.
pub const BATCH: usize = 256 << 10;
/// What a client may not do. It is told with FATAL, and the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// What it sends is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// More prepared statements than are kept for one client.
    #[error("too many prepared statements")]
    Statements,
}

impl Violation {
    /// Writes the FATAL ErrorResponse.
    pub fn write(self, out: &mut BytesMut) {
        let sqlstate = match self {
            Self::Wire(_) => "08P01",
            Self::Statements => "53400",
        };
        let message = format!("qudag-sidecar: {self}");
        ErrorResponse { fatal: true, sqlstate, message: &message, detail: None, hint: None }.write(out);
    }
}

/// What a client without a server wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read on.
    More,
    /// A server for the batch at the front of the inbox: [`Server::attach`](super::Server::attach), then [`Client::up`]; or
    /// [`Client::refuse`].
    Batch,
    /// The end.
    Terminate,
}

/// What is thrown away after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Discard {
    /// Nothing.
    No,
    /// Everything up to a Sync, which is answered.
    ToSync,
    /// So many bytes of a message, and then back to what was before.
    Bytes { left: usize, then: After },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    ToSync,
    Ready,
}

/// What a batch begins with.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The text; empty when there is none.
    pub text: &'a [u8],
    escapes: bool,
}

impl<'a> Work<'a> {
    /// A text with standard strings.
    pub fn of_text(text: &'a [u8]) -> Self {
        Self { text, escapes: false }
    }
}

impl Work<'_> {
    /// The fingerprint of the text.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.text, self.escapes)
    }

    /// The text without its values.
    pub fn shape(&self) -> String {
        shape(self.text, self.escapes)
    }

    /// The text without its values, whatever its length is.
    pub fn whole_shape(&self) -> String {
        whole_shape(self.text, self.escapes)
    }

    /// What tells the text from others as its fingerprint does, also where somebody makes texts with equal fingerprints. `seed`: a secret.
    pub fn digest(&self, seed: u64) -> u64 {
        digest(self.text, self.escapes, seed)
    }

    /// Whether it is one SELECT that looks as if it changed nothing. `vouched`: functions that change nothing either, by their names.
    pub fn is_plain_query(&self, vouched: impl Fn(&[u8]) -> bool) -> bool {
        reads::is_plain_query(self.text, self.escapes, vouched)
    }

    /// The tables that it reads, in lower case and without schemas; `None` when that cannot be seen.
    pub fn reads(&self) -> Option<Vec<Box<str>>> {
        tables::reads(self.text, self.escapes)
    }
}

/// Never with its values.
impl std::fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Work").field(&self.shape()).finish()
    }
}

/// A client after its start-up.
#[derive(Debug)]
pub struct Client {
    /// What replies have told it; for [`Server::down`](super::Server::down).
    pub seen: Seen,
    /// How far the inbox has been looked at.
    scanned: usize,
    /// Whether all of that can be answered without a server.
    local: bool,
    /// Whether a batch is there that a server is needed for.
    batch: bool,
    discard: Discard,
    /// How many batches were sent since the server was taken.
    pub(super) turn: usize,
    /// Whether the batch that is being sent has parsed the unnamed statement.
    pub(super) parsed_unnamed: bool,
    /// The look at the text of a long message.
    pub(super) look: Option<Look>,
    /// Whether the rest of a long message is thrown away.
    pub(super) dropping: bool,
    /// Whether batches are sent one at a time.
    pub(super) single: bool,
    /// The tables that it has changed, where somebody asks for them.
    pub(super) writes: Option<Writes>,
}

impl Client {
    /// A client that has been told these parameters at its login.
    pub fn new(parameters: Arc<Parameters>) -> Self {
        Self {
            seen: Seen::new(parameters),
            scanned: 0,
            local: true,
            batch: false,
            discard: Discard::No,
            turn: 0,
            parsed_unnamed: false,
            look: None,
            dropping: false,
            single: false,
            writes: None,
        }
    }

    /// Whether the tables are noted that its statements change. `amid`: it may have changed some already.
    pub fn note_writes(&mut self, on: bool, amid: bool) {
        match (on, &self.writes) {
            (true, None) if amid => self.writes = Some(Writes::from_the_middle()),
            (true, None) => self.writes = Some(Writes::default()),
            (false, Some(_)) => self.writes = None,
            _ => {}
        }
    }

    /// What was noted since it was asked for the last time.
    pub fn take_writes(&mut self) -> Option<Writes> {
        self.writes.as_mut().map(std::mem::take)
    }

    /// Whether the batches of a pipeline go to the server one at a time, each after the replies to the one before: where the next one may
    /// be for another server.
    pub fn send_singly(&mut self, single: bool) {
        self.single = single;
    }

    /// Looks at what a client without a server has sent; what needs no server is taken from `inbox` and answered into `out`.
    ///
    /// # Errors
    /// When the client is to be closed with [`Violation::write`].
    pub fn feed(&mut self, inbox: &mut BytesMut, out: &mut BytesMut) -> Result<Step, Violation> {
        if self.batch {
            return Ok(Step::Batch);
        }
        let step = self.scan(inbox, out)?;
        self.batch = step == Step::Batch;
        Ok(step)
    }

    fn scan(&mut self, inbox: &mut BytesMut, out: &mut BytesMut) -> Result<Step, Violation> {
        loop {
            if self.discard != Discard::No {
                match self.discard(inbox, out)? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            let rest = inbox.get(self.scanned..).unwrap_or_default();
            let Some(head) = frontend::head(rest)? else { return Ok(Step::More) };
            let first = self.scanned == 0;
            if head.kind == frontend::TERMINATE {
                return Ok(Step::Terminate);
            }
            if first && is_ignored(head.kind) {
                self.discard = Discard::Bytes { left: head.len, then: After::Nothing };
                continue;
            }
            if head.is_streamed() {
                return Ok(Step::Batch);
            }
            let Some(body) = body(rest, head) else {
                return Ok(if self.scanned > BATCH { Step::Batch } else { Step::More });
            };
            self.local &= match head.kind {
                frontend::SYNC | frontend::FLUSH => true,
                frontend::CLOSE => matches!(Target::read(head.kind, body)?, Target::Statement(_)),
                _ => false,
            };
            self.scanned += head.len;
            match head.kind {
                frontend::SYNC | frontend::FLUSH if self.local => self.answer(inbox, out)?,
                frontend::SYNC | frontend::FLUSH | frontend::QUERY | frontend::FUNCTION_CALL => {
                    return Ok(Step::Batch);
                }
                _ if self.scanned > BATCH => return Ok(Step::Batch),
                _ => {}
            }
        }
    }

    /// Answers a batch that only closes statements.
    fn answer(&mut self, inbox: &mut BytesMut, out: &mut BytesMut) -> Result<(), Violation> {
        let mut batch = inbox.split_to(self.scanned);
        self.begin();
        while let Some(head) = frontend::head(&batch)? {
            if let (frontend::CLOSE, Some(body)) = (head.kind, body(&batch, head))
                && let Target::Statement(name) = Target::read(head.kind, body)?
            {
                if name.is_empty() {
                    self.seen.unnamed = None;
                } else {
                    self.seen.put(name.into(), None);
                }
                out.extend_from_slice(build::CLOSE_COMPLETE);
            } else if head.kind == frontend::SYNC {
                self.ready(out);
            }
            batch.advance(head.len.min(batch.len()));
        }
        Ok(())
    }

    fn ready(&mut self, out: &mut BytesMut) {
        self.seen.status = Status::Idle;
        out.extend_from_slice(&build::ready(Status::Idle));
    }

    /// From here a batch begins.
    pub(super) fn begin(&mut self) {
        self.scanned = 0;
        self.local = true;
        self.batch = false;
    }

    /// Refuses the batch at the front of the inbox, without a server: one ErrorResponse (not fatal), and one ReadyForQuery where the
    /// server would send it, which is after the Sync of an extended batch, however much of it has not arrived yet. Go on with
    /// [`Client::feed`]: what follows is another batch.
    pub fn refuse(&mut self, inbox: &BytesMut, out: &mut BytesMut, error: &ErrorResponse<'_>) {
        debug_assert!(!error.fatal, "the connection is kept");
        error.write(out);
        self.refused(inbox);
    }

    /// Like [`Client::refuse`], with an ErrorResponse of a server as it came.
    pub fn refuse_with(&mut self, inbox: &BytesMut, out: &mut BytesMut, error: &[u8]) {
        out.extend_from_slice(error);
        self.refused(inbox);
    }

    fn refused(&mut self, inbox: &BytesMut) {
        self.begin();
        self.discard = match frontend::head(inbox) {
            Ok(Some(Head { kind: frontend::QUERY | frontend::FUNCTION_CALL, len })) => {
                Discard::Bytes { left: len, then: After::Ready }
            }
            _ => Discard::ToSync,
        };
    }

    /// Throws away what is to be. `Some` when nothing more can be done.
    fn discard(&mut self, inbox: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Step>, Violation> {
        match self.discard {
            Discard::No => {}
            Discard::Bytes { left, then } => {
                let now = left.min(inbox.len());
                inbox.advance(now);
                if now < left {
                    self.discard = Discard::Bytes { left: left - now, then };
                    return Ok(Some(Step::More));
                }
                self.discard = if then == After::ToSync { Discard::ToSync } else { Discard::No };
                if then == After::Ready {
                    self.ready(out);
                }
            }
            Discard::ToSync => {
                let Some(head) = frontend::head(inbox)? else { return Ok(Some(Step::More)) };
                let then = match head.kind {
                    frontend::TERMINATE => return Ok(Some(Step::Terminate)),
                    frontend::SYNC => After::Ready,
                    _ => After::ToSync,
                };
                self.discard = Discard::Bytes { left: head.len, then };
            }
        }
        Ok(None)
    }

    /// Tells a client that its server is lost in the middle of something; the connection ends with it. Nothing is written when the
    /// client stands within a message of the server, or when the server has said it itself.
    pub fn lost(&self, server: &super::Server, out: &mut BytesMut) {
        self.end_with(server, "08006", "qudag-sidecar: the connection to the server is lost", out);
    }

    /// Like [`Client::lost`], for another reason.
    pub fn end_with(&self, server: &super::Server, sqlstate: &str, message: &str, out: &mut BytesMut) {
        if !server.is_amid_reply() && !server.has_told_fatal() {
            ErrorResponse { fatal: true, sqlstate, message, detail: None, hint: None }.write(out);
        }
    }

    /// What the batch at the front of the inbox begins with: the first statement that it carries out or prepares.
    pub fn work<'a>(&'a self, inbox: &'a [u8]) -> Work<'a> {
        let escapes = self.seen.parameters.escapes();
        let mut rest = inbox;
        let text = loop {
            let Ok(Some(head)) = frontend::head(rest) else { break None };
            let here = rest.get(HEADER..head.len.min(rest.len())).unwrap_or_default();
            match head.kind {
                // Of a long one, as much as is there.
                frontend::QUERY => break Some(here.strip_suffix(b"\0").unwrap_or(here)),
                frontend::PARSE => {
                    let mut parts = here.splitn(3, |byte| *byte == 0);
                    break parts.nth(1);
                }
                frontend::BIND => {
                    let statement =
                        frontend::Bind::read(here).ok().and_then(|bind| self.seen.statement(bind.statement));
                    break statement.and_then(|statement| statement.text());
                }
                frontend::CLOSE | frontend::FLUSH | frontend::DESCRIBE => {}
                _ => break None,
            }
            match rest.get(head.len..) {
                Some(behind) => rest = behind,
                None => break None,
            }
        };
        Work { text: text.unwrap_or_default(), escapes }
    }

    /// Whether a statement was carried out that changes something, since this was asked the last time.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.seen.changed)
    }

    /// Whether a statement was refused because it would have changed something, since this was asked the last time.
    pub fn take_refused_writing(&mut self) -> bool {
        std::mem::take(&mut self.seen.refused_writing)
    }

    /// Where the batch at the front of the inbox wants to be carried out.
    pub fn asks(&self, inbox: &[u8]) -> Asks {
        let escapes = self.seen.parameters.escapes();
        if !self.seen.parameters.is_ascii_safe() {
            return Asks::Nothing;
        }
        let mut asks = None;
        let mut parsed: Option<&[u8]> = None;
        let mut rest = inbox;
        while let Ok(Some(head)) = frontend::head(rest) {
            let here = rest.get(HEADER..head.len.min(rest.len())).unwrap_or_default();
            let whole = rest.len() >= head.len;
            let text = match head.kind {
                frontend::QUERY => Some(here.strip_suffix(b"\0").unwrap_or(here)),
                frontend::PARSE => {
                    let mut parts = here.splitn(3, |byte| *byte == 0);
                    parsed = parts.next();
                    parts.next()
                }
                frontend::BIND => match frontend::Bind::read(here) {
                    Ok(bind) if parsed == Some(bind.statement) => None,
                    Ok(bind) => match self.seen.statement(bind.statement).and_then(|known| known.text()) {
                        Some(text) => Some(text),
                        None => return Asks::Nothing,
                    },
                    Err(_) => return Asks::Nothing,
                },
                frontend::FUNCTION_CALL => return Asks::Nothing,
                _ => None,
            };
            if let Some(text) = text {
                asks = match asks {
                    None => match reads::hint(text) {
                        Some(hint) => return hint,
                        None if !whole => return Asks::Nothing,
                        None if reads::begins_read_only(text, escapes) => Some(Asks::ReadOnly),
                        None if reads::is_plain_select(text, escapes) => Some(Asks::Select),
                        None => return Asks::Nothing,
                    },
                    Some(Asks::ReadOnly) if !reads::ends_transaction(text, escapes) => Some(Asks::ReadOnly),
                    Some(Asks::Select) if reads::is_plain_select(text, escapes) => Some(Asks::Select),
                    Some(_) => return Asks::Nothing,
                };
            }
            if matches!(head.kind, frontend::QUERY | frontend::SYNC) {
                break;
            }
            rest = rest.get(head.len..).unwrap_or_default();
        }
        asks.unwrap_or_default()
    }

    /// Why it keeps its server.
    pub fn pins(&self) -> Pins {
        self.seen.pins
    }

    /// The transaction status that it was told last.
    pub fn status(&self) -> Status {
        self.seen.status
    }

    /// What it was told of parameters, and what it wants of a server therefore.
    pub fn parameters(&self) -> &Arc<Parameters> {
        &self.seen.parameters
    }

    /// It has a server.
    pub(super) fn attached(&mut self) {
        self.begin();
        self.turn = 0;
    }

    /// The server is gone from it, and whatever pinned it.
    pub(super) fn detached(&mut self) {
        self.begin();
        self.seen.pins = Pins::default();
        self.seen.sending = 0;
        self.parsed_unnamed = false;
        self.look = None;
        self.dropping = false;
    }

    /// The pins in a text.
    pub(super) fn look(&self, text: &[u8]) -> Pins {
        let parameters = &self.seen.parameters;
        if !parameters.is_ascii_safe() {
            return Pins::CODE;
        }
        look(text, parameters.reported(), parameters.escapes())
    }

    /// Begins the look at a text that comes in pieces.
    pub(super) fn begin_look(&mut self) {
        let parameters = &self.seen.parameters;
        if parameters.is_ascii_safe() {
            self.look = Some(Look::new(parameters.reported(), parameters.escapes()));
        } else {
            self.seen.pins |= Pins::CODE;
        }
    }
}

/// Messages that a server ignores when nothing is under way (`PostgresMain`): what is left of a COPY that failed, and Flush.
fn is_ignored(kind: u8) -> bool {
    matches!(kind, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL | frontend::FLUSH)
}
