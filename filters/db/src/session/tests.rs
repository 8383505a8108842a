//! Known mistakes of poolers, and what the model does not reach, step by step.

use std::sync::Arc;

use bytes::BytesMut;

use super::model::server::ModelServer;
use super::{Client, Down, Parameters, Pins, Sent, Server, Step, Texts, Tidy, Unknown, Violation};
use crate::wire::backend::{self, Report};
use crate::wire::build::{self, ErrorResponse, FLUSH, SYNC};
use crate::wire::{HEADER, STREAM, WireError, body, frontend};

const BUSY: ErrorResponse<'_> = ErrorResponse {
    fatal: false,
    sqlstate: "53300",
    message: "busy",
    detail: None,
    hint: Some("retry-after: 1 s"),
};

fn named(name: &str) -> Arc<Parameters> {
    let mut parameters = Parameters::default();
    parameters.report(b"application_name", name.as_bytes());
    Arc::new(parameters)
}

fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    write(&mut out);
    out
}

fn query(text: &str) -> BytesMut {
    written(|out| build::query(out, text.as_bytes()))
}

fn parse(name: &str, text: &str) -> BytesMut {
    written(|out| build::parse(out, name.as_bytes(), &[text.as_bytes(), b"\0\0\0"].concat()))
}

fn bind(name: &str) -> BytesMut {
    written(|out| {
        build::header(out, frontend::BIND, name.len() + 8);
        out.extend_from_slice(&[b"\0", name.as_bytes(), &[0; 7]].concat());
    })
}

const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

/// The messages, as their types; an ErrorResponse is its SQLSTATE, a row its text.
fn told(bytes: &[u8]) -> String {
    let (mut rest, mut told) = (bytes, Vec::new());
    while let Ok(Some(head)) = backend::head(rest) {
        let Some(body) = body(rest, head) else { break };
        told.push(match head.kind {
            backend::ERROR => String::from_utf8_lossy(Report::read(body).sqlstate).into_owned(),
            backend::DATA_ROW => String::from_utf8_lossy(body).into_owned(),
            kind => (kind as char).to_string(),
        });
        rest = &rest[head.len..];
    }
    assert!(rest.is_empty(), "half a message");
    told.join(" ")
}

/// One server, whose client changes.
struct Rig {
    server: Server,
    model: ModelServer,
    texts: Texts,
    up: BytesMut,
}

impl Rig {
    fn new() -> Self {
        let server = Server::new(named("pool"), 2);
        Self { server, model: ModelServer::new(b"pool"), texts: Texts::new(10), up: BytesMut::new() }
    }

    /// What goes to the server.
    fn sent(&mut self, client: &mut Client, bytes: &[u8]) -> BytesMut {
        let (mut inbox, mut said) = (BytesMut::from(bytes), BytesMut::new());
        let sent = client.up(&mut self.server, &mut self.texts, &mut inbox, &mut self.up, &mut said);
        assert_eq!((sent, inbox.len(), said.len()), (Ok(Sent::More), 0, 0));
        self.up.split()
    }

    fn attach(&mut self, client: &mut Client) {
        if !self.server.attach(client, &mut self.up) {
            assert_eq!(self.answers(Some(client)), (Ok(Down::Ready), String::new()));
        }
    }

    /// The model answers everything.
    fn answers(&mut self, client: Option<&mut Client>) -> (Result<Down, Unknown>, String) {
        self.model.take(&self.up.split());
        let mut down = BytesMut::new();
        self.model.give(usize::MAX, &mut down);
        self.says(client, &down)
    }

    fn says(&mut self, client: Option<&mut Client>, bytes: &[u8]) -> (Result<Down, Unknown>, String) {
        let (mut down, mut out) = (BytesMut::from(bytes), BytesMut::new());
        let next = self.server.down(&mut down, &mut out, client.map(|client| &mut client.seen));
        (next, told(&out))
    }

    /// One transaction from beginning to end.
    fn run(&mut self, client: &mut Client, bytes: &[u8]) -> String {
        self.attach(client);
        let (mut inbox, mut got) = (BytesMut::from(bytes), String::new());
        loop {
            let mut said = BytesMut::new();
            client.up(&mut self.server, &mut self.texts, &mut inbox, &mut self.up, &mut said).unwrap();
            let (down, more) = self.answers(Some(client));
            got = [got, told(&said), more].join(" ").trim().to_owned();
            if down == Ok(Down::Free) {
                assert_eq!(self.leave(client), Tidy::Clean);
                return got;
            }
            assert_eq!(down, Ok(Down::More));
        }
    }

