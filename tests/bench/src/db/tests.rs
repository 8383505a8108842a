//! The generator against servers that behave as they are told, and against the real one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::closed::Crew;
use super::cluster::Cluster;
use super::load::{self, Load, Outcome, Patience, Program};
use super::schedule::{Arrivals, Step};
use super::stand::{POOL, Way, Who};
use super::tally::Tally;
use super::wire::Operation;
use crate::contenders::Stage;
use crate::measure::pause;

const MS: Duration = Duration::from_millis(1);

/// What a fake server does with each query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mood {
    Answers,
    Refuses,
    Fails,
    Silent,
    Closes,
    /// After 150 ms.
    AnswersLate,
    /// The row of another one.
    Mistakes,
}

const MOODS: [Mood; 7] = [
    Mood::Answers,
    Mood::Refuses,
    Mood::Fails,
    Mood::Silent,
    Mood::Closes,
    Mood::AnswersLate,
    Mood::Mistakes,
];

/// A server that speaks as much PostgreSQL as the generator hears.
struct Fake {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
}

impl Fake {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, mood) = (listener.local_addr().unwrap(), Arc::new(AtomicU8::new(mood as u8)));
        let shared = Arc::clone(&mood);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mood = Arc::clone(&shared);
                std::thread::spawn(move || session(stream, &mood));
            }
        });
        Self { address, mood }
    }

    fn be(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }
}

const READY: &[u8] = b"Z\0\0\0\x05I";

fn session(mut stream: TcpStream, mood: &AtomicU8) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    // StartupMessage, then what is sent once.
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4]).ok()?;
    stream.write_all(&[b"R\0\0\0\x08\0\0\0\0", READY].concat()).ok()?;
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header).ok()?;
        let mut text = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut text).ok()?;
        if text == b"first\0" {
            stream.write_all(READY).ok()?;
            continue;
        }
        let row = |digit: u8| [b"D\0\0\0\x0b\0\x01\0\0\0\x01", &[digit][..], READY].concat();
        let error = |text: &str| {
            let length = (text.len() as u32 + 4).to_be_bytes();
            [b"E", &length[..], text.as_bytes(), READY].concat()
        };
        match MOODS[usize::from(mood.load(Ordering::SeqCst))] {
            Mood::Answers => stream.write_all(&row(b'7')),
            Mood::Mistakes => stream.write_all(&row(b'8')),
            Mood::AnswersLate => {
                pause(150 * MS);
                stream.write_all(&row(b'7'))
            }
            Mood::Refuses => stream.write_all(&error("SERROR\0C53300\0Hretry after 5 ms\0\0")),
            Mood::Fails => stream.write_all(&error("SERROR\0C53300\0Mtoo many clients\0\0")),
            Mood::Silent => Ok(()),
            Mood::Closes => return None,
        }
        .ok()?;
    }
}

fn one_load(to: SocketAddr, patience: Patience) -> Load {
    Load {
        to,
        operation: Operation::fixed("first", "SELECT 7", 7),
        connections: 16,
        patience,
        program: Program::NoQueue,
        deadline: 100 * MS,
        arrivals: Arrivals::Even,
        steps: vec![Step { rate: 100.0, settle: Duration::ZERO, measure: 300 * MS }],
        end: Arc::default(),
        seed: 1,
    }
}

fn seen(load: &Load) -> (Outcome, Tally) {
    let mut outcome = load::run(load.clone(), |_| {}).unwrap();
    let tally = outcome.steps.pop().unwrap();
    let ends = tally.good + tally.late + tally.refused + tally.failed + tally.given_up + tally.unanswered;
    assert_eq!(ends + tally.disconnected + tally.unsent, tally.due, "{}", tally.summary());
    (outcome, tally)
}

