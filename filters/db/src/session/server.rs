//! The server's side of a pooled session: what it owes, what it has, and what must happen before another client gets it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use super::client::Client;
use super::parameters::Parameters;
use super::pins::Pins;
use super::seen::{Seen, Undo};
use super::statements::{Held, Name};
use crate::wire::backend::Status;
use crate::wire::{WireError, build, frontend};

/// The most replies that are outstanding; above it nothing more is sent until some have come.
pub(super) const OUTSTANDING: usize = 4096;

/// Why a server connection cannot be used any more. It is closed, whoever has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// What came is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message that answers nothing.
    #[error("unexpected message type {0}")]
    Unexpected(u8),
    /// The server has said FATAL, and closes.
    #[error("the server ended the session")]
    Fatal,
    /// A Query of ours failed: parameters could not be set, or the session not be reset.
    #[error("the session could not be set up or reset")]
    Ours,
    /// The client is gone in the middle of a message.
    #[error("a message was cut off")]
    Cut,
    /// After an error in COPY it cannot be known how many ReadyForQuery are still to come.
    #[error("a Sync within COPY may or may not be answered")]
    Stray,
    /// CopyBoth: replication, which a pool does not lead.
    #[error("copy both")]
    CopyBoth,
    /// A library was loaded.
    #[error("a library was loaded")]
    Loaded,
}

impl Unknown {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Wire(_) | Self::Unexpected(_) => "protocol",
            Self::Fatal => "fatal",
            Self::Ours => "setup",
            Self::Cut => "cut",
            Self::Stray => "stray",
            Self::CopyBoth => "copy_both",
            Self::Loaded => "loaded",
        }
    }
}

/// Whom the replies are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In the pool.
    Idle,
    /// The parameters of the next client are being set.
    Setup,
    /// A client has it.
    Client,
    /// Its client is gone; replies come to an end first.
    Abandoned,
    /// Our own Queries make it clean.
    Cleaning,
}

/// Something that the server owes replies for, in the order of sending.
#[derive(Debug)]
pub(super) struct Expect {
    pub(super) kind: Kind,
    /// Sent by the pooler, so that its replies are swallowed.
    pub(super) ours: bool,
    pub(super) undo: Option<Undo>,
}

/// The messages that are answered, or that decide what others are answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Query,
    FunctionCall,
    Sync,
    /// Of a statement by its id; of the unnamed one when there is none.
    Parse(Option<u64>),
    Bind(Option<u64>),
    DescribeStatement(Option<u64>),
    /// Something that fails, sent for a Bind of a statement that is something else at this server than what clients were told.
    Stale(u64),
    DescribePortal,
    Execute,
    Close(Option<u64>),
    /// CopyDone or CopyFail, sent before the server has asked for data.
    CopyEnd,
    /// A Parse that was not sent since the server has the statement.
    Parsed,
    /// A Close of nothing that was sent for such a Parse, where a message must be: what comes before may turn out to be a COPY,
    /// which a Parse behind it fails.
    StandIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    None,
    In,
    Out,
    Both,
}

/// Whether batches that are not answered change what names of statements mean.
#[derive(Debug, Default)]
struct Guesses {
    /// The batch that is being sent: named ones, the unnamed one.
    now: (bool, bool),
    /// Those before it.
    before: (bool, bool),
}

/// Which statement is the unnamed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unnamed {
    None,
    Is(u64),
    Unknown,
}

