//! Who does what, step by step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_filter_api::FilterError;

use super::line::{Limits, Line, Load, Next, Round};
use super::ticket::{Ticket, Waiting};
use crate::testing::{call, mixed};
use crate::work::Cost;

const LIMITS: Limits =
    Limits { operations: 1_000, bytes: 1 << 24, gather: Duration::from_micros(50), threads: 2, keys: 1 };

/// A request for so many signatures.
fn ticket(number: usize) -> Arc<Ticket> {
    Ticket::new(&call(mixed(number).0), 0)
}

/// How many operations of which request are done in a round.
fn shape(round: &Round) -> Vec<(*const Ticket, usize)> {
    round.iter().map(|piece| (Arc::as_ptr(&piece.ticket), piece.places.len())).collect()
}

struct Test {
    line: Line,
    now: Instant,
}

impl Test {
    fn new() -> Self {
        Self { line: Line::new(), now: Instant::now() }
    }

    fn bring(&mut self, ticket: &Arc<Ticket>) -> Next {
        self.line.bring(Arc::clone(ticket), &LIMITS, self.now).unwrap()
    }

    /// Has two requests come at once, so that the next one lets others come first.
    fn with_company() -> Self {
        let mut test = Self::new();
        let (one, two) = (ticket(1), ticket(1));
        assert_eq!(test.bring(&one), Next::Lead);
        assert_eq!(test.bring(&two), Next::Wait(0), "the one that leads does it");
        let mut served = 0;
        while let Ok(round) = test.line.lead_on(Cost::ZERO, served) {
            served += round.len();
        }
        assert_eq!(served, 2);
        test
    }
}

#[test]
fn a_lone_request_is_done_at_once_by_who_brings_it() {
    let mut test = Test::new();
    for _ in 0..20 {
        let one = ticket(1);
        assert_eq!(test.bring(&one), Next::Lead);
        let round = test.line.lead_on(Cost::ZERO, 0).ok().unwrap();
        assert_eq!(shape(&round), [(Arc::as_ptr(&one), 1)]);
        assert_eq!(test.line.lead_on(one.cost, 1).err(), Some(0));
    }
    assert_eq!(test.line.waiting(), Load::default());
}

#[test]
fn now_and_then_a_lone_request_looks_round() {
    let mut test = Test::new();
    let mut gathered = 0;
    for _ in 0..320 {
        let next = test.bring(&ticket(1));
        if let Next::Gather(turn) = next {
            gathered += 1;
            assert!(test.line.begin(turn));
        }
        while test.line.lead_on(Cost::ZERO, 1).is_ok() {}
    }
    assert_eq!(gathered, 10);
}

#[test]
fn what_comes_together_is_done_together() {
    let mut test = Test::with_company();
    let tickets = [ticket(1), ticket(2), ticket(3)];
    let Next::Gather(turn) = test.bring(&tickets[0]) else { panic!() };
    assert_eq!(test.bring(&tickets[1]), Next::Wait(0));
    assert_eq!(test.bring(&tickets[2]), Next::Wait(0));
    assert!(test.line.take().is_none(), "threads leave it to the one that gathers");
    assert!(test.line.begin(turn));
    let round = test.line.lead_on(Cost::ZERO, 0).ok().unwrap();
    let all: Vec<_> = tickets.iter().map(|ticket| (Arc::as_ptr(ticket), ticket.operations.len())).collect();
    assert_eq!(shape(&round), all);
}

#[test]
fn full_lanes_and_a_long_wait_end_the_gathering() {
    let mut test = Test::with_company();
    let Next::Gather(turn) = test.bring(&ticket(1)) else { panic!() };
    assert_eq!(test.bring(&ticket(7)), Next::Lead, "eight are together");
    assert!(!test.line.begin(turn), "somebody else leads");
    assert_eq!(test.line.give_up(turn), 1, "which is no matter to the others");
    let mut test = Test::with_company();
    let Next::Gather(_) = test.bring(&ticket(1)) else { panic!() };
    test.now += LIMITS.gather;
    assert_eq!(test.bring(&ticket(1)), Next::Lead);
}