    fn leave(&mut self, client: &mut Client) -> Tidy {
        let mut tidy = self.server.leave(client, &mut self.up);
        while tidy == Tidy::Wait {
            match self.answers(None) {
                (Ok(Down::Tidy), _) => tidy = self.server.tidy(&mut self.up),
                other => panic!("{other:?}"),
            }
        }
        tidy
    }
}

fn feed(client: &mut Client, bytes: &[u8]) -> (Result<Step, Violation>, BytesMut, String) {
    let (mut inbox, mut out) = (BytesMut::from(bytes), BytesMut::new());
    let step = client.feed(&mut inbox, &mut out);
    (step, inbox, told(&out))
}

/// pgdog #759: rows of another client when pools back up.
#[test]
fn replies_of_a_client_that_has_gone_reach_nobody() {
    let (mut rig, mut one, mut two) = (Rig::new(), Client::new(named("a")), Client::new(named("b")));
    rig.attach(&mut one);
    rig.up = rig.sent(&mut one, &[query("SELECT 'one'"), query("BEGIN"), query("SELECT 'more'")].concat());
    assert_eq!(rig.server.outstanding(), 3);
    assert_eq!(rig.leave(&mut one), Tidy::Clean);
    assert!(rig.model.is_clean(), "rolled back");
    assert_eq!(rig.run(&mut two, &query("SELECT 'two'")), "T SELECT 'two'|b|4MB| C Z");
}

/// pgcat PR 137: ReadyForQuery before Sync on shedding.
#[test]
fn a_refusal_waits_for_the_sync() {
    let mut client = Client::new(named("a"));
    let begun = [&parse("", "SELECT 1")[..], &bind(""), FLUSH].concat();
    let (step, mut inbox, _) = feed(&mut client, &begun);
    assert_eq!(step, Ok(Step::Batch));
    let mut out = BytesMut::new();
    client.refuse(&inbox, &mut out, &BUSY);
    assert_eq!((client.feed(&mut inbox, &mut out), told(&out)), (Ok(Step::More), "53300".to_owned()));
    // What belongs to the batch arrives later, in the smallest pieces; also a Query before the Sync belongs to it.
    for byte in [EXECUTE, &query("SELECT 1"), FLUSH, SYNC].concat() {
        assert_eq!(told(&out), "53300");
        inbox.extend_from_slice(&[byte]);
        assert_eq!(client.feed(&mut inbox, &mut out), Ok(Step::More));
    }
    assert_eq!(told(&out), "53300 Z");
}

/// Each batch of a pipeline is refused for itself.
#[test]
fn every_batch_of_a_pipeline_gets_one_error_and_one_ready() {
    let mut client = Client::new(named("a"));
    let batch = [&parse("", "SELECT 1")[..], &bind(""), EXECUTE, SYNC].concat();
    let mut inbox = BytesMut::from(&[&batch[..], &query("SELECT 1"), &batch, b"X\0\0\0\x04"].concat()[..]);
    let mut out = BytesMut::new();
    let mut refusals = 0;
    while client.feed(&mut inbox, &mut out) == Ok(Step::Batch) {
        client.refuse(&inbox, &mut out, &BUSY);
        refusals += 1;
    }
    assert_eq!((refusals, told(&out).as_str()), (3, "53300 Z 53300 Z 53300 Z"));
    assert_eq!(client.feed(&mut inbox, &mut out), Ok(Step::Terminate));
}

/// odyssey #514: two errors hang a pipeline of libpq.
#[test]
fn two_errors_in_a_pipeline_are_two_errors() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("a")));
    let batch = |text: &str| [&parse("", text)[..], &bind(""), EXECUTE, SYNC].concat();
    let pipeline = [batch("BAD"), batch("FAIL"), batch("BAD"), batch("SELECT 'x'")].concat();
    assert_eq!(rig.run(&mut client, &pipeline), "42601 Z 1 2 XX001 Z 42601 Z 1 2 SELECT 'x'|a|4MB| C Z");
}

