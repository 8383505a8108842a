//! What holds of a link whatever its settings.

use proptest::prelude::*;

use super::*;

/// A packet of UDP over IPv4 with DF and `bytes` in all, which carries its number.
fn packet(number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes.max(32)];
    packet[0] = 0x45;
    packet[6] = 0x40;
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[28..32].try_into().unwrap())
}

/// One packet that was sent, and when.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    bytes: usize,
}

/// Sends packets at these distances (µs) with these sizes and gives what came out and when; the clock stops only
/// where the link asks for it and where a packet is sent, as the real one does.
fn run(link: &mut Link, gaps: &[(u64, usize)]) -> (Vec<Sent>, Vec<(Instant, u32, usize)>) {
    let mut now = Instant::now();
    let (mut sent, mut came) = (Vec::new(), Vec::new());
    let drain = |link: &mut Link, until: Option<Instant>, came: &mut Vec<_>| {
        while let Some(next) = link.next().filter(|next| until.is_none_or(|until| *next <= until)) {
            while let Some(packet) = link.pop(next) {
                came.push((next, number(&packet), packet.len()));
            }
            assert!(link.next().is_none_or(|later| later > next), "the link asks for the same time again");
        }
    };
    for (index, (gap, bytes)) in gaps.iter().enumerate() {
        let at = now + Duration::from_micros(*gap);
        drain(link, Some(at), &mut came);
        now = at;
        let packet = packet(u32::try_from(index).unwrap(), *bytes);
        sent.push(Sent { at, bytes: packet.len() });
        link.push(packet, at);
        conserved(link);
    }
    drain(link, None, &mut came);
    (sent, came)
}

fn conserved(link: &Link) {
    let all = link.counters();
    assert_eq!(
        all.received.packets + all.duplicated,
        all.delivered.packets + all.lost + all.dropped.total() + all.waiting.packets + all.flying.packets
    );
}

fn percent(percent: u32) -> Share {
    Share::percent(f64::from(percent)).unwrap()
}

prop_compose! {
    fn settings()(
        delay in 0..50_000_u64,
        (spread, normal) in (0..20_000_u64, any::<bool>()),
        reorder in prop_oneof![
            Just(Reorder::Never),
            Just(Reorder::ByJitter),
            (0..50_u32, 1..20_000_u64).prop_map(|(share, by)| Reorder::Late { share: percent(share), by: Duration::from_micros(by) }),
        ],
        (loss, duplicate, corrupt) in (0..50_u32, 0..30_u32, Just(0_u32)),
        rate in prop::option::of(100_000..2_000_000_000_u64),
        queue in prop_oneof![
            (0..200_000_u64).prop_map(Queue::Bytes),
            (0..200_u64).prop_map(|ms| Queue::Time(Duration::from_millis(ms))),
        ],
    ) -> LinkSettings {
        LinkSettings {
            delay: Duration::from_micros(delay),
            jitter: Jitter { spread: Duration::from_micros(spread), shape: if normal { Shape::Normal } else { Shape::Uniform } },
            reorder,
            loss: Loss::Random(percent(loss)),
            duplicate: percent(duplicate),
            corrupt: percent(corrupt),
            rate: rate.and_then(Rate::bits),
            queue,
            ..LinkSettings::default()
        }
    }
}

fn traffic() -> impl Strategy<Value = Vec<(u64, usize)>> {
    prop::collection::vec((prop_oneof![Just(0), 0..2_000_u64], 32..1500_usize), 1..300)
}