/// A server connection after its login.
#[derive(Debug)]
pub struct Server {
    pub(super) mode: Mode,
    pub(super) queue: VecDeque<Expect>,
    pub(super) status: Status,
    /// An extended message was sent, and no Sync after it.
    pub(super) open: bool,
    /// An extended message failed: the server ignores everything up to the next Sync, so nothing else is sent.
    pub(super) skipping: bool,
    pub(super) copy: Copy,
    /// How many Syncs were sent that COPY swallows, as long as it does not fail.
    pub(super) copy_syncs: usize,
    /// How many ReadyForQuery may or may not come beyond the expected ones.
    pub(super) stray: usize,
    pub(super) held: Held,
    pub(super) unnamed: Unnamed,
    /// Statements that failed for good and are to be closed.
    pub(super) doomed: Vec<u64>,
    pub(super) has: Arc<Parameters>,
    pub(super) defaults: Arc<Parameters>,
    /// Something of a client is left in the session.
    pub(super) dirty: bool,
    pub(super) unknown: Option<Unknown>,
    /// The client has read of the server's end.
    pub(super) told_fatal: bool,
    guesses: Guesses,
    /// The parameters of the statement that is being described.
    pub(super) describing: u64,
    /// How much of a long reply is still to come, and whether it is the client's.
    pub(super) passing: usize,
    pub(super) passing_on: bool,
    /// The ErrorResponse that the setup failed with.
    pub(super) failure: Vec<u8>,
    /// CancelRequests on their way.
    cancels: u32,
    cancelled: bool,
}

/// What becomes of a server that its client has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidy {
    /// It can go to the next client.
    Clean,
    /// Write what was put into `out`, and read until [`Down::Tidy`](super::Down::Tidy); then ask again.
    Wait,
    /// A CancelRequest is on its way to it. Ask again after [`Server::cancel_done`].
    Cancelling,
    /// Close it.
    Close(Unknown),
}

impl Server {
    /// A connection after its login, at its first ReadyForQuery. `parameters` are those it has reported; `statements` is the most
    /// prepared statements that it is to have.
    pub fn new(parameters: Arc<Parameters>, statements: usize) -> Self {
        Self {
            mode: Mode::Idle,
            queue: VecDeque::new(),
            status: Status::Idle,
            open: false,
            skipping: false,
            copy: Copy::None,
            copy_syncs: 0,
            stray: 0,
            held: Held::new(statements),
            unnamed: Unnamed::None,
            doomed: Vec::new(),
            has: Arc::clone(&parameters),
            defaults: parameters,
            dirty: false,
            unknown: None,
            told_fatal: false,
            guesses: Guesses::default(),
            describing: 0,
            passing: 0,
            passing_on: false,
            failure: Vec::new(),
            cancels: 0,
            cancelled: false,
        }
    }

    /// Gives a clean server to a client. `true`: it is ready. `false`: write what was put into `out`, and read until
    /// [`Down::Ready`](super::Down::Ready) or [`Down::SetupFailed`](super::Down::SetupFailed); nothing of the client is sent before, so that
    /// nothing runs under the parameters of another.
    pub fn attach(&mut self, client: &mut Client, out: &mut BytesMut) -> bool {
        debug_assert!(self.mode == Mode::Idle && self.is_quiet(), "a server in use");
        client.attached();
        let mut text = BytesMut::new();
        let Self { has, defaults, .. } = self;
        has.change(&client.seen.parameters, defaults, &mut text);
        if text.is_empty() {
            self.mode = Mode::Client;
            return true;
        }
        self.mode = Mode::Setup;
        self.own_query(&text, out);
        false
    }

    /// Takes the server from its client: after [`Down::Free`](super::Down::Free), or at any time when the client is gone. Replies that
    /// are outstanding are read to their end and thrown away.
    pub fn leave(&mut self, client: &mut Client, out: &mut BytesMut) -> Tidy {
        if client.seen.sending > 0 {
            self.unknown.get_or_insert(Unknown::Cut);
        }
        if client.seen.pins.contains(Pins::LOAD) {
            self.unknown.get_or_insert(Unknown::Loaded);
        }
        // A setup whose end nobody waits for may fail unseen.
        self.dirty |= !client.seen.pins.is_empty() || self.mode == Mode::Setup;
        client.detached();
        self.mode = Mode::Abandoned;
        self.tidy(out)
    }