/// pgbouncer #38: a cancel hits another client.
#[test]
fn a_server_with_a_cancel_on_its_way_goes_to_nobody() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("a")));
    rig.attach(&mut client);
    rig.up = rig.sent(&mut client, &query("SELECT 'x'"));
    assert!(rig.server.is_busy());
    rig.server.cancel_begun();
    assert_eq!(rig.answers(Some(&mut client)).0, Ok(Down::Free));
    assert_eq!(rig.server.leave(&mut client, &mut rig.up), Tidy::Cancelling);
    assert_eq!(rig.server.tidy(&mut rig.up), Tidy::Cancelling);
    assert!(!rig.server.is_busy());
    rig.server.cancel_done();
    assert_eq!((rig.server.tidy(&mut rig.up), &rig.up[..]), (Tidy::Wait, SYNC));
    assert_eq!(rig.answers(None).0, Ok(Down::Tidy));
    assert_eq!(rig.server.tidy(&mut rig.up), Tidy::Clean);
}

/// pgbouncer #396: what one client has set is there for the next.
#[test]
fn what_is_set_follows_its_client_and_nobody_else() {
    let (mut rig, mut one, mut two) = (Rig::new(), Client::new(named("a")), Client::new(named("b")));
    assert_eq!(rig.run(&mut one, &query("SET application_name = n")), "S C Z");
    assert_eq!(rig.run(&mut two, &query("SELECT 'x'")), "T SELECT 'x'|b|4MB| C Z");
    assert_eq!(rig.run(&mut one, &query("SELECT 'x'")), "T SELECT 'x'|n|4MB| C Z");
    // What the server does not report keeps it, and is reset afterwards.
    rig.attach(&mut one);
    rig.up = rig.sent(&mut one, &query("SET work_mem = 1kB"));
    assert_eq!(rig.answers(Some(&mut one)), (Ok(Down::More), "C Z".to_owned()));
    assert!(rig.server.is_between_transactions() && one.pins() == Pins::SET);
    assert_eq!(rig.leave(&mut one), Tidy::Clean);
    assert_eq!(rig.run(&mut two, &query("SELECT 'x'")), "T SELECT 'x'|b|4MB| C Z");
}

#[test]
fn a_known_statement_is_not_sent_again_and_a_missing_one_is_sent_before() {
    let (mut rig, mut one, mut two) = (Rig::new(), Client::new(named("pool")), Client::new(named("pool")));
    let prepare = [&parse("s", "SELECT 'x'")[..], SYNC].concat();
    let run = [&bind("s")[..], EXECUTE, SYNC].concat();
    assert_eq!(rig.run(&mut one, &prepare), "1 Z");
    rig.attach(&mut two);
    let mut said = BytesMut::new();
    let mut inbox = BytesMut::from(&[&prepare[..], &run].concat()[..]);
    two.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap();
    assert_eq!(told(&said), "1");
    assert_eq!(&rig.up[..], SYNC, "the name is certain when the first batch is answered");
    assert_eq!(rig.answers(Some(&mut two)), (Ok(Down::Free), "Z".to_owned()));
    two.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap();
    assert_eq!(rig.up[..], [&bind("_qudag_1")[..], EXECUTE, SYNC].concat()[..]);
    assert_eq!(rig.answers(Some(&mut two)), (Ok(Down::Free), "2 SELECT 'x'|pool|4MB| C Z".to_owned()));
    assert_eq!(rig.leave(&mut two), Tidy::Clean);
    // Two others take its place at the server.
    let others = [&parse("t", "SELECT 't'")[..], &parse("u", "SELECT 'u'"), SYNC].concat();
    assert_eq!(rig.run(&mut two, &others), "1 1 Z");
    assert_eq!(rig.run(&mut one, &run), "2 SELECT 'x'|pool|4MB| C Z");
    assert_eq!((rig.server.statements(), rig.model.statements()), (2, 2));
}

#[test]
fn a_plan_that_cannot_be_used_any_more_is_prepared_anew() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.run(&mut client, &[&parse("s", "SELECT 'x'")[..], SYNC].concat());
    let run = [&bind("s")[..], EXECUTE, SYNC].concat();
    rig.attach(&mut client);
    rig.sent(&mut client, &run);
    let changed = ErrorResponse { sqlstate: "0A000", ..BUSY };
    let reply = [&written(|out| changed.write(out))[..], b"Z\0\0\0\x05I"].concat();
    assert_eq!(rig.says(Some(&mut client), &reply), (Ok(Down::Free), "0A000 Z".to_owned()));
    assert_eq!(rig.leave(&mut client), Tidy::Clean);
    assert_eq!(rig.run(&mut client, &run), "2 SELECT 'x'|pool|4MB| C Z");
    assert_eq!(rig.model.statements(), 1);
}