proptest! {
    #[test]
    fn no_packet_is_out_before_its_time(settings in settings(), gaps in traffic(), seed: u64) {
        let mut link = Link::new(settings.clone(), seed);
        let (sent, came) = run(&mut link, &gaps);
        let soonest = settings.delay.saturating_sub(settings.jitter.most());
        for (at, number, bytes) in came {
            let sent = sent[number as usize];
            prop_assert_eq!(bytes, sent.bytes);
            let send_time = settings.rate.map_or(Duration::ZERO, |rate| rate.time(bytes));
            prop_assert!(at >= sent.at + send_time + soonest, "{} came {:?} after it was sent", number, at - sent.at);
        }
        conserved(&link);
        let counters = link.counters();
        prop_assert_eq!((counters.waiting, counters.flying), (Traffic::default(), Traffic::default()));
    }

    #[test]
    fn no_packet_is_late_without_a_rate(settings in settings(), gaps in traffic(), seed: u64) {
        let settings = LinkSettings { rate: None, ..settings };
        let mut link = Link::new(settings.clone(), seed);
        let (sent, came) = run(&mut link, &gaps);
        let more = if let Reorder::Late { by, .. } = settings.reorder { by } else { Duration::ZERO };
        let latest = settings.delay + settings.jitter.most() + more;
        for (at, number, _) in came {
            prop_assert!(at <= sent[number as usize].at + latest);
        }
    }

    #[test]
    fn order_is_kept_unless_reordering_is_asked_for(settings in settings(), gaps in traffic(), seed: u64) {
        let settings = LinkSettings { reorder: Reorder::Never, ..settings };
        let mut link = Link::new(settings, seed);
        let (_, came) = run(&mut link, &gaps);
        prop_assert!(came.is_sorted_by_key(|(_, number, _)| *number));
        prop_assert_eq!(link.counters().reordered, 0);
    }

    #[test]
    fn the_rate_is_never_exceeded(settings in settings(), gaps in traffic(), seed: u64, bits in 100_000..2_000_000_000_u64) {
        let rate = Rate::bits(bits).unwrap();
        let settings = LinkSettings { rate: Some(rate), jitter: Jitter::default(), reorder: Reorder::Never, ..settings };
        let mut link = Link::new(settings, seed);
        let (_, came) = run(&mut link, &gaps);
        // Between any two packets, all bytes after the first one had the time that they need.
        let mut needed = Duration::ZERO;
        for (index, (at, _, bytes)) in came.iter().enumerate().skip(1) {
            needed += rate.time(*bytes);
            prop_assert!(*at >= came[index - 1].0 + rate.time(*bytes));
            prop_assert!(*at >= came[0].0 + needed);
        }
    }

    #[test]
    fn the_queue_is_never_over_its_limit(settings in settings(), gaps in traffic(), bits in 100_000..20_000_000_u64, most in 0..50_000_u64) {
        let rate = Rate::bits(bits).unwrap();
        let quiet = LinkSettings { jitter: Jitter::default(), reorder: Reorder::Never, duplicate: Share::default(), ..settings };
        let settings = LinkSettings { rate: Some(rate), queue: Queue::Bytes(most), ..quiet };
        let mut link = Link::new(settings.clone(), 0);
        let (sent, came) = run(&mut link, &gaps);
        // What a packet found before itself: the whole queue and one that was being sent.
        let longest = rate.time(usize::try_from(most).unwrap()) + rate.time(1500) * 2 + settings.delay;
        for (at, number, _) in came {
            prop_assert!(at <= sent[number as usize].at + longest + Duration::from_micros(1));
        }
    }

    #[test]
    fn the_seed_decides_everything(settings in settings(), gaps in traffic(), seed: u64) {
        let ran = [(); 2].map(|()| {
            let mut link = Link::new(settings.clone(), seed);
            let (sent, came) = run(&mut link, &gaps);
            let came: Vec<_> = came.iter().map(|(at, number, _)| (*at - sent[0].at, *number)).collect();
            (came, link.counters())
        });
        prop_assert_eq!(&ran[0], &ran[1]);
    }
}