    /// What is to be done next with a server that no client has.
    pub fn tidy(&mut self, out: &mut BytesMut) -> Tidy {
        if self.stray > 0 {
            self.unknown.get_or_insert(Unknown::Stray);
        }
        if let Some(unknown) = self.unknown {
            return Tidy::Close(unknown);
        }
        if self.copy == Copy::In {
            self.copy = Copy::None;
            build::copy_fail(out, "the client is gone");
            // The Syncs that came before are swallowed by COPY.
            self.open |= self.queue.front().is_some_and(|front| front.kind == Kind::Execute);
        }
        if self.open || self.skipping {
            self.own_sync(out);
        }
        if !self.is_quiet() {
            return Tidy::Wait;
        }
        if self.cancels > 0 {
            return Tidy::Cancelling;
        }
        self.mode = Mode::Cleaning;
        if std::mem::take(&mut self.cancelled) {
            // The signal of a cancel has been sent before its connection ended. One more message makes sure that the server has
            // looked at it.
            self.own_sync(out);
        }
        if self.status != Status::Idle {
            self.own_query(b"ROLLBACK", out);
        }
        if std::mem::take(&mut self.dirty) {
            self.own_query(b"DISCARD ALL", out);
        }
        if !self.is_quiet() {
            return Tidy::Wait;
        }
        self.mode = Mode::Idle;
        Tidy::Clean
    }

    /// A CancelRequest for the present client is being sent. Until it is done, the server goes to nobody else, so that it hits nobody
    /// else.
    pub fn cancel_begun(&mut self) {
        self.cancels += 1;
        self.cancelled = true;
    }

    /// The server has closed the connection of a CancelRequest: its signal is sent.
    pub fn cancel_done(&mut self) {
        self.cancels = self.cancels.saturating_sub(1);
    }

    /// Whether a cancel could hit something of the present client.
    pub fn is_busy(&self) -> bool {
        self.mode == Mode::Client && !self.queue.is_empty()
    }

    /// The transaction status as of the last ReadyForQuery.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the next batch begins a transaction of a client that has the server: nothing is outstanding, and none is open.
    pub fn is_between_transactions(&self) -> bool {
        self.is_quiet() && self.status == Status::Idle
    }

    /// Whether the client was told by the server itself that it ends.
    pub fn has_told_fatal(&self) -> bool {
        self.told_fatal
    }

    /// Whether a part of a long reply has gone to the client, which can only be told of anything when the rest has.
    pub fn is_amid_reply(&self) -> bool {
        self.passing > 0 && self.passing_on
    }

    /// The ErrorResponse of a failed setup, as it came.
    pub fn failure(&self) -> &[u8] {
        &self.failure
    }

    /// How many prepared statements the connection has by the pooler's count.
    pub fn statements(&self) -> usize {
        self.held.len()
    }

    /// How many replies are outstanding.
    pub fn outstanding(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && !self.open && !self.skipping && self.passing == 0 && self.copy == Copy::None
    }

    /// Whether something is outstanding that may turn out to be a COPY.
    pub(super) fn may_copy(&self) -> bool {
        self.queue.iter().rev().any(|sent| matches!(sent.kind, Kind::Execute | Kind::Query))
    }

    fn own_query(&mut self, text: &[u8], out: &mut BytesMut) {
        build::query(out, text);
        self.unnamed = Unnamed::None;
        self.expect(Kind::Query, true, None);
    }

    fn own_sync(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(build::SYNC);
        self.expect(Kind::Sync, true, None);
    }

