//! From the server to the client: to whom each reply goes, and what it changes.

use std::sync::Arc;

use bytes::BytesMut;

use super::pins::Pins;
use super::relay::Relay;
use super::seen::Seen;
use super::server::{Copy, Kind, Mode, Server, Unknown, Unnamed};
use super::statements::Shape;
use crate::wire::backend::{self, Report, Status};
use crate::wire::build::ErrorResponse;
use crate::wire::{HEADER, Head};

/// What to do after the bytes that a server has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Read on.
    More,
    /// The parameters are set: send the client's batch.
    Ready,
    /// The parameters could not be set: refuse the batch with [`Server::failure`] and close the server.
    SetupFailed,
    /// The client's transaction is over and it does not need this server: [`Server::leave`].
    Free,
    /// Nothing more is to come by itself for a client that is gone: [`Server::tidy`].
    Tidy,
}

/// What the tags of statements begin with that change nothing by themselves. What functions do that a SELECT calls cannot be seen.
const READS: [&[u8]; 11] = [
    b"SELECT",
    b"BEGIN",
    b"COMMIT",
    b"START",
    b"ROLLBACK",
    b"SHOW",
    b"SET",
    b"FETCH",
    b"CLOSE",
    b"DECLARE",
    b"EXPLAIN",
];

const FEATURE_NOT_SUPPORTED: &[u8] = b"0A000";
const INVALID_STATEMENT_NAME: &[u8] = b"26000";

/// What the server says itself where it finds the same out (`RevalidateCachedQuery` in `plancache.c`).
const OUTDATED: ErrorResponse<'_> = ErrorResponse {
    fatal: false,
    sqlstate: "0A000",
    message: "cached plan must not change result type",
    detail: None,
    hint: Some("qudag-sidecar: prepare the statement again; what it takes or gives has changed since"),
};

impl Server {
    /// Takes what the server has sent from `inbox` and puts what its client is to get into `out`. An incomplete message stays in
    /// `inbox`. `seen` is that of the client that has the server, if one has.
    ///
    /// # Errors
    /// When the state of the server is unknown from here; it is to be closed. What was put into `out` is still the client's.
    pub fn down(
        &mut self,
        inbox: &mut BytesMut,
        out: &mut BytesMut,
        mut seen: Option<&mut Seen>,
    ) -> Result<Down, Unknown> {
        let mut relay = Relay::new(inbox, out);
        let walked = self.walk(&mut relay, seen.as_deref_mut());
        let relayed = relay.done();
        relayed.finish(inbox, out);
        if let Err(unknown) = walked {
            self.unknown.get_or_insert(unknown);
            return Err(unknown);
        }
        if self.told_fatal {
            return Err(Unknown::Fatal);
        }
        Ok(self.next(seen.as_deref()))
    }

    fn next(&mut self, seen: Option<&Seen>) -> Down {
        let quiet = self.is_quiet();
        match self.mode {
            Mode::Setup if self.unknown.is_some() => Down::SetupFailed,
            Mode::Setup if quiet => {
                self.mode = Mode::Client;
                Down::Ready
            }
            Mode::Client if quiet && self.status == Status::Idle => match seen {
                Some(seen) if !seen.pins.is_empty() || seen.sending > 0 => Down::More,
                _ => Down::Free,
            },
            Mode::Abandoned | Mode::Cleaning if quiet || self.copy == Copy::In || self.unknown.is_some() => {
                Down::Tidy
            }
            _ => Down::More,
        }
    }

    fn walk(&mut self, relay: &mut Relay<'_>, mut seen: Option<&mut Seen>) -> Result<(), Unknown> {
        loop {
            let rest = relay.rest();
            if self.passing > 0 {
                let piece = self.passing.min(rest.len());
                if piece == 0 {
                    return Ok(());
                }
                self.passing -= piece;
                if self.passing_on {
                    relay.pass(piece)
                } else {
                    relay.skip(piece)
                }
                continue;
            }
            let Some(head) = backend::head(rest)?.filter(|head| backend::is_decidable(rest.len(), *head))
            else {
                return Ok(());
            };
            let here = head.len.min(rest.len());
            let body = rest.get(HEADER..here).unwrap_or_default();
            let on = self.reply(head, body, relay, seen.as_deref_mut())?;
            if on {
                relay.pass(here)
            } else {
                relay.skip(here)
            }
            self.passing = head.len - here;
            self.passing_on = on;
            if self.passing == 0 && self.queue.front().is_some_and(|front| is_unsent(front.kind)) {
                self.settle(relay.out());
            }
        }
    }

