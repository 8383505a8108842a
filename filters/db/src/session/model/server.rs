//! A small model of PostgreSQL's side of the protocol (`PostgresMain`, `CopyGetData`): enough of its states to tell who gets which
//! reply.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, BytesMut};

use crate::wire::backend::{self, Status};
use crate::wire::build::{self, ErrorResponse};
use crate::wire::frontend::{self, Bind, Execute, Parse, Target};
use crate::wire::{HEADER, body};

/// A session of the model. What it answers depends on everything that a session has.
#[derive(Debug)]
pub(in crate::session) struct ModelServer {
    inbox: BytesMut,
    pub(in crate::session) out: BytesMut,
    status: Status,
    ignoring: bool,
    copying: Option<bool>,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What SELECTs give: the name of their column.
    pub(in crate::session) column: u8,
    /// What those gave that were prepared, by their names.
    columns: BTreeMap<Vec<u8>, u8>,
    unnamed: Option<Vec<u8>>,
    portals: BTreeMap<Vec<u8>, Vec<u8>>,
    name: Vec<u8>,
    memory: Vec<u8>,
    defaults: Vec<u8>,
    listening: bool,
    pub(in crate::session) ended: bool,
}

impl ModelServer {
    /// With this application name.
    pub(in crate::session) fn new(name: &[u8]) -> Self {
        Self {
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            status: Status::Idle,
            ignoring: false,
            copying: None,
            statements: BTreeMap::new(),
            column: b'a',
            columns: BTreeMap::new(),
            unnamed: None,
            portals: BTreeMap::new(),
            name: name.into(),
            memory: b"4MB".into(),
            defaults: name.into(),
            listening: false,
            ended: false,
        }
    }

    /// Whether it is as after its login, but for prepared statements and its name.
    pub(in crate::session) fn is_clean(&self) -> bool {
        self.status == Status::Idle
            && !self.ignoring
            && self.copying.is_none()
            && self.memory == b"4MB"
            && !self.listening
    }

    /// Whether nothing is on its way.
    pub(in crate::session) fn is_idle(&self) -> bool {
        self.out.is_empty() && self.inbox.is_empty()
    }

    /// How many named statements it has.
    pub(in crate::session) fn statements(&self) -> usize {
        self.statements.len()
    }

    /// The server reads bytes and answers.
    ///
    /// # Panics
    /// When what comes is no message.
    pub(in crate::session) fn take(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        loop {
            let head = frontend::head(&self.inbox);
            assert!(head.is_ok(), "the server gets what is no message: {head:?}");
            let Ok(Some(head)) = head else { return };
            if self.inbox.len() < head.len || self.ended {
                return;
            }
            let message = self.inbox.split_to(head.len);
            let body = body(&message, head).unwrap_or_default();
            self.message(head.kind, body);
        }
    }

    fn say(&mut self, kind: u8, body: &[u8]) {
        build::header(&mut self.out, kind, body.len());
        self.out.put_slice(body);
    }

    fn ready(&mut self) {
        if self.status == Status::Idle {
            self.portals.clear();
        }
        self.out.put_slice(&build::ready(self.status));
    }

    fn error(&mut self, sqlstate: &str, name: &[u8]) {
        // A client's own name that looks like the pooler's is told with what tells them apart.
        let message = String::from_utf8_lossy(name.strip_prefix(b"_qudag_?").unwrap_or(name));
        ErrorResponse { fatal: false, sqlstate, message: &message, detail: None, hint: None }
            .write(&mut self.out);
        if self.status == Status::Transaction {
            self.status = Status::Failed;
        }
    }

    /// An error within an extended message.
    fn fail(&mut self, sqlstate: &str, name: &[u8]) {
        self.error(sqlstate, name);
        self.ignoring = true;
    }

