use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { min: Duration::from_secs(1), max: Duration::from_secs(300) };

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect()
}

fn book(now: Instant) -> Book {
    let mut book = Book::default();
    assert!(!book.keep(&["a".to_owned()].into(), now));
    book
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn answers_are_kept_as_long_as_they_hold_within_bounds() {
    let now = Instant::now();
    for (holds, kept) in [(0, 1), (1, 1), (60, 60), (300, 300), (86_400, 300)] {
        let mut book = book(now);
        assert_eq!(book.due(9, now), ["a"]);
        assert_eq!(book.due(9, now), [""; 0], "it is being asked for");
        assert!(book.answered("a", ips(&[1]), Duration::from_secs(holds), BOUNDS, now));
        assert_eq!(book.next(), Some(now + Duration::from_secs(kept)), "{holds}");
    }
    let turned = Bounds { min: Duration::from_secs(9), max: Duration::from_secs(2) };
    assert_eq!(turned.clamp(Duration::from_secs(5)), Duration::from_secs(2));
}

#[test]
fn another_order_is_no_change() {
    let now = Instant::now();
    let mut book = book(now);
    let mut answered = |last: &[u8]| book.answered("a", ips(last), Duration::ZERO, BOUNDS, now);
    assert!(answered(&[1, 2, 1]));
    assert!(!answered(&[2, 1]));
    assert!(!answered(&[1, 2, 2]));
    assert!(answered(&[2]));
    assert!(answered(&[2, 3]));
    let many: Vec<u8> = (0..200).collect();
    assert!(answered(&many));
    assert_eq!(book.ips("a").len(), ADDRESSES);
    assert!(!book.answered("b", ips(&[1]), Duration::ZERO, BOUNDS, now), "nobody wants it");
}

#[test]
fn what_is_known_outlives_failures_which_come_less_and_less_often() {
    let mut now = Instant::now();
    let mut book = book(now);
    assert!(!book.is_settled("a"));
    book.answered("a", ips(&[1]), Duration::from_secs(5), BOUNDS, now);
    let mut waits = Vec::new();
    for _ in 0..12 {
        now = book.next().unwrap();
        assert_eq!(book.due(9, now), ["a"]);
        book.unanswered("a", BOUNDS, now, 1023);
        waits.push(book.next().unwrap().duration_since(now).as_secs_f64());
        assert_eq!((book.ips("a"), book.names["a"].state()), (&*ips(&[1]), "stale"));
    }
    assert!(waits[0] >= 1.0 && waits.is_sorted(), "{waits:?}");
    assert!((LONGEST.as_secs_f64() - 0.1..=LONGEST.as_secs_f64()).contains(&waits[11]), "{waits:?}");
    book.unanswered("a", BOUNDS, now, 0);
    assert_eq!(book.next(), Some(now + LONGEST / 2), "half of it is chance");
    book.answered("a", ips(&[1]), Duration::from_secs(5), BOUNDS, now);
    assert_eq!((book.names["a"].state(), book.next()), ("known", Some(now + Duration::from_secs(5))));
    let often = Bounds { min: Duration::from_secs(1), max: Duration::from_secs(3) };
    for _ in 0..9 {
        book.unanswered("a", often, now, 0);
    }
    assert_eq!(book.next(), Some(now + Duration::from_secs(3)), "as often as answers would be");
}

#[test]
fn whoever_needs_a_name_anew_has_it_asked_for_once_a_second() {
    let now = Instant::now();
    let mut book = book(now);
    let first = book.again("a", now).unwrap();
    assert_eq!(book.due(9, now), ["a"]);
    assert_eq!(book.again("a", now), Some(first), "the same question");
    assert!(!book.is_over("a", first));
    book.answered("a", ips(&[1]), Duration::from_secs(60), BOUNDS, now);
    assert!(book.is_over("a", first));
    let soon = now + seconds(0.4);
    assert_eq!(book.again("a", soon), None, "it was asked for a moment ago");
    assert_eq!(book.next(), Some(now + APART), "and will be again");
    assert_eq!(book.due(9, now + seconds(0.9)), [""; 0]);
    let later = now + APART;
    assert!(book.again("a", later).is_some());
    assert_eq!(book.due(9, later), ["a"]);
    assert_eq!(book.again("b", later), None);
}

#[test]
fn an_address_that_failed_comes_last_for_a_while() {
    let now = Instant::now();
    let mut book = book(now);
    book.answered("a", ips(&[1, 2]), Duration::from_secs(60), BOUNDS, now);
    let places: Vec<HostPort> =
        ["a:1", "192.0.2.9:1", "a:1", "192.0.2.2:1", "b:1"].map(|it| it.parse().unwrap()).into();
    let order = |book: &Book, over| {
        let port = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        };
        book.addresses(over, &places).iter().map(port).collect::<Vec<_>>()
    };
    assert_eq!(order(&book, Over::Udp), [1, 2, 9]);
    let first = "192.0.2.1:1".parse().unwrap();
    assert!(book.blame(Over::Udp, first, now));
    assert!(!book.blame(Over::Udp, first, now));
    assert_eq!((order(&book, Over::Udp), order(&book, Over::Tcp)), (vec![2, 9, 1], vec![1, 2, 9]));
    assert!(!book.forgive(now + LAST - seconds(0.1)));
    assert!(book.forgive(now + LAST));
    assert_eq!(order(&book, Over::Udp), [1, 2, 9]);
    assert!(book.blame(Over::Udp, first, now) && book.praise(Over::Udp, first));
    assert!(!book.praise(Over::Udp, first));
    assert_eq!(order(&book, Over::Udp), [1, 2, 9]);
    for port in 0..=u16::MAX {
        book.blame(Over::Tcp, ([192, 0, 2, 1], port).into(), now);
    }
    assert_eq!(book.failed(), FAILED);
}

proptest! {
    /// Whatever is heard: known addresses are only replaced by an answer, never by silence, and a name that is followed is asked for
    /// again within the bounds.
    #[test]
    fn silence_takes_nothing_away(heard in prop::collection::vec((prop::option::of(0..4_u8), 0..1000_u64, any::<u64>()), 1..40)) {
        let mut now = Instant::now();
        let mut book = book(now);
        let mut last = Vec::new();
        for (answer, holds, random) in heard {
            now = now.max(book.next().unwrap());
            prop_assert_eq!(book.due(9, now), vec!["a".to_owned()]);
            match answer {
                Some(count) => {
                    last = (0..=count).map(|it| IpAddr::from([192, 0, 2, it])).collect();
                    book.answered("a", last.clone(), Duration::from_secs(holds), BOUNDS, now);
                }
                None => book.unanswered("a", BOUNDS, now, random),
            }
            prop_assert_eq!(book.ips("a"), &last);
            let wait = book.next().unwrap().duration_since(now);
            prop_assert!((BOUNDS.min..=BOUNDS.max).contains(&wait));
        }
    }
}