    /// One message, of which `body` is what is there; whether it goes to the client.
    fn reply(
        &mut self,
        head: Head,
        body: &[u8],
        relay: &mut Relay<'_>,
        seen: Option<&mut Seen>,
    ) -> Result<bool, Unknown> {
        let client = self.mode == Mode::Client;
        match head.kind {
            backend::NOTICE | backend::NOTIFICATION => Ok(client),
            backend::PARAMETER => {
                let (name, value) = backend::parameter(body)?;
                if self.has.get(name) != Some(value) {
                    Arc::make_mut(&mut self.has).report(name, value);
                }
                if let Some(seen) = seen.filter(|_| client) {
                    seen.report(name, value);
                }
                Ok(client)
            }
            backend::ERROR => self.error(head, body, relay, seen),
            backend::READY => self.ready(Status::read(body)?, seen),
            _ => self.progress(head, body, seen),
        }
    }

    /// A message that belongs to the oldest thing that is outstanding.
    fn progress(&mut self, head: Head, body: &[u8], seen: Option<&mut Seen>) -> Result<bool, Unknown> {
        let unexpected = Unknown::Unexpected(head.kind);
        let front = self.queue.front().ok_or(unexpected)?;
        let (kind, on) = (front.kind, self.mode == Mode::Client && !front.ours);
        let last = match (kind, head.kind) {
            (Kind::Parse(_), backend::PARSE_COMPLETE)
            | (Kind::Bind(_), backend::BIND_COMPLETE)
            | (Kind::Close(_), backend::CLOSE_COMPLETE) => true,
            (Kind::DescribeStatement(_), backend::PARAMETER_DESCRIPTION) => {
                self.describing = Shape::parameters(body);
                false
            }
            (Kind::DescribeStatement(id), backend::ROW_DESCRIPTION | backend::NO_DATA) => {
                let shape = if head.is_streamed() { Shape::LONG } else { Shape::of(self.describing, body) };
                if let Some(id) = id {
                    self.held.describe(id, shape);
                    let told = seen.and_then(|seen| seen.named(id)).filter(|_| on);
                    if let Some(statement) = told
                        && *statement.told.get_or_init(|| shape) != shape
                    {
                        statement.outdate();
                    }
                }
                true
            }
            (Kind::DescribePortal, backend::ROW_DESCRIPTION | backend::NO_DATA) => true,
            (Kind::StandIn, backend::CLOSE_COMPLETE) => {
                if let Some(front) = self.queue.front_mut() {
                    front.kind = Kind::Parsed;
                }
                return Ok(false);
            }
            (Kind::Execute, backend::SUSPENDED) => true,
            (Kind::Query, backend::ROW_DESCRIPTION) => false,
            (Kind::Query | Kind::Execute, backend::DATA_ROW) => false,
            (Kind::Query | Kind::Execute, backend::COMMAND_COMPLETE | backend::EMPTY_QUERY) => {
                self.copy = Copy::None;
                self.copy_syncs = 0;
                if head.kind == backend::COMMAND_COMPLETE {
                    self.command(backend::command_tag(body)?, seen);
                }
                kind == Kind::Execute
            }
            (Kind::Query | Kind::Execute, backend::COPY_IN) => {
                self.copy_in(seen);
                false
            }
            (Kind::Query | Kind::Execute, backend::COPY_OUT) => {
                self.copy = Copy::Out;
                false
            }
            (Kind::Query | Kind::Execute, backend::COPY_BOTH) => {
                self.copy = Copy::Both;
                self.unknown.get_or_insert(Unknown::CopyBoth);
                false
            }
            (Kind::Query | Kind::Execute, backend::COPY_DATA | backend::COPY_DONE)
                if matches!(self.copy, Copy::Out | Copy::Both) =>
            {
                false
            }
            (Kind::FunctionCall, backend::FUNCTION_RESULT) => false,
            _ => return Err(unexpected),
        };
        if last {
            self.queue.pop_front();
        }
        Ok(on)
    }

