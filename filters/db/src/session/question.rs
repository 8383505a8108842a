//! Batches whose reply may be kept and given again: one query, outside of a transaction, of a client that needs no particular server.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::client::{Client, Violation};
use super::seen::Seen;
use super::statements::{Statement, Texts};
use crate::wire::backend::{self, Status};
use crate::wire::body;
use crate::wire::frontend::{self, Bind, Execute, Parse, Target};

/// The longest batch whose reply is kept.
const LONGEST: usize = 64 << 10;

/// A batch as a key: two with equal keys ask the same, under the same parameters, and want the reply in the same form.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    key: Bytes,
    len: usize,
}

impl Question {
    /// The key: whatever the reply may depend on, but for the data.
    pub fn key(&self) -> &Bytes {
        &self.key
    }
}

/// Not the key, which has values.
impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Parts with their lengths, so that no two lists of parts make the same key.
struct Key(Vec<u8>);

impl Key {
    fn part(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&part.len().to_be_bytes());
        self.0.extend_from_slice(part);
    }
}

impl Client {
    /// The batch at the front of the inbox as a question, if it is one: a Query, or a Bind and an Execute of all rows with a Parse before
    /// them, a Describe of the portal between them and a Close of it behind them, or not, and a Sync. `who`: what else the reply
    /// depends on.
    pub fn question(&self, inbox: &[u8], who: &[&[u8]]) -> Option<Question> {
        let Seen { parameters, status, pins, .. } = &self.seen;
        if *status != Status::Idle || !pins.is_empty() {
            return None;
        }
        let mut key = Key(Vec::with_capacity(512));
        who.iter().for_each(|part| key.part(part));
        let mut settings: Vec<_> = parameters.iter().collect();
        settings.sort_unstable();
        key.part(&settings.len().to_be_bytes());
        for (name, value) in settings {
            key.part(name);
            key.part(value);
        }
        let (mut parsed, mut bound, mut described, mut executed, mut closed) =
            (None, false, false, false, false);
        let mut at = 0;
        loop {
            let rest = inbox.get(at..)?;
            let head = frontend::head(rest).ok()??;
            at += head.len;
            if at > LONGEST {
                return None;
            }
            let body = body(rest, head)?;
            match head.kind {
                frontend::QUERY if at == head.len => {
                    let text = frontend::query(body).ok()?;
                    key.part(b"query");
                    key.part(text);
                    return self.look(text).is_empty().then(|| Question { key: key.0.into(), len: at });
                }
                frontend::PARSE if parsed.is_none() && !bound => {
                    let parse = Parse::read(body).ok()?;
                    let is_new = parse.name.is_empty() || self.seen.statement(parse.name).is_none();
                    if !is_new || !self.look(parse.query).is_empty() {
                        return None;
                    }
                    key.part(b"parse");
                    key.part(parse.rest);
                    parsed = Some(parse.name);
                }
                frontend::BIND if !bound => {
                    let bind = Bind::read(body).ok().filter(|bind| bind.portal.is_empty())?;
                    if let Some(name) = parsed {
                        if name != bind.statement {
                            return None;
                        }
                    } else {
                        let statement = self.seen.statement(bind.statement)?;
                        if !statement.pins.is_empty() {
                            return None;
                        }
                        key.part(b"bind");
                        key.part(statement.rest.as_deref()?);
                        // Who was told other columns decodes rows otherwise.
                        key.part(&statement.told.get().map_or(0, |shape| shape.number()).to_be_bytes());
                    }
                    key.part(body.get(bind.names_len()..)?);
                    bound = true;
                }
                frontend::DESCRIBE if bound && !described && !executed => {
                    if Target::read(head.kind, body) != Ok(Target::Portal(b"")) {
                        return None;
                    }
                    key.part(b"describe");
                    described = true;
                }
                frontend::EXECUTE if bound && !executed => {
                    if Execute::read(body) != Ok(Execute { portal: b"", rows: 0 }) {
                        return None;
                    }
                    executed = true;
                }
                frontend::CLOSE if executed && !closed => {
                    if Target::read(head.kind, body) != Ok(Target::Portal(b"")) {
                        return None;
                    }
                    key.part(b"close");
                    closed = true;
                }
                frontend::SYNC if executed => return Some(Question { key: key.0.into(), len: at }),
                _ => return None,
            }
        }
    }