#[test]
fn every_operation_has_one_end() {
    for patience in [Patience::Patient, Patience::Abandoning] {
        let fake = Fake::start(Mood::Answers);
        let load = Load { deadline: 3_000 * MS, ..one_load(fake.address, patience) };
        let (outcome, tally) = seen(&load);
        assert_eq!((tally.good, tally.due), (29, 29), "{}", tally.summary());
        assert_eq!((outcome.disconnects, outcome.not_opened), (0, 0));
        fake.be(Mood::Refuses);
        let (outcome, tally) = seen(&load);
        assert_eq!((tally.refused, tally.failed, outcome.disconnects), (29, 0, 0), "the connection is kept");
        assert_eq!((tally.refusals.len(), tally.admitted.len()), (29, 0));
        fake.be(Mood::Fails);
        let (_, tally) = seen(&load);
        assert_eq!((tally.refused, tally.failed, tally.codes[b"53300"]), (0, 29, 29));
        fake.be(Mood::Closes);
        let (outcome, tally) = seen(&load);
        assert_eq!((tally.disconnected, outcome.disconnects), (29, 29));
        fake.be(Mood::Mistakes);
        let why = load::run(load, |_| {}).err().unwrap().to_string();
        assert!(why.contains("Some(8) instead of Some(7)"), "{why}");
    }
}

#[test]
fn patient_clients_keep_their_connections_and_others_do_not() {
    let fake = Fake::start(Mood::AnswersLate);
    let load = |patience| Load { connections: 40, ..one_load(fake.address, patience) };
    let (outcome, tally) = seen(&load(Patience::Patient));
    assert_eq!((tally.late + tally.unanswered, tally.good), (29, 0), "{}", tally.summary());
    assert_eq!((outcome.disconnects, outcome.not_opened), (0, 0));
    assert!(tally.admitted.min() >= 99_000_000);

    let (outcome, tally) = seen(&load(Patience::Abandoning));
    assert_eq!((tally.given_up, tally.good), (29, 0), "{}", tally.summary());
    assert_eq!((outcome.disconnects, outcome.not_opened), (0, 0), "nobody else ended one");

    fake.be(Mood::Silent);
    let (_, tally) = seen(&one_load(fake.address, Patience::Patient));
    // Each connection waits for ever, and there is none for the rest.
    assert_eq!((tally.unanswered, tally.unsent), (16, 13), "{}", tally.summary());
    assert_eq!(tally.admitted.len(), 16);
}

#[test]
fn a_queue_in_the_program_waits_up_to_the_deadline() {
    let fake = Fake::start(Mood::AnswersLate);
    let mut load = one_load(fake.address, Patience::Patient);
    (load.connections, load.deadline) = (1, 400 * MS);
    // One at 10, 20, … 290 ms, and one connection that needs 150 ms for each.
    let (_, tally) = seen(&load);
    assert!((1..=2).contains(&tally.good) && tally.unsent == 29 - tally.good, "{}", tally.summary());
    load.program = Program::Queue;
    let (_, tally) = seen(&load);
    // First come, first served: the first ends at 160 ms, the second at 310 ms, the third, due at 30 ms, is late at 460 ms.
    assert!((1..=2).contains(&tally.good), "{}", tally.summary());
    assert!(tally.late >= 1 && tally.unsent >= 20, "{}", tally.summary());
    let second = Duration::from_nanos(tally.admitted.max());
    assert!(second >= 400 * MS, "the time in the program counts");
}

#[test]
fn a_load_ends_when_it_is_told_to() {
    let fake = Fake::start(Mood::Answers);
    let mut load = Load { deadline: 3_000 * MS, ..one_load(fake.address, Patience::Patient) };
    load.steps[0].measure = Duration::from_secs(60);
    let end = Arc::clone(&load.end);
    let stop = std::thread::spawn(move || {
        pause(300 * MS);
        end.store(true, Ordering::SeqCst);
    });
    let start = Instant::now();
    let (_, tally) = seen(&load);
    stop.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    // One every 10 ms, in slices of 20 ms.
    assert_eq!(tally.bins.iter().map(|bin| bin.due).sum::<u64>(), tally.due);
    assert!(tally.bins.len() as u64 <= tally.due && tally.bins.last().is_some_and(|bin| bin.due > 0));
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        pause(5 * MS);
    }
}

/// A server of PostgreSQL, where there is one.
fn cluster() -> Option<Cluster> {
    if let Err(why) = qudag_kit::Postgres::available() {
        qudag_kit::skip::note(&why);
        return None;
    }
    Some(Cluster::start(&Stage::bare().unwrap(), 60, None).unwrap())
}