    /// The server wants data. What was sent behind the COPY before is read by it now: Syncs are ignored, an end ends it, and
    /// anything else fails it without being carried out (`CopyGetData` in `copyfromparse.c`).
    fn copy_in(&mut self, mut seen: Option<&mut Seen>) {
        self.copy = Copy::In;
        let extended = self.queue.front().is_some_and(|front| front.kind == Kind::Execute);
        while let Some(next) = self.queue.get(1) {
            match next.kind {
                Kind::Sync => self.copy_syncs += 1,
                Kind::CopyEnd => self.copy = Copy::None,
                // The error that it leads to takes it back, with all that follows it up to the Sync.
                _ if extended => {
                    self.copy = Copy::None;
                    break;
                }
                _ => {
                    self.copy = Copy::None;
                    // What follows is carried out, and may rely on it.
                    self.dirty = true;
                }
            }
            let Some(next) = self.queue.remove(1) else { break };
            self.revert(1, next, seen.as_deref_mut());
            if self.copy == Copy::None {
                break;
            }
        }
        let synced = self.queue.iter().skip(1).any(|next| next.kind == Kind::Sync);
        self.open |= extended && !synced;
    }

    /// A statement has been carried out.
    fn command(&mut self, tag: &[u8], mut seen: Option<&mut Seen>) {
        if let Some(seen) = seen.as_deref_mut() {
            seen.changed |= !READS.iter().any(|read| tag.starts_with(read));
        }
        match tag {
            b"DISCARD ALL" => self.discarded(seen),
            b"DEALLOCATE ALL" => self.deallocated(seen),
            // Whatever was deallocated can have been one of the pooler's; whatever was reset can have come with a start-up packet.
            b"DEALLOCATE" | b"RESET" => self.dirty = true,
            b"LISTEN" => pin(seen, Pins::LISTEN),
            b"PREPARE" => pin(seen, Pins::PREPARE),
            b"LOAD" => pin(seen, Pins::LOAD),
            _ => {}
        }
    }

    /// DISCARD ALL: nothing of the session is left but what was sent after it.
    fn discarded(&mut self, mut seen: Option<&mut Seen>) {
        self.deallocated(seen.as_deref_mut());
        // Of the parameters, those that are reported are reported.
        let defaults = Arc::clone(&self.defaults);
        if self.mode == Mode::Cleaning {
            self.has = defaults;
            return;
        }
        self.dirty = true;
        if self.queue.iter().skip(1).all(|next| next.kind == Kind::Sync)
            && let Some(seen) = seen
            && !seen.pins.contains(Pins::LOAD)
        {
            seen.pins = Pins::default();
        }
    }

    /// DEALLOCATE ALL: no named statement is left but those that are parsed after it.
    fn deallocated(&mut self, seen: Option<&mut Seen>) {
        let Self { queue, held, .. } = self;
        held.retain(|id| queue.iter().any(|next| next.kind == Kind::Parse(Some(id))));
        self.doomed.clear();
        if let Some(seen) = seen {
            let later = |name: &[u8]| {
                let mut undos = self.queue.iter().filter_map(|next| next.undo.as_ref());
                undos.any(|undo| *undo.name == *name)
            };
            seen.retain(later);
        }
    }