/// asyncpg, tokio-postgres, JDBC and others decode rows by what they were told at Describe.
#[test]
fn a_statement_that_has_changed_fails_until_it_is_prepared_again() {
    let describe = |name: &str| written(|out| build::target(out, frontend::DESCRIBE, name.as_bytes()));
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    let prepare = |name: &str| [&parse(name, "SELECT 'x'")[..], &describe(name), SYNC].concat();
    let run = |name: &str| [&bind(name)[..], EXECUTE, SYNC].concat();
    let rows = "2 SELECT 'x'|pool|4MB| C Z";
    assert_eq!(rig.run(&mut client, &prepare("s")), "1 t T Z");
    assert_eq!(rig.run(&mut client, &run("s")), rows);
    // Another server prepares it anew and is asked what it gives: the same.
    (rig.server, rig.model) = (Server::new(named("pool"), 2), ModelServer::new(b"pool"));
    rig.attach(&mut client);
    let (mut inbox, mut said) = (BytesMut::from(&run("s")[..]), BytesMut::new());
    let sent = client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said);
    assert_eq!(
        (sent, inbox.len()),
        (Ok(Sent::Held), run("s").len()),
        "the Bind waits for what the server says"
    );
    assert_eq!(rig.answers(Some(&mut client)), (Ok(Down::More), String::new()));
    client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap();
    assert_eq!(rig.answers(Some(&mut client)), (Ok(Down::Free), rows.to_owned()));
    assert_eq!(rig.leave(&mut client), Tidy::Clean);
    // The table changes. A server that has it says so itself; one that has it not would give other columns than the client knows.
    rig.model.column = b'b';
    assert_eq!(rig.run(&mut client, &run("s")), "0A000 Z");
    for _ in 0..2 {
        assert_eq!(rig.run(&mut client, &run("s")), "0A000 Z");
    }
    let in_transaction = [&query("BEGIN")[..], &run("s"), &query("ROLLBACK")].concat();
    assert_eq!(rig.run(&mut client, &in_transaction), "C Z 0A000 Z C Z");
    // A long Bind is left out whole, however it arrives.
    let mut long = written(|out| {
        build::header(out, frontend::BIND, 7 + 4 + STREAM + 2);
        out.extend_from_slice(b"\0s\0\0\0\0\x01");
        out.extend_from_slice(&u32::try_from(STREAM).unwrap().to_be_bytes());
        out.extend_from_slice(&vec![b'x'; STREAM]);
        out.extend_from_slice(&[0; 2]);
    });
    long.extend_from_slice(&[EXECUTE, SYNC].concat());
    rig.attach(&mut client);
    let (mut inbox, mut said, mut got) = (BytesMut::new(), BytesMut::new(), String::new());
    for piece in long.chunks(STREAM / 3) {
        inbox.extend_from_slice(piece);
        client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap();
        assert!(rig.up.len() < 200, "{}", rig.up.len());
        got = [got, rig.answers(Some(&mut client)).1].join(" ").trim().to_owned();
    }
    assert_eq!((got.as_str(), inbox.len(), said.len()), ("0A000 Z", 0, 0));
    assert_eq!(rig.leave(&mut client), Tidy::Clean);
    // Prepared again, it is what the client is told now, for others as well.
    assert_eq!(rig.run(&mut client, &prepare("t")), "1 t T Z");
    assert_eq!(rig.run(&mut client, &run("t")), rows);
    assert_eq!(rig.run(&mut client, &run("s")), "0A000 Z");
    let mut other = Client::new(named("pool"));
    assert_eq!(rig.run(&mut other, &prepare("s")), "1 t T Z");
    assert_eq!(rig.run(&mut other, &run("s")), rows);
}

/// Whoever was told nothing relies on nothing.
#[test]
fn a_statement_that_nobody_has_described_is_sent_without_asking() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.run(&mut client, &[&parse("s", "SELECT 'x'")[..], SYNC].concat());
    (rig.server, rig.model) = (Server::new(named("pool"), 2), ModelServer::new(b"pool"));
    rig.attach(&mut client);
    let run = [&bind("s")[..], EXECUTE, SYNC].concat();
    let sent = rig.sent(&mut client, &run);
    assert_eq!(
        sent[..],
        [&parse("_qudag_1", "SELECT 'x'")[..], &bind("_qudag_1"), EXECUTE, SYNC].concat()[..]
    );
}