#[test]
fn a_thread_does_what_a_task_that_has_gone_leaves() {
    let mut test = Test::with_company();
    let one = ticket(1);
    let Next::Gather(turn) = test.bring(&one) else { panic!() };
    assert_eq!(test.line.give_up(turn), 1);
    assert_eq!(shape(&test.line.take().unwrap()), [(Arc::as_ptr(&one), 1)]);
    let two = ticket(1);
    test.bring(&two);
    assert_eq!(test.line.stop_leading(), 1, "its work has panicked");
    assert_eq!(shape(&test.line.take().unwrap()), [(Arc::as_ptr(&two), 1)]);
}

#[test]
fn a_task_that_leads_goes_back_to_its_own_business_soon() {
    let mut test = Test::new();
    assert_eq!(test.bring(&ticket(1)), Next::Lead);
    assert!(test.line.lead_on(Cost::ZERO, 0).is_ok());
    let mut woken = 0;
    for _ in 0..30 {
        if let Next::Wait(threads) = test.bring(&ticket(1)) {
            woken += threads;
        }
    }
    assert!(woken > 0, "so much is not left to it");
    assert_eq!(test.line.lead_on(Cost::micros(51), 1).err(), Some(1));
    assert!(test.line.take().is_some());
}

#[test]
fn large_requests_are_cut_and_take_turns_and_small_ones_pass_them() {
    let mut test = Test::new();
    let (one, two, small) = (ticket(200), ticket(100), ticket(2));
    let Next::Wait(threads) = test.bring(&one) else { panic!() };
    assert!(threads > 1);
    assert!(matches!(test.bring(&two), Next::Wait(_)));
    let first = test.line.take().unwrap();
    assert_eq!(test.bring(&small), Next::Lead);
    let second = test.line.take().unwrap();
    let mut pieces = vec![first, second];
    pieces.extend(std::iter::from_fn(|| test.line.take()));
    let order: Vec<_> = pieces.iter().flat_map(shape).map(|(ticket, _)| ticket).collect();
    let (one, two, small) = (Arc::as_ptr(&one), Arc::as_ptr(&two), Arc::as_ptr(&small));
    assert_eq!(order[..4], [one, small, two, one]);
    let done =
        |ticket| pieces.iter().flat_map(shape).filter(|(of, _)| *of == ticket).map(|(_, n)| n).sum::<usize>();
    assert_eq!((done(one), done(two), done(small)), (200, 100, 2));
    assert_eq!(test.line.waiting(), Load::default());
}

#[test]
fn a_full_line_refuses_but_takes_one_request_of_any_size() {
    let mut test = Test::new();
    test.bring(&ticket(2_000));
    let refused = test.line.bring(ticket(1), &LIMITS, test.now);
    let Err(FilterError::Shed { why: "crypto_queue", retry_after }) = refused else { panic!() };
    assert!(
        retry_after > Duration::from_millis(1) && retry_after < Duration::from_secs(1),
        "{retry_after:?}"
    );
    let bytes = Limits { bytes: 10, ..LIMITS };
    let mut small = Test::new();
    assert!(small.line.bring(ticket(1), &bytes, small.now).is_ok());
    assert!(small.line.bring(ticket(1), &bytes, small.now).is_err());
    while test.line.take().is_some() {}
    assert_eq!(test.bring(&ticket(1)), Next::Lead);
}

#[test]
fn what_nobody_waits_for_is_passed_over() {
    let mut test = Test::new();
    let tickets = [ticket(1), ticket(1), ticket(300), ticket(1)];
    for ticket in &tickets {
        test.bring(ticket);
    }
    drop(Waiting(Arc::clone(&tickets[0])));
    drop(Waiting(Arc::clone(&tickets[2])));
    let round = test.line.lead_on(Cost::ZERO, 0).ok().unwrap();
    assert_eq!(shape(&round), [(Arc::as_ptr(&tickets[1]), 1), (Arc::as_ptr(&tickets[3]), 1)]);
    assert!(test.line.take().is_none());
    assert_eq!(test.line.waiting(), Load::default());
}

#[tokio::test]
async fn a_piece_that_comes_to_no_end_fails_its_request() {
    let mut test = Test::new();
    let one = ticket(300);
    test.bring(&one);
    drop(test.line.take());
    assert!(matches!(Waiting(one).await, Err(FilterError::Internal(_))));
}