    fn error(
        &mut self,
        head: Head,
        body: &[u8],
        relay: &mut Relay<'_>,
        mut seen: Option<&mut Seen>,
    ) -> Result<bool, Unknown> {
        let report = Report::read(body);
        if let (b"25006", Some(seen)) = (report.sqlstate, &mut seen) {
            seen.refused_writing = true;
        }
        let client = self.mode == Mode::Client;
        let mut on = client;
        if report.is_fatal() {
            self.unknown.get_or_insert(Unknown::Fatal);
            let pinned = seen.as_ref().is_some_and(|seen| !seen.pins.is_empty() || seen.sending > 0);
            if client && self.is_between_transactions() && !pinned {
                // The client needs this server no more, and what the server ends for is none of its business.
                return Ok(false);
            }
            self.told_fatal |= client;
        }
        if matches!(self.mode, Mode::Setup | Mode::Cleaning) {
            if self.mode == Mode::Setup && self.failure.is_empty() && !head.is_streamed() {
                let header =
                    [&[head.kind][..], &u32::try_from(head.len - 1).unwrap_or_default().to_be_bytes()];
                self.failure = header.concat();
                self.failure.extend_from_slice(body);
            }
            self.unknown.get_or_insert(Unknown::Ours);
            return Ok(false);
        }
        if self.copy != Copy::Both {
            self.copy = Copy::None;
        }
        self.stray += std::mem::take(&mut self.copy_syncs);
        let Some(front) = self.queue.front() else {
            return if report.is_fatal() { Ok(client) } else { Err(Unknown::Unexpected(head.kind)) };
        };
        match front.kind {
            Kind::Query | Kind::FunctionCall | Kind::Sync => {}
            kind => {
                let statement = |id| seen.as_deref().and_then(|seen| seen.named(id));
                match (kind, report.sqlstate) {
                    (Kind::Bind(Some(id)) | Kind::DescribeStatement(Some(id)), FEATURE_NOT_SUPPORTED) => {
                        // "cached plan must not change result type": prepared anew, it works.
                        self.held.remove(id);
                        self.doomed.push(id);
                        if let Some(statement) = statement(id) {
                            statement.outdate();
                        }
                    }
                    (Kind::Stale(id), INVALID_STATEMENT_NAME) => {
                        if let Some(statement) = statement(id) {
                            statement.outdate();
                        }
                        if client {
                            OUTDATED.write(relay.out());
                        }
                        on = false;
                    }
                    _ => {}
                }
                self.skip_to_sync(seen);
            }
        }
        Ok(on)
    }

    /// An extended message has failed: nothing is carried out up to the next Sync, also no Query.
    fn skip_to_sync(&mut self, mut seen: Option<&mut Seen>) {
        let sync = self.queue.iter().position(|next| next.kind == Kind::Sync);
        self.skipping = sync.is_none();
        self.open = self.open && sync.is_some();
        self.unnamed = Unnamed::Unknown;
        let skipped = sync.unwrap_or(self.queue.len());
        for place in (0..skipped).rev() {
            let Some(mut expect) = self.queue.remove(place) else { continue };
            // A Parse that fails itself leaves no unnamed statement (`exec_parse_message`).
            if place == 0
                && expect.kind == Kind::Parse(None)
                && let Some(undo) = &mut expect.undo
            {
                undo.previous = None;
            }
            self.revert(place, expect, seen.as_deref_mut());
        }
    }

    fn ready(&mut self, status: Status, seen: Option<&mut Seen>) -> Result<bool, Unknown> {
        let client = self.mode == Mode::Client;
        let on = match self.queue.front() {
            Some(front) if matches!(front.kind, Kind::Query | Kind::FunctionCall | Kind::Sync) => {
                let on = client && !front.ours;
                self.queue.pop_front();
                on
            }
            _ if self.stray > 0 => {
                self.stray -= 1;
                self.skipping = false;
                client
            }
            _ => return Err(Unknown::Unexpected(backend::READY)),
        };
        self.copy = Copy::None;
        self.status = status;
        if let Some(seen) = seen.filter(|_| on) {
            seen.status = status;
        }
        Ok(on)
    }
}

fn is_unsent(kind: Kind) -> bool {
    matches!(kind, Kind::Parsed | Kind::CopyEnd)
}

fn pin(seen: Option<&mut Seen>, pin: Pins) {
    if let Some(seen) = seen {
        seen.pins |= pin;
    }
}