    /// Answers the batch at the front of the inbox, which is still this question, with a reply that a server gave to it before.
    ///
    /// # Errors
    /// When the client is to be closed with [`Violation::write`].
    pub fn answer_with(
        &mut self,
        question: &Question,
        reply: &[u8],
        texts: &mut Texts,
        inbox: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<(), Violation> {
        let mut batch = inbox.split_to(question.len.min(inbox.len()));
        self.begin();
        while let Some(head) = frontend::head(&batch)? {
            match (head.kind, body(&batch, head)) {
                (frontend::QUERY, _) => self.seen.unnamed = None,
                (frontend::PARSE, Some(body)) => {
                    let parse = Parse::read(body)?;
                    let statement = self.statement_of(&parse, texts);
                    if parse.name.is_empty() {
                        self.seen.unnamed = Some(statement);
                    } else {
                        self.seen.put(parse.name.into(), Some(statement));
                        if !self.seen.is_within_limits() {
                            return Err(Violation::Statements);
                        }
                    }
                }
                _ => {}
            }
            batch.advance(head.len.min(batch.len()));
        }
        out.extend_from_slice(reply);
        self.seen.status = Status::Idle;
        Ok(())
    }

    /// The statement of a Parse, as the pool knows it.
    pub(super) fn statement_of(&self, parse: &Parse<'_>, texts: &mut Texts) -> Arc<Statement> {
        let parameters = &self.seen.parameters;
        if parameters.escapes() || !parameters.is_ascii_safe() {
            texts.single(parse.rest, self.look(parse.query))
        } else {
            texts.statement(parse.rest, || self.look(parse.query))
        }
    }
}

/// Why a reply is not given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// An ErrorResponse.
    Error,
    /// A NoticeResponse, which belongs to one moment, or a parameter that has changed.
    Notice,
    /// Something else than one SELECT outside of a transaction.
    NotSelect,
    /// Its end is missing, or it is no reply.
    Incomplete,
}