    fn message(&mut self, kind: u8, body: &[u8]) {
        if let Some(simple) = self.copying {
            match kind {
                frontend::COPY_DATA | frontend::FLUSH | frontend::SYNC => return,
                frontend::COPY_DONE => self.say(backend::COMMAND_COMPLETE, b"COPY 1\0"),
                frontend::COPY_FAIL => self.error("57014", b"copy failed"),
                // PostgreSQL says 08P01, and in a pool also 57014.
                _ => self.error("57014", b"copy failed"),
            }
            self.copying = None;
            if simple {
                self.ready();
            } else {
                self.ignoring = kind != frontend::COPY_DONE;
            }
            return;
        }
        if self.ignoring && kind != frontend::SYNC && kind != frontend::TERMINATE {
            return;
        }
        match kind {
            frontend::QUERY => {
                self.unnamed = None;
                let text = frontend::query(body).unwrap_or_default().to_vec();
                for part in statements(&text) {
                    if !self.run(part, true) {
                        break;
                    }
                }
                if self.copying.is_none() {
                    self.ready();
                }
            }
            frontend::FUNCTION_CALL => {
                self.say(backend::FUNCTION_RESULT, b"\xff\xff\xff\xff");
                self.ready();
            }
            frontend::SYNC => {
                self.ignoring = false;
                self.ready();
            }
            frontend::PARSE => self.parse(body),
            frontend::BIND => self.bind(body),
            frontend::DESCRIBE => self.describe(body),
            frontend::EXECUTE => {
                let portal = Execute::read(body).map_or(&b"?"[..], |execute| execute.portal);
                match self.portals.get(portal).cloned() {
                    Some(text) => {
                        if !self.run(&text, false) {
                            self.ignoring = true;
                        }
                    }
                    None => self.fail("34000", portal),
                }
            }
            frontend::CLOSE => {
                match Target::read(kind, body) {
                    Ok(Target::Statement(b"")) => self.unnamed = None,
                    Ok(Target::Statement(name)) => drop(self.statements.remove(name)),
                    Ok(Target::Portal(name)) => drop(self.portals.remove(name)),
                    Err(_) => {}
                }
                self.say(backend::CLOSE_COMPLETE, b"");
            }
            frontend::TERMINATE => self.ended = true,
            _ => {}
        }
    }

    fn parse(&mut self, body: &[u8]) {
        let Ok(parse) = Parse::read(body) else { return self.fail("08P01", b"parse") };
        if parse.name.is_empty() {
            self.unnamed = None;
        }
        if parse.query.starts_with(b"BAD") {
            return self.fail("42601", parse.query);
        }
        if parse.name.is_empty() {
            self.unnamed = Some(parse.query.into());
        } else if self.statements.contains_key(parse.name) {
            return self.fail("42P05", parse.name);
        } else {
            self.statements.insert(parse.name.into(), parse.query.into());
            self.columns.insert(parse.name.into(), self.column);
        }
        self.say(backend::PARSE_COMPLETE, b"");
    }

    fn statement(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name.is_empty() { self.unnamed.clone() } else { self.statements.get(name).cloned() }
    }

    fn bind(&mut self, body: &[u8]) {
        let Ok(bind) = Bind::read(body) else { return self.fail("08P01", b"bind") };
        let Some(text) = self.statement(bind.statement) else { return self.fail("26000", bind.statement) };
        if self.status == Status::Failed && !ends_transaction(&text) {
            return self.fail("25P02", b"");
        }
        if self.has_changed(bind.statement, &text) {
            return self.fail("0A000", b"");
        }
        self.portals.insert(bind.portal.into(), text);
        self.say(backend::BIND_COMPLETE, b"");
    }

    fn describe(&mut self, body: &[u8]) {
        match Target::read(frontend::DESCRIBE, body) {
            Ok(Target::Statement(name)) => match self.statement(name) {
                Some(text) if self.has_changed(name, &text) => self.fail("0A000", b""),
                Some(text) => {
                    self.say(backend::PARAMETER_DESCRIPTION, b"\0\0");
                    self.shape(&text);
                }
                None => self.fail("26000", name),
            },
            Ok(Target::Portal(name)) => match self.portals.get(name).cloned() {
                Some(text) => self.shape(&text),
                None => self.fail("34000", name),
            },
            Err(_) => self.fail("08P01", b"describe"),
        }
    }

