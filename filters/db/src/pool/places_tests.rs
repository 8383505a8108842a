use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const WAIT: Duration = Duration::from_secs(1);

fn who(last: u8) -> Who {
    Some(Ipv4Addr::new(10, 0, 0, last).into())
}

fn places(size: usize) -> Places<u32> {
    Places::new(Room { size, limit: size })
}

fn ask(places: &mut Places<u32>, now: Instant) -> Asked<u32> {
    places.ask(who(1), 10, false, plain(WAIT), now)
}

fn later(asked: Asked<u32>) -> (Waiting, oneshot::Receiver<Grant<u32>>) {
    match asked {
        Asked::Later(waiting, answer) => (waiting, answer),
        other => panic!("{other:?}"),
    }
}

fn now(asked: Asked<u32>) -> (Seat, Option<u32>) {
    match asked {
        Asked::Now(seat, connection) => (seat, connection),
        other => panic!("{other:?}"),
    }
}

/// Makes a connection for whoever is hungry.
fn connect(places: &mut Places<u32>, number: u32, time: Instant) {
    assert!(places.wants_connection(3));
    assert_eq!(places.connected(number, time), None);
}

#[test]
fn a_connection_that_comes_back_goes_to_the_next_at_once() {
    let (mut places, time) = (places(1), Instant::now());
    let (seat, none) = now(ask(&mut places, time));
    assert_eq!(none, None);
    let mut hungry = places.hunger();
    connect(&mut places, 7, time);
    assert_eq!(hungry.try_recv(), Ok(7));
    let (_, mut answer) = later(ask(&mut places, time));
    assert!(answer.try_recv().is_err());
    assert_eq!(places.release(seat, Some(7), time), None);
    let Ok(Grant::Place(seat, Some(7))) = answer.try_recv() else { panic!() };
    assert_eq!((places.figures().running, places.figures().idle), (1, 0));
    assert_eq!(places.release(seat, Some(7), time), None);
    assert_eq!((places.figures().running, places.figures().idle), (0, 1));
    let (_, connection) = now(ask(&mut places, time));
    assert_eq!(connection, Some(7), "idle ones are used again");
}

#[test]
fn a_pool_that_shrinks_while_it_is_saturated_retires_what_comes_back() {
    let (mut places, time) = (places(3), Instant::now());
    let mut seats = Vec::new();
    for number in 0..3 {
        seats.push(now(ask(&mut places, time)).0);
        let mut hungry = places.hunger();
        connect(&mut places, number, time);
        assert_eq!(hungry.try_recv(), Ok(number));
    }
    let (_, mut answer) = later(ask(&mut places, time));
    assert!(places.set_room(Room { size: 1, limit: 1 }, time).is_empty(), "none is idle");
    assert_eq!(places.release(seats.remove(0), Some(0), time), Some(0));
    assert_eq!(places.release(seats.remove(0), Some(1), time), Some(1));
    assert!(answer.try_recv().is_err(), "two are retired before the next one is served");
    assert_eq!(places.release(seats.remove(0), Some(2), time), None);
    assert!(matches!(answer.try_recv(), Ok(Grant::Place(_, Some(2)))));
    assert_eq!(places.figures().connections, 1);
}

#[test]
fn a_pause_keeps_everybody_waiting_and_no_longer_than_they_may() {
    let (mut places, time) = (places(2), Instant::now());
    places.paused = true;
    let (_, mut first) = later(ask(&mut places, time));
    let (_, mut second) = later(ask(&mut places, time + WAIT / 2));
    places.expire(time + WAIT);
    assert!(matches!(first.try_recv(), Ok(Grant::Refused(Refusal::Late, _))));
    assert_eq!(places.wake(), Some(time + WAIT / 2 + WAIT));
    places.resume(time + WAIT);
    assert!(matches!(second.try_recv(), Ok(Grant::Place(_, None))));
}

#[test]
fn who_is_refused_may_come_again_when_nobody_who_waits_now_waits_any_longer() {
    let (mut places, time) = (places(1), Instant::now());
    let (_seat, _) = now(ask(&mut places, time));
    let most = plain(WAIT).bytes;
    let (_, mut first) = later(places.ask(who(1), most, false, plain(WAIT), time));
    let Asked::Refused(Refusal::Bytes, after) = ask(&mut places, time) else { panic!() };
    assert_eq!(after, WAIT);
    places.expire(time + WAIT);
    let Ok(Grant::Refused(Refusal::Late, after)) = first.try_recv() else { panic!() };
    assert_eq!(after, WAIT);
}

#[test]
fn both_queues_are_served_and_the_lower_limit_holds_for_its_own() {
    let (mut places, time) = (places(2), Instant::now());
    places.set_room(Room { size: 2, limit: 1 }, time);
    let managed = |places: &mut Places<u32>| places.ask(who(2), 10, true, plain(WAIT), time);
    let (seat, _) = now(managed(&mut places));
    let (_, mut waiting) = later(managed(&mut places));
    let (other, _) = now(ask(&mut places, time));
    let (_, mut plainly) = later(ask(&mut places, time));
    places.release_hungry(other, time);
    assert!(
        waiting.try_recv().is_err(),
        "one place is all that is left above the limit, and it is not for it"
    );
    let Ok(Grant::Place(other, _)) = plainly.try_recv() else { panic!() };
    places.release_hungry(seat, time);
    places.release_hungry(other, time);
    assert!(matches!(waiting.try_recv(), Ok(Grant::Place(..))));
}