#[test]
fn the_shares_are_kept() {
    let text = "loss=3%,duplicate=2%,corrupt=5%,delay=10ms,reorder=4%/1ms";
    let mut link = Link::new(text.parse().unwrap(), 11);
    let count = 200_000_u32;
    let (_, came) = run(&mut link, &vec![(100, 100); count as usize]);
    let counters = link.counters();
    let near = |what: u64, share: f64, of: f64| {
        let off = (what as f64 / of - share).abs();
        assert!(off < 5.0 * (share * (1.0 - share) / of).sqrt(), "{what} of {of} is not {share}");
    };
    let copies = f64::from(count) + counters.duplicated as f64;
    near(counters.duplicated, 0.02, f64::from(count));
    near(counters.lost, 0.03, copies);
    near(counters.corrupted, 0.05, copies - counters.lost as f64);
    near(counters.reordered, 0.04, came.len() as f64);
}

#[test]
fn jitter_has_the_shape_that_is_asked_for() {
    for (text, deviation, most) in
        [("delay=50ms,jitter=3ms/normal", 3e-3, 9e-3), ("delay=50ms,jitter=3ms", 3e-3 / 3f64.sqrt(), 3e-3)]
    {
        let mut link = Link::new(text.parse().unwrap(), 5);
        // Far enough from each other that none waits for the one before.
        let (sent, came) = run(&mut link, &vec![(20_000, 100); 50_000]);
        let off: Vec<f64> =
            came.iter().map(|(at, n, _)| (*at - sent[*n as usize].at).as_secs_f64() - 0.05).collect();
        let mean = off.iter().sum::<f64>() / off.len() as f64;
        let variance = off.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / off.len() as f64;
        assert!(mean.abs() < 5.0 * deviation / (off.len() as f64).sqrt(), "{text}: mean {mean}");
        assert!((variance.sqrt() / deviation - 1.0).abs() < 0.03, "{text}: deviation {}", variance.sqrt());
        assert!(off.iter().all(|x| x.abs() <= most + 1e-9), "{text}");
    }
}

#[test]
fn jitter_reorders_only_when_it_may() {
    for (reorder, expected) in [("none", false), ("jitter", true)] {
        let text = format!("delay=5ms,jitter=5ms,reorder={reorder}");
        let mut link = Link::new(text.parse().unwrap(), 3);
        run(&mut link, &[(100, 100); 1000]);
        assert_eq!(link.counters().reordered > 0, expected, "{reorder}");
    }
}

#[test]
fn a_full_queue_is_as_long_as_it_says() {
    // 1 Mbit/s, 50 ms of queue, packets of 1250 bytes: 10 ms each, so one is sent and five wait.
    let mut link = Link::new("rate=1mbit,queue=50ms".parse().unwrap(), 0);
    let (sent, came) = run(&mut link, &[(0, 1250); 20]);
    assert_eq!(link.counters().dropped.queue, 14);
    let times: Vec<_> = came.iter().map(|(at, ..)| (*at - sent[0].at).as_millis()).collect();
    assert_eq!(times, [10, 20, 30, 40, 50, 60]);
}