#[test]
fn a_setup_that_fails_is_the_clients_error_and_the_servers_end() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("x")));
    let (step, mut inbox, _) = feed(&mut client, &query("SELECT 1"));
    assert_eq!(step, Ok(Step::Batch));
    assert!(!rig.server.attach(&mut client, &mut rig.up));
    let error = written(|out| ErrorResponse { sqlstate: "22023", ..BUSY }.write(out));
    let reply = [&error[..], b"Z\0\0\0\x05I"].concat();
    assert_eq!(rig.says(Some(&mut client), &reply), (Ok(Down::SetupFailed), String::new()));
    let mut out = BytesMut::new();
    client.refuse_with(&inbox, &mut out, rig.server.failure());
    assert_eq!(rig.leave(&mut client), Tidy::Close(Unknown::Ours));
    assert_eq!(client.feed(&mut inbox, &mut out), Ok(Step::More));
    assert_eq!(told(&out), "22023 Z");
}

#[test]
fn long_messages_pass_in_pieces() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    let text = format!("SELECT '{}'; LISTEN a", "x".repeat(3 * STREAM));
    let long = query(&text);
    let (step, inbox, _) = feed(&mut client, &long[..HEADER]);
    assert_eq!((step, inbox.len()), (Ok(Step::Batch), HEADER), "a server is needed now");
    rig.attach(&mut client);
    let mut sent = BytesMut::new();
    for piece in long.chunks(10_000) {
        sent.extend_from_slice(&rig.sent(&mut client, piece));
    }
    assert!(sent == long && client.pins() == Pins::LISTEN);
    let row = written(|out| {
        build::header(out, backend::DATA_ROW, 2 * STREAM);
        out.resize(HEADER + 2 * STREAM, b'r');
    });
    let mut out = BytesMut::new();
    for (place, piece) in row.chunks(9_999).enumerate() {
        let mut inbox = BytesMut::from(piece);
        rig.server.down(&mut inbox, &mut out, Some(&mut client.seen)).unwrap();
        assert!(inbox.is_empty() && rig.server.is_amid_reply() == (place < row.len() / 9_999));
    }
    assert!(out == row);
    // A client that goes in the middle of one takes the server with it.
    assert_eq!(rig.says(Some(&mut client), b"C\0\0\0\x06x\0Z\0\0\0\x05I").0, Ok(Down::More), "pinned");
    rig.sent(&mut client, &long[..70_000]);
    assert_eq!(rig.leave(&mut client), Tidy::Close(Unknown::Cut));
}

#[test]
fn a_long_statement_stays_with_its_client() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.attach(&mut client);
    let text = format!("SELECT '{}'", "x".repeat(STREAM));
    let long = parse("s", &text);
    let mut sent = BytesMut::new();
    for piece in long.chunks(20_000) {
        let mut inbox = BytesMut::from(piece);
        client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut sent, &mut BytesMut::new()).unwrap();
        assert!(inbox.is_empty());
    }
    assert!(sent == parse("_qudag_1", &text));
    rig.up = sent;
    let rest = [&bind("s")[..], SYNC].concat();
    client
        .up(
            &mut rig.server,
            &mut rig.texts,
            &mut BytesMut::from(&rest[..]),
            &mut rig.up,
            &mut BytesMut::new(),
        )
        .unwrap();
    assert_eq!(rig.answers(Some(&mut client)), (Ok(Down::More), "1 2 Z".to_owned()));
    assert_eq!(client.pins(), Pins::LONG_STATEMENT);
}

#[test]
fn untouched_bytes_are_not_copied() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.attach(&mut client);
    let (mut inbox, mut up, mut out) =
        (query("SELECT 1"), BytesMut::with_capacity(64), BytesMut::with_capacity(64));
    let place = inbox.as_ptr();
    client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut up, &mut out).unwrap();
    assert_eq!((up.as_ptr(), inbox.len(), inbox.capacity()), (place, 0, 64), "the buffers changed places");
    let mut down = BytesMut::from(&b"C\0\0\0\x0dSELECT 0\0Z\0\0\0\x05I"[..]);
    let place = down.as_ptr();
    rig.server.down(&mut down, &mut out, Some(&mut client.seen)).unwrap();
    assert_eq!(out.as_ptr(), place);
}