#[test]
fn who_has_gone_costs_nobody_a_place() {
    let (mut places, time) = (places(1), Instant::now());
    let (seat, _) = now(ask(&mut places, time));
    let (_, gone) = later(ask(&mut places, time));
    let (leaving, _answer) = later(ask(&mut places, time));
    let (_, mut stays) = later(ask(&mut places, time));
    drop(gone);
    places.leave(leaving, time);
    places.release(seat, None, time);
    assert!(matches!(stays.try_recv(), Ok(Grant::Place(_, None))));
    assert_eq!(places.figures().running, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Ask { who: u8, managed: bool },
    Release { which: usize, lost: bool },
    Connect,
    Fail,
    Leave { which: usize },
    Room { size: usize, limit: usize },
    Wait { millis: u64 },
    Idle,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, any::<bool>()).prop_map(|(who, managed)| Step::Ask { who, managed }),
        4 => (0..8_usize, any::<bool>()).prop_map(|(which, lost)| Step::Release { which, lost }),
        3 => Just(Step::Connect),
        1 => Just(Step::Fail),
        1 => (0..8_usize).prop_map(|which| Step::Leave { which }),
        1 => (1..5_usize, 1..5_usize).prop_map(|(size, limit)| Step::Room { size, limit }),
        2 => (1..700_u64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Idle),
    ]
}

proptest! {
    /// No connection is lost or given to two, no place is lost, and nobody waits while there is a place for them.
    #[test]
    fn every_connection_is_somewhere(steps in proptest::collection::vec(step(), 0..120)) {
        let mut places = places(3);
        let mut time = Instant::now();
        let discipline = Discipline { most: 5, bytes: 1000, wait: WAIT, tolerable: WAIT / 10, standing: WAIT / 10, age: WAIT / 50 };
        let mut holding: Vec<(Seat, Option<u32>)> = Vec::new();
        let mut hungry: Vec<(Seat, oneshot::Receiver<u32>)> = Vec::new();
        let mut waiting = Vec::new();
        let (mut next, mut alive, mut connecting) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Ask { who: last, managed } => {
                    let discipline = if managed { discipline } else { plain(WAIT) };
                    match places.ask(who(last), 10, managed, discipline, time) {
                        Asked::Now(seat, Some(connection)) => holding.push((seat, Some(connection))),
                        Asked::Now(seat, None) => hungry.push((seat, places.hunger())),
                        Asked::Later(place, answer) => waiting.push((place, answer)),
                        Asked::Refused(..) => {}
                    }
                }
                Step::Release { which, lost } if !holding.is_empty() => {
                    let (seat, connection) = holding.remove(which % holding.len());
                    let connection = connection.filter(|_| !lost);
                    alive -= usize::from(connection.is_none());
                    if places.release(seat, connection, time).is_some() {
                        alive -= 1;
                    }
                }
                Step::Connect => {
                    if connecting > 0 {
                        connecting -= 1;
                        next += 1;
                        if places.connected(next, time).is_none() {
                            alive += 1;
                        }
                    } else if places.wants_connection(2) {
                        connecting += 1;
                    }
                }
                Step::Fail if connecting > 0 => {
                    connecting -= 1;
                    places.failed();
                }
                Step::Leave { which } if !waiting.is_empty() => {
                    let (place, mut answer) = waiting.remove(which % waiting.len());
                    places.leave(place, time);
                    if let Ok(Grant::Place(seat, connection)) = answer.try_recv() {
                        match connection {
                            Some(_) => alive -= usize::from(places.release(seat, connection, time).is_some()),
                            None => places.release_hungry(seat, time),
                        }
                    }
                }
                Step::Room { size, limit } => alive -= places.set_room(Room { size, limit }, time).len(),
                Step::Wait { millis } => {
                    time += Duration::from_millis(millis);
                    places.expire(time);
                }
                Step::Idle => alive -= places.take_idle(|connection| connection.is_multiple_of(2)).len(),
                _ => {}
            }
            waiting.retain_mut(|(_, answer)| match answer.try_recv() {
                Ok(Grant::Place(seat, Some(connection))) => {
                    holding.push((seat, Some(connection)));
                    false
                }
                Ok(Grant::Place(seat, None)) => {
                    hungry.push((seat, places.hunger()));
                    false
                }
                Ok(Grant::Refused(..)) => false,
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(closed) => panic!("{closed}"),
            });
            let mut fed = Vec::new();
            hungry.retain_mut(|(seat, coming)| match coming.try_recv() {
                Ok(connection) => {
                    fed.push((*seat, Some(connection)));
                    false
                }
                Err(_) => true,
            });
            holding.extend(fed);
            let figures = places.figures();
            prop_assert_eq!(figures.connections, alive + connecting);
            prop_assert_eq!(figures.connecting, connecting);
            prop_assert_eq!(figures.running, holding.len() + hungry.len());
            prop_assert_eq!(figures.idle + holding.len(), alive);
            prop_assert_eq!(figures.waiting, waiting.len());
            prop_assert!(figures.waiting == 0 || figures.running >= figures.limit.min(figures.size));
            let mut all: Vec<_> = holding.iter().filter_map(|(_, connection)| *connection).collect();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), holding.len(), "one connection has two");
        }
    }
}