    fn shape(&mut self, text: &[u8]) {
        if is_select(text) {
            self.say(backend::ROW_DESCRIPTION, &[&[0, 1, self.column, 0][..], &[0; 18]].concat());
        } else {
            self.say(backend::NO_DATA, b"");
        }
    }

    /// Whether a statement would give something else than when it was prepared.
    fn has_changed(&self, name: &[u8], text: &[u8]) -> bool {
        is_select(text) && self.columns.get(name).is_some_and(|column| *column != self.column)
    }

    /// Runs a statement; `false` when it fails.
    fn run(&mut self, text: &[u8], simple: bool) -> bool {
        if self.status == Status::Failed && !ends_transaction(text) {
            self.error("25P02", b"");
            return false;
        }
        let mut tag = text;
        match text {
            b"" => {
                self.say(backend::EMPTY_QUERY, b"");
                return true;
            }
            b"BEGIN" => self.status = Status::Transaction,
            b"COMMIT" | b"ROLLBACK" => self.status = Status::Idle,
            b"FAIL" | b"BAD" => {
                self.error("XX001", b"");
                return false;
            }
            b"COPY t FROM STDIN" => {
                self.say(backend::COPY_IN, b"\0\0\0");
                self.copying = Some(simple);
                return true;
            }
            b"COPY t TO STDOUT" => {
                self.say(backend::COPY_OUT, b"\0\0\0");
                self.say(backend::COPY_DATA, b"row\n");
                self.say(backend::COPY_DONE, b"");
            }
            b"LISTEN a" => self.listening = true,
            b"DEALLOCATE ALL" => self.statements.clear(),
            b"DISCARD ALL" => {
                self.statements.clear();
                self.listening = false;
                self.memory = b"4MB".into();
                let name = self.defaults.clone();
                self.rename(&name);
            }
            _ if text.starts_with(b"SELECT pg_catalog.set_config(E'application_name',E'") => {
                let value = text.split(|byte| *byte == b'\'').nth(3).unwrap_or_default().to_vec();
                self.rename(&value);
                tag = b"SELECT 1";
            }
            _ if text.starts_with(b"SET application_name = ") => {
                let value = text.get(b"SET application_name = ".len()..).unwrap_or_default().to_vec();
                self.rename(&value);
                tag = b"SET";
            }
            _ if text.starts_with(b"SET work_mem = ") => {
                self.memory = text.get(b"SET work_mem = ".len()..).unwrap_or_default().to_vec();
                tag = b"SET";
            }
            _ => {
                // Whatever it asks, the answer tells the whole state of the session.
                if simple {
                    self.say(backend::ROW_DESCRIPTION, b"\0\0");
                }
                let row =
                    [text, b"|", &self.name, b"|", &self.memory, if self.listening { b"|l" } else { b"|" }]
                        .concat();
                self.say(backend::DATA_ROW, &row);
                tag = b"SELECT 1";
            }
        }
        let tag = [tag, b"\0"].concat();
        self.say(backend::COMMAND_COMPLETE, &tag);
        true
    }

    fn rename(&mut self, name: &[u8]) {
        if self.name != name {
            self.name = name.into();
            build::parameter(&mut self.out, b"application_name", name);
        }
    }

    /// Takes so many of the bytes that it says.
    pub(in crate::session) fn give(&mut self, bytes: usize, to: &mut BytesMut) {
        let bytes = bytes.min(self.out.len());
        to.extend_from_slice(self.out.get(..bytes).unwrap_or_default());
        self.out.advance(bytes);
    }
}

/// The statements of a Query's text; an empty one is one.
fn statements(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = text.strip_suffix(b";").unwrap_or(text);
    whole.split(|byte| *byte == b';')
}

fn is_select(text: &[u8]) -> bool {
    text.starts_with(b"SELECT '")
}

fn ends_transaction(text: &[u8]) -> bool {
    matches!(text, b"COMMIT" | b"ROLLBACK")
}

/// The longest prefix of bytes that is whole messages of a server, with their types.
pub(in crate::session) fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Ok(Some(head)) = backend::head(bytes) {
        let Some(rest) = bytes.get(head.len.max(HEADER)..) else { break };
        kinds.push(head.kind);
        bytes = rest;
    }
    kinds
}