#[test]
fn what_needs_no_server_is_answered_without_one() {
    let mut client = Client::new(named("a"));
    let close = written(|out| build::target(out, frontend::CLOSE, b"s"));
    let (step, inbox, said) =
        feed(&mut client, &[&close[..], &close, SYNC, SYNC, FLUSH, b"c\0\0\0\x04"].concat());
    assert_eq!((step, inbox.len(), said.as_str()), (Ok(Step::More), 0, "3 3 Z Z"));
    let (step, ..) = feed(&mut client, &[&close[..], &parse("", ""), SYNC].concat());
    assert_eq!(step, Ok(Step::Batch));
}

#[test]
fn nonsense_ends_a_client_with_fatal_and_a_server_without_a_word() {
    let mut client = Client::new(named("a"));
    let (step, ..) = feed(&mut client, b"p\0\0\0\x05x");
    assert_eq!(step, Err(Violation::Wire(WireError::Kind(b'p'))));
    let fatal = written(|out| step.unwrap_err().write(out));
    assert_eq!(told(&fatal), "08P01");
    for reply in [&b"1\0\0\0\x04"[..], b"Z\0\0\0\x05I", b"D\0\0\0\x04", b"?", b"Z\0\0\0\x03"] {
        let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
        rig.attach(&mut client);
        rig.sent(&mut client, &[&bind("")[..], SYNC].concat());
        let (down, said) = rig.says(Some(&mut client), reply);
        assert!(down.is_err() && said.is_empty(), "{down:?}");
        assert!(matches!(rig.leave(&mut client), Tidy::Close(_)));
    }
    // FATAL at any time: the client is told, and the server closed.
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.attach(&mut client);
    rig.sent(&mut client, &query("SELECT 1"));
    let fatal = written(|out| ErrorResponse { fatal: true, sqlstate: "57P01", ..BUSY }.write(out));
    assert_eq!(rig.says(Some(&mut client), &fatal).1, "57P01");
    assert_eq!(rig.leave(&mut client), Tidy::Close(Unknown::Fatal));
}

#[test]
fn a_pipeline_waits_for_its_replies_and_copy_does_not() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.attach(&mut client);
    let mut inbox = BytesMut::new();
    for _ in 0..63 {
        inbox.extend_from_slice(&query("SELECT 'x'"));
    }
    inbox.extend_from_slice(&query("COPY t FROM STDIN"));
    inbox.extend_from_slice(b"d\0\0\0\x06x\nc\0\0\0\x04");
    inbox.extend_from_slice(&query("SELECT 'y'"));
    let mut said = BytesMut::new();
    let mut up = |rig: &mut Rig, client: &mut Client| {
        client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap()
    };
    assert_eq!((up(&mut rig, &mut client), rig.server.outstanding()), (Sent::Held, 64));
    assert_eq!(rig.answers(Some(&mut client)).0, Ok(Down::More));
    assert_eq!(
        (up(&mut rig, &mut client), rig.server.outstanding()),
        (Sent::Held, 1),
        "the data, not the next query"
    );
    let (down, told) = rig.answers(Some(&mut client));
    assert_eq!((down, told.as_str()), (Ok(Down::Free), "C Z"));
}

#[test]
fn a_batch_without_end_is_bounded_and_asks_for_its_replies() {
    let (mut rig, mut client) = (Rig::new(), Client::new(named("pool")));
    rig.run(&mut client, &[&parse("s", "SELECT 'x'")[..], SYNC].concat());
    rig.attach(&mut client);
    let mut inbox = bind("s");
    for name in 0..5000 {
        inbox.extend_from_slice(&parse(&format!("s{name}"), "SELECT 'x'"));
    }
    inbox.extend_from_slice(SYNC);
    let mut said = BytesMut::new();
    let mut rounds = 0;
    loop {
        let sent = client.up(&mut rig.server, &mut rig.texts, &mut inbox, &mut rig.up, &mut said).unwrap();
        assert_eq!(rig.up.ends_with(FLUSH), sent == Sent::Held);
        rounds += 1;
        let (down, told) = rig.answers(Some(&mut client));
        if down == Ok(Down::Free) {
            assert!(told.ends_with("Z") && inbox.is_empty() && rounds == 2);
            return;
        }
    }
}
