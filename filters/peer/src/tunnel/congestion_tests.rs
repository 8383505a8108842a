//! Senders at one end of a simulated link: a queue that drops what does not fit, a rate, a delay, and random loss.

use std::collections::VecDeque;

use super::*;

const MTU: u16 = 1200;

/// A link and what waits at it.
struct Link {
    /// Seconds for a packet.
    spacing: f64,
    /// There and back, seconds.
    delay: f64,
    /// Packets that may wait.
    queue: usize,
    /// Of a packet that was not dropped.
    loss: f64,
}

/// A packet that is acknowledged, or noticed as lost, at a time.
struct Flying {
    at: f64,
    number: u64,
    sent: f64,
    arrives: bool,
}

struct Sender {
    control: LossTolerant,
    /// Takes every loss for congestion, as CUBIC does.
    cubic: bool,
    number: u64,
    flying: VecDeque<Flying>,
    arrived: u64,
}

impl Sender {
    fn new(cubic: bool) -> Self {
        Self { control: LossTolerant::new(MTU), cubic, number: 0, flying: VecDeque::new(), arrived: 0 }
    }
}

/// Lets senders send for some seconds; the share of the link that each had in the last half.
fn share(link: &Link, senders: &mut [Sender], seconds: f64, seed: u64) -> Vec<f64> {
    let start = Instant::now();
    let at = |time: f64| start + Duration::from_secs_f64(time);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut now, mut free_at, mut counted) = (0.0, 0.0_f64, false);
    while now < seconds {
        if !counted && now > seconds / 2.0 {
            counted = true;
            senders.iter_mut().for_each(|sender| sender.arrived = 0);
        }
        // Acknowledgements, and losses that are noticed when the packets behind arrive.
        for sender in senders.iter_mut() {
            while sender.flying.front().is_some_and(|packet| packet.at <= now) {
                let packet = sender.flying.pop_front().unwrap();
                let (sent, control) = (at(packet.sent), &mut sender.control);
                if packet.arrives {
                    sender.arrived += 1;
                    control.acked(at(now), sent, MTU.into());
                    control.end_of_batch(at(now), false, Some(packet.number));
                } else if sender.cubic {
                    control.lost(at(now), sent, false, 0);
                } else {
                    control.lost(at(now), sent, false, MTU.into());
                }
            }
        }
        // One packet each in turn, as long as their windows allow.
        let mut sending = true;
        while sending {
            sending = false;
            for sender in senders.iter_mut() {
                let under_way = sender.flying.len() as u64 * u64::from(MTU);
                if under_way + u64::from(MTU) > sender.control.window() {
                    continue;
                }
                sending = true;
                let waiting = ((free_at - now) / link.spacing).max(0.0);
                let fits = waiting < link.queue as f64;
                if fits {
                    free_at = free_at.max(now) + link.spacing;
                }
                let arrives = fits && random.f64() >= link.loss;
                sender.number += 1;
                sender.control.sent(sender.number);
                let packet =
                    Flying { at: free_at.max(now) + link.delay, number: sender.number, sent: now, arrives };
                sender.flying.push_back(packet);
            }
        }
        let next = senders.iter().filter_map(|sender| sender.flying.front()).map(|packet| packet.at);
        now = next.fold(seconds, f64::min).max(now);
    }
    let packets = seconds / 2.0 / link.spacing;
    senders.iter().map(|sender| sender.arrived as f64 / packets).collect()
}

/// 48 Mbit/s, 40 ms, a queue for 100 ms.
fn link(loss: f64) -> Link {
    Link { spacing: 200e-6, delay: 0.040, queue: 500, loss }
}

#[test]
fn random_loss_costs_cubic_most_of_the_path_and_us_little() {
    for seed in 0..3 {
        for (loss, least) in [(0.0, 0.9), (0.01, 0.75), (0.03, 0.6)] {
            let share = share(&link(loss), &mut [Sender::new(false)], 40.0, seed);
            println!("loss {loss}: {share:.2?}");
            assert!(share[0] > least, "{loss}: {share:?}");
        }
        let share = share(&link(0.01), &mut [Sender::new(true)], 40.0, seed);
        assert!(share[0] < 0.2, "{share:?}");
    }
}

#[test]
fn beside_others_it_takes_its_share_and_no_more() {
    // From a queue of a twentieth of the path to one of several paths.
    for queue in [10, 50, 200, 1_000] {
        for seed in 0..3 {
            let link = Link { queue, ..link(0.0) };
            let share = share(&link, &mut [Sender::new(false), Sender::new(true)], 120.0, seed);
            println!("queue {queue}: {share:.2?}");
            let [ours, theirs] = share[..] else { panic!() };
            assert!(theirs > 0.25 * (ours + theirs), "queue {queue}: {share:?}");
            assert!(ours + theirs > 0.6, "queue {queue}: {share:?}");
        }
    }
}

#[test]
fn a_path_that_loses_much_is_taken_for_full() {
    let share = share(&link(0.15), &mut [Sender::new(false)], 20.0, 1);
    assert!(share[0] < 0.3, "{share:?}");
}

#[test]
fn what_a_router_says_and_long_silence_count_at_once() {
    let now = Instant::now();
    let mut control = LossTolerant::new(MTU);
    control.lost(now, now, false, MTU.into());
    assert_eq!(control.window(), 12_000, "one loss and no delay");
    control.lost(now, now, false, 0);
    assert_eq!(control.window(), 8_400);
    control.lost(now, now, false, 0);
    assert_eq!(control.window(), 8_400, "the same round trip");
    control.lost(now, now, true, MTU.into());
    assert_eq!(control.window(), 2_400);
}

#[test]
fn without_data_to_send_the_window_stays() {
    let now = Instant::now();
    let mut control = LossTolerant::new(MTU);
    for number in 0..1_000 {
        control.sent(number);
        control.acked(now + Duration::from_millis(40), now, MTU.into());
        control.end_of_batch(now + Duration::from_millis(40), true, Some(number));
    }
    assert_eq!(control.window(), 12_000);
}