    /// Notes what was sent. The order of the notes is that of the bytes.
    pub(super) fn expect(&mut self, kind: Kind, ours: bool, undo: Option<Undo>) {
        if matches!(self.copy, Copy::In | Copy::Both) && kind != Kind::CopyEnd {
            match kind {
                // COPY ignores it, as long as it does not fail.
                Kind::Sync => self.copy_syncs += 1,
                _ => debug_assert!(false, "{kind:?} within COPY"),
            }
            return;
        }
        match kind {
            Kind::Parse(None) | Kind::Query => self.guesses.now.1 = true,
            Kind::Parse(Some(_)) | Kind::Parsed | Kind::StandIn => self.guesses.now.0 = true,
            Kind::Close(_) => self.guesses.now = (true, true),
            _ => {}
        }
        match kind {
            Kind::Sync => {
                self.open = false;
                self.skipping = false;
            }
            Kind::Query | Kind::FunctionCall => self.open = false,
            Kind::CopyEnd => {
                match self.copy {
                    Copy::In => self.copy = Copy::None,
                    // Only a COPY that is to come can want it.
                    _ if !self.queue.is_empty() => self.queue.push_back(Expect { kind, ours, undo }),
                    _ => {}
                }
                return;
            }
            _ => self.open = true,
        }
        self.queue.push_back(Expect { kind, ours, undo });
    }

    /// A batch has been sent to its end.
    pub(super) fn end_batch(&mut self) {
        let now = std::mem::take(&mut self.guesses.now);
        self.guesses.before.0 |= now.0;
        self.guesses.before.1 |= now.1;
    }

    /// Whether a batch before the present one is not answered and changes named statements, or the unnamed one.
    pub(super) fn is_guessing(&mut self, named: bool) -> bool {
        let guessing = |guesses: &Guesses| if named { guesses.before.0 } else { guesses.before.1 };
        if !guessing(&self.guesses) {
            return false;
        }
        let ends = |sent: &Expect| matches!(sent.kind, Kind::Query | Kind::FunctionCall | Kind::Sync);
        if !self.queue.iter().any(ends) {
            self.guesses.before = (false, false);
        }
        guessing(&self.guesses)
    }

    /// Whether a statement is being described.
    pub(super) fn is_describing(&self, id: u64) -> bool {
        self.queue.iter().any(|sent| sent.kind == Kind::DescribeStatement(Some(id)))
    }

    /// Closes statements until there is room for one more, and those that failed for good.
    pub(super) fn make_room(&mut self, out: &mut BytesMut) {
        while let Some(id) = self.doomed.pop() {
            self.close(id, out);
        }
        while let Some(id) = self.held.evict() {
            self.close(id, out);
        }
    }

    fn close(&mut self, id: u64, out: &mut BytesMut) {
        build::target(out, frontend::CLOSE, Name::of(id).as_bytes());
        self.expect(Kind::Close(Some(id)), true, None);
    }

    /// Writes the replies to what was not sent, as far as everything before them has been answered.
    pub(super) fn settle(&mut self, to_client: &mut BytesMut) {
        while let Some(front) = self.queue.front() {
            let said = match front.kind {
                Kind::Parsed => build::PARSE_COMPLETE,
                Kind::CopyEnd => b"",
                _ => return,
            };
            if self.mode == Mode::Client {
                to_client.extend_from_slice(said);
            }
            self.queue.pop_front();
        }
    }

    /// Takes back what a message that is not carried out has changed. It stood at `place` of the queue, where it is no more; of several,
    /// the last one goes first.
    pub(super) fn revert(&mut self, place: usize, expect: Expect, seen: Option<&mut Seen>) {
        match expect.kind {
            Kind::Parse(Some(id)) => {
                self.held.remove(id);
            }
            Kind::Close(Some(id)) => self.held.insert(id),
            _ => {}
        }
        let Some(undo) = expect.undo else { return };
        // What was sent later may have changed the same name again: then it is that which would be taken back to this.
        let mut later = self.queue.iter_mut().skip(place).filter_map(|sent| sent.undo.as_mut());
        match later.find(|later| later.name == undo.name) {
            Some(later) => later.previous = undo.previous,
            None => {
                if let Some(seen) = seen {
                    seen.revert(undo);
                }
            }
        }
    }
}