#[test]
fn the_real_server_is_understood() {
    let Some(mut cluster) = cluster() else { return };
    for operation in [Operation::simple(), Operation::prepared()] {
        // Each answer is compared with what the row must be.
        let mut crew = Crew::gather(cluster.address(), &operation, 4).unwrap();
        until("there are four sessions", || cluster.sessions().len() == 4);
        for _ in 0..2 {
            let done = crew.work(100 * MS).unwrap();
            assert!(done.count >= 4 && done.elapsed >= 100 * MS && done.took.len() == done.count);
        }
    }
    let wrong = Operation::fixed("", "SELECT 2", 3);
    let why = Crew::gather(cluster.address(), &wrong, 1).unwrap().work(MS).err().unwrap().to_string();
    assert!(why.contains("Some(2) instead of Some(3)"), "{why}");

    let mut load = one_load(cluster.address(), Patience::Patient);
    load.deadline = 3_000 * MS;
    load.operation = Operation::fixed("", "SELECT 1 FROM nowhere", 1);
    let (_, tally) = seen(&load);
    assert_eq!((tally.failed, tally.codes[b"42P01"]), (29, 29), "{}", tally.summary());

    // The sessions of a server that stops end with a word.
    load.operation = Operation::fixed("", "SELECT 7", 7);
    load.steps[0].measure = 1_000 * MS;
    let (tell, begun) = std::sync::mpsc::channel();
    let outcome = std::thread::scope(|scope| {
        let load = load.clone();
        let loading = scope.spawn(move || load::run(load, move |start| tell.send(start).unwrap()));
        begun.recv().unwrap();
        cluster.restart(100 * MS).unwrap();
        loading.join().unwrap().unwrap()
    });
    assert!(outcome.disconnects >= 16 && outcome.codes[b"57P01"] >= 1, "{}", outcome.ends());
    assert_eq!(cluster.sql("SELECT 5").unwrap(), "5");
}

#[test]
fn a_server_that_stalls_is_seen_to_stall() {
    const STALL: Duration = Duration::from_millis(600);
    let Some(cluster) = cluster() else { return };
    let operation = Operation::simple();
    let stalled = |begun: Instant| {
        pause((begun + 200 * MS).saturating_duration_since(Instant::now()));
        cluster.freeze(true);
        pause(STALL);
        cluster.freeze(false);
    };
    let (tell, begun) = std::sync::mpsc::channel();
    let mut load = one_load(cluster.address(), Patience::Patient);
    (load.operation, load.connections, load.deadline) = (operation.clone(), 40, 3_000 * MS);
    load.program = Program::Queue;
    load.steps = vec![Step { rate: 200.0, settle: Duration::ZERO, measure: 1_500 * MS }];
    let open = std::thread::scope(|scope| {
        let loading = scope.spawn(move || seen_told(load, tell));
        stalled(begun.recv().unwrap());
        loading.join().unwrap()
    });
    // 120 of 300 were due while nothing was answered, also those for which there was no connection: a third waited for longer than 100 ms.
    assert_eq!((open.due, open.good), (299, 299), "{}", open.summary());
    let at = |quantile| Duration::from_nanos(open.admitted.value_at_quantile(quantile));
    assert!(at(0.7) >= 80 * MS && at(0.99) >= 500 * MS, "{:?} {:?}", at(0.7), at(0.99));

    // Clients that wait for the last answer see only one slow one each, which is what must not be taken for the truth.
    let mut crew = Crew::gather(cluster.address(), &operation, 4).unwrap();
    let closed = std::thread::scope(|scope| {
        scope.spawn(|| stalled(Instant::now()));
        crew.work(1_500 * MS).unwrap()
    });
    let slow = closed.took.len() - closed.took.count_between(0, 100_000_000);
    assert!((1..=40).contains(&slow) && closed.took.max() >= 500_000_000, "{slow} of {}", closed.count);
}

fn seen_told(load: Load, tell: std::sync::mpsc::Sender<Instant>) -> Tally {
    load::run(load, move |start| tell.send(start).unwrap()).unwrap().steps.pop().unwrap()
}

#[test]
fn pgbouncer_starts_pools_and_takes_another_size() {
    qudag_kit::needs_program!("pgbouncer");
    let Some(cluster) = cluster() else { return };
    let way = Way::start(Who::Pgbouncer, &Stage::bare().unwrap(), cluster.address()).unwrap();
    let mut crew = Crew::gather(way.at, &Operation::simple(), 50).unwrap();
    for size in [POOL, POOL + 5] {
        way.resize(size).unwrap();
        until("the pool has its size", || {
            crew.work(100 * MS).unwrap();
            cluster.sessions().len() == size
        });
    }
    assert!(way.switch("db_pool", false).is_err());
}