#[test]
fn a_new_rate_holds_for_what_waits() {
    let start = Instant::now();
    let mut link = Link::new("rate=1mbit,queue=1s".parse().unwrap(), 0);
    for number in 0..11 {
        link.push(packet(number, 1250), start);
    }
    let at = |ms| start + Duration::from_millis(ms);
    link.set("rate=10mbit,queue=1s".parse().unwrap(), at(5));
    // The first is being sent at the old rate and takes its 10 ms; the others take one each.
    let mut came = Vec::new();
    while let Some(next) = link.next() {
        while link.pop(next).is_some() {
            came.push((next - start).as_millis());
        }
    }
    assert_eq!(came, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
}

#[test]
fn order_is_kept_when_the_delay_becomes_shorter() {
    let start = Instant::now();
    let mut link = Link::new("delay=100ms".parse().unwrap(), 0);
    link.push(packet(0, 100), start);
    link.set("delay=1ms".parse().unwrap(), start);
    link.push(packet(1, 100), start);
    assert_eq!(link.next(), Some(start + Duration::from_millis(100)));
    let end = start + Duration::from_millis(100);
    let came: Vec<_> = std::iter::from_fn(|| link.pop(end)).map(|packet| number(&packet)).collect();
    assert_eq!(came, [0, 1]);
}

#[test]
fn a_cut_loses_what_is_on_its_way_and_a_mended_link_begins_anew() {
    let start = Instant::now();
    let plain: LinkSettings = "delay=10ms,rate=1mbit".parse().unwrap();
    let mut link = Link::new(plain.clone(), 0);
    for number in 0..4 {
        link.push(packet(number, 1250), start);
    }
    let later = start + Duration::from_millis(15);
    link.set(LinkSettings { cut: true, ..plain.clone() }, later);
    assert_eq!(link.next(), None);
    link.push(packet(4, 1250), later);
    assert_eq!(link.counters().dropped.cut, 5);
    conserved(&link);
    link.set(plain, later);
    link.push(packet(5, 1250), later);
    let due = later + Duration::from_millis(20);
    assert_eq!(link.next(), Some(due));
    assert_eq!(link.pop(due).map(|packet| number(&packet)), Some(5));
}

#[test]
fn udp_is_blocked_and_tcp_is_not() {
    let now = Instant::now();
    let mut link = Link::new("udp=block".parse().unwrap(), 0);
    link.push(packet(0, 100), now);
    assert_eq!(link.pop(now), None);
    let mut tcp = packet(1, 100);
    tcp[9] = 6;
    link.push(tcp, now);
    assert!(link.pop(now).is_some());
    assert_eq!(link.counters().dropped.udp, 1);
}

#[test]
fn too_big_is_answered_unless_it_is_a_black_hole() {
    let now = Instant::now();
    for (text, answers) in [("mtu=1300", true), ("mtu=1300/silent", false)] {
        let mut link = Link::new(text.parse().unwrap(), 0);
        assert_eq!(link.push(packet(0, 1301), now).is_some(), answers);
        assert_eq!(link.push(packet(1, 1300), now), None);
        assert_eq!(link.pop(now).map(|packet| number(&packet)), Some(1));
        let counters = link.counters();
        assert_eq!((counters.dropped.mtu, counters.icmp), (1, u64::from(answers)));
    }
}

#[test]
fn corruption_changes_one_bit_behind_the_header() {
    let now = Instant::now();
    let mut link = Link::new("corrupt=100%".parse().unwrap(), 0);
    for _ in 0..200 {
        let before = packet(9, 60);
        link.push(before.clone(), now);
        let after = link.pop(now).unwrap();
        assert_eq!(before[..20], after[..20]);
        let bits: u32 = before.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, 1);
    }
}

#[test]
fn a_link_holds_no_more_than_it_may() {
    let now = Instant::now();
    let mut link = Link::new("delay=10s".parse().unwrap(), 0);
    for number in 0..=(u32::try_from(MOST_BYTES / 65_536).unwrap()) {
        link.push(packet(number, 65_536), now);
    }
    assert_eq!(link.counters().flying.bytes, MOST_BYTES);
    assert_eq!(link.counters().dropped.overflow, 1);
}

#[test]
fn lateness_is_counted() {
    let now = Instant::now();
    let mut link = Link::new("delay=10ms".parse().unwrap(), 0);
    for (number, late) in [(0, 2), (1, 4)] {
        link.push(packet(number, 100), now);
        link.pop(now + Duration::from_millis(10 + late)).unwrap();
    }
    let counters = link.counters();
    assert_eq!(
        (counters.mean_late(), counters.late.most),
        (Duration::from_millis(3), Duration::from_millis(4))
    );
}

#[test]
fn what_is_no_ip_is_dropped() {
    let now = Instant::now();
    let mut link = Link::new(LinkSettings::default(), 0);
    for bytes in [&[][..], &[0x12, 0x34]] {
        link.push(bytes.to_vec(), now);
    }
    assert_eq!(link.pop(now), None);
    assert_eq!(link.counters().dropped.not_ip, 2);
}