impl Unfit {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Notice => "notice",
            Self::NotSelect => "not_select",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Whether the reply to a question is whole and may be given again: one SELECT that succeeded, without a notice, a parameter that
/// changed, or anything else that does not belong to it.
///
/// # Errors
/// With the reason when it may not.
pub fn lasting(mut reply: &[u8]) -> Result<(), Unfit> {
    let mut selected = false;
    loop {
        let head = backend::head(reply).ok().flatten().ok_or(Unfit::Incomplete)?;
        let body = body(reply, head).ok_or(Unfit::Incomplete)?;
        reply = reply.get(head.len..).unwrap_or_default();
        match head.kind {
            backend::ERROR => return Err(Unfit::Error),
            backend::NOTICE | backend::NOTIFICATION | backend::PARAMETER => return Err(Unfit::Notice),
            backend::PARSE_COMPLETE
            | backend::BIND_COMPLETE
            | backend::ROW_DESCRIPTION
            | backend::DATA_ROW
                if !selected => {}
            backend::CLOSE_COMPLETE if selected => {}
            backend::COMMAND_COMPLETE if !selected => {
                selected = backend::command_tag(body).is_ok_and(|tag| tag.starts_with(b"SELECT "));
                if !selected {
                    return Err(Unfit::NotSelect);
                }
            }
            backend::READY => {
                return match Status::read(body) {
                    Ok(Status::Idle) if selected && reply.is_empty() => Ok(()),
                    _ => Err(Unfit::NotSelect),
                };
            }
            _ => return Err(Unfit::NotSelect),
        }
    }
}

/// For fuzzing: whatever a client sends, a batch is a question or not, and answering it takes that batch and nothing else.
pub fn fuzz_question(bytes: &[u8]) {
    let _ = lasting(bytes);
    let mut client = Client::new(Arc::default());
    let mut inbox = BytesMut::from(bytes);
    let mut texts = Texts::new(8);
    // One after the other, as a session does: what a batch has prepared the next one may use.
    while let Some(question) = client.question(&inbox, &[b"who"]) {
        let again = client.question(inbox.get(..question.len).unwrap_or_default(), &[b"who"]);
        assert!(again.is_some_and(|again| again == question), "what follows makes a difference");
        let (left, mut out) = (inbox.len() - question.len, BytesMut::new());
        if client.answer_with(&question, b"reply", &mut texts, &mut inbox, &mut out).is_err() {
            break;
        }
        assert_eq!((inbox.len(), &*out), (left, &b"reply"[..]));
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::super::Parameters;
    use super::*;
    use crate::wire::build;

    fn client(zone: &str) -> Client {
        let mut parameters = Parameters::default();
        parameters.report(b"TimeZone", zone.as_bytes());
        Client::new(Arc::new(parameters))
    }

    fn query(text: &str) -> BytesMut {
        let mut out = BytesMut::new();
        build::query(&mut out, text.as_bytes());
        out
    }

    fn message(out: &mut BytesMut, kind: u8, body: &[u8]) {
        build::header(out, kind, body.len());
        out.put_slice(body);
    }

    /// Parse (unless the text is empty), Bind with one value and result format, Describe, Execute, Sync.
    fn extended(text: &str, name: &str, value: &str, format: u8, describe: bool) -> BytesMut {
        let mut out = BytesMut::new();
        if !text.is_empty() {
            build::parse(&mut out, name.as_bytes(), &[text.as_bytes(), &[0, 0, 0]].concat());
        }
        let value = [&u32::try_from(value.len()).unwrap().to_be_bytes()[..], value.as_bytes()].concat();
        let bind = [b"\0", name.as_bytes(), b"\0\0\0\0\x01", &value, &[0, 1, 0, format]].concat();
        message(&mut out, b'B', &bind);
        if describe {
            message(&mut out, b'D', b"P\0");
        }
        message(&mut out, b'E', &[0; 5]);
        out.put_slice(build::SYNC);
        out
    }

    fn key(client: &Client, batch: &[u8]) -> Option<Bytes> {
        client.question(batch, &[b"ann", b"db"]).map(|question| question.key)
    }

    #[test]
    fn whatever_changes_the_reply_changes_the_key() {
        let (one, other) = (client("UTC"), client("CET"));
        let batches = [
            query("SELECT 1"),
            query("SELECT 2"),
            extended("SELECT 1", "", "a", 0, true),
            extended("SELECT 1", "", "b", 0, true),
            extended("SELECT 1", "", "a", 1, true),
            extended("SELECT 1", "", "a", 0, false),
            extended("SELECT 2", "", "a", 0, true),
        ];
        let mut keys = Vec::new();
        for batch in &batches {
            keys.push(key(&one, batch).unwrap());
            keys.push(key(&other, batch).unwrap());
            keys.push(one.question(batch, &[b"an", b"ndb"]).unwrap().key);
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), batches.len() * 3);
        assert_eq!(key(&one, &query("SELECT 1")), key(&client("UTC"), &query("SELECT 1")));
    }

    #[test]
    fn what_is_no_single_query_is_no_question() {
        let client = client("UTC");
        let whole = extended("SELECT 1", "", "a", 0, true);
        for end in 0..whole.len() {
            assert_eq!(key(&client, &whole[..end]), None);
        }
        for text in ["LISTEN x", "SELECT pg_advisory_lock(1)", "SET work_mem = 1"] {
            assert_eq!(key(&client, &query(text)), None, "{text}");
        }
        assert_eq!(key(&client, &extended("", "s", "a", 0, true)), None, "a statement that is not known");
        assert_eq!(key(&client, build::SYNC), None);
        let mut in_transaction = client;
        in_transaction.seen.status = Status::Transaction;
        assert_eq!(key(&in_transaction, &whole), None);
    }

    #[test]
    fn a_client_that_was_answered_has_its_statements_and_its_next_batch() {
        let (mut client, mut texts, mut out) = (client("UTC"), Texts::new(10), BytesMut::new());
        let mut inbox = extended("SELECT $1", "s", "a", 0, true);
        inbox.extend_from_slice(&query("SELECT 2"));
        let question = client.question(&inbox, &[]).unwrap();
        client.answer_with(&question, b"reply", &mut texts, &mut inbox, &mut out).unwrap();
        assert_eq!((&out[..], &inbox), (&b"reply"[..], &query("SELECT 2")));
        assert_eq!(client.seen.statement(b"s").unwrap().text(), Some(&b"SELECT $1"[..]));
        assert!(key(&client, &extended("", "s", "a", 0, true)).is_some());
        assert_eq!(key(&client, &extended("SELECT $1", "s", "a", 0, true)), None, "the name is taken");
    }

    fn reply(parts: &[(u8, &[u8])]) -> BytesMut {
        let mut out = BytesMut::new();
        parts.iter().for_each(|(kind, body)| message(&mut out, *kind, body));
        out
    }

    #[test]
    fn only_one_whole_select_lasts() {
        let (row, done, ready) = ((b'D', &b"\0\0"[..]), (b'C', &b"SELECT 1\0"[..]), (b'Z', &b"I"[..]));
        let whole = reply(&[(b'1', b""), (b'2', b""), (b'T', b"\0\0"), row, done, (b'3', b""), ready]);
        assert_eq!(lasting(&whole), Ok(()));
        for end in 0..whole.len() {
            assert_eq!(lasting(&whole[..end]), Err(Unfit::Incomplete), "cut at {end}");
        }
        for (wrong, why) in [
            (&[row, done][..], Unfit::Incomplete),
            (&[row, ready], Unfit::NotSelect),
            (&[done, done, ready], Unfit::NotSelect),
            (&[done, row, ready], Unfit::NotSelect),
            (&[done, (b'Z', b"T")], Unfit::NotSelect),
            (&[done, ready, ready], Unfit::NotSelect),
            (&[(b'C', b"INSERT 0 1\0"), ready], Unfit::NotSelect),
            (&[(b'N', b"\0"), done, ready], Unfit::Notice),
            (&[row, (b'N', b"\0"), done, ready], Unfit::Notice),
            (&[done, (b'N', b"\0"), ready], Unfit::Notice),
            (&[(b'S', b"a\0b\0"), done, ready], Unfit::Notice),
            (&[(b'A', b"\0\0\0\0\0\0"), done, ready], Unfit::Notice),
            (&[(b'E', b"\0"), ready], Unfit::Error),
            (&[row, (b'E', b"\0"), ready], Unfit::Error),
            (&[(b's', b""), ready], Unfit::NotSelect),
            (&[(b'I', b""), ready], Unfit::NotSelect),
            (&[], Unfit::Incomplete),
        ] {
            assert_eq!(lasting(&reply(wrong)), Err(why), "{wrong:?}");
        }
    }

    /// Everything that a batch of an extended query and its session may differ in.
    type Asked = (String, String, String, u8, bool, bool, String, Vec<String>);

    fn asked() -> impl Strategy<Value = Asked> {
        let text = "SELECT [12]?( FROM t)?";
        let who = proptest::collection::vec("[ab]{0,2}", 0..3);
        (text, "s?", "[ab]{0,2}", 0..2u8, any::<bool>(), any::<bool>(), "UTC|CET", who)
    }

    fn key_of((text, name, value, format, describe, close, zone, who): &Asked) -> Option<Bytes> {
        let mut batch = extended(text, name, value, *format, *describe);
        if *close {
            let sync = batch.split_off(batch.len() - build::SYNC.len());
            message(&mut batch, b'C', b"P\0");
            batch.extend_from_slice(&sync);
        }
        let who: Vec<_> = who.iter().map(String::as_bytes).collect();
        Some(client(zone).question(&batch, &who)?.key)
    }

    proptest! {
        #[test]
        fn keys_are_the_same_when_all_that_they_depend_on_is(one in asked(), other in asked()) {
            let same = |asked: &Asked| (asked.0.clone(), asked.2.clone(), asked.3, asked.4, asked.5, asked.6.clone(), asked.7.clone());
            // The name of the statement is not in the reply.
            prop_assert_eq!(key_of(&one).unwrap() == key_of(&other).unwrap(), same(&one) == same(&other));
        }

        #[test]
        fn replies_that_were_damaged_do_not_last_or_are_replies(at in 0usize..60, byte: u8) {
            let (row, done, ready) = ((b'D', &b"\0\0"[..]), (b'C', &b"SELECT 1\0"[..]), (b'Z', &b"I"[..]));
            let mut bytes = reply(&[(b'2', b""), row, done, ready]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = lasting(&bytes);
        }

        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_question(&bytes);
        }
    }
}
