//! Which packets are lost: one chance for all, or the two states of Gilbert and Elliott.

use super::settings::{Loss, Share};

/// The memory of [`Loss`]: which of the two states it is in.
#[derive(Debug, Default)]
pub(super) struct Losses {
    bad: Option<bool>,
}

impl Losses {
    /// Whether the next packet is lost.
    pub(super) fn next(&mut self, loss: Loss, rng: &mut fastrand::Rng) -> bool {
        let (worsen, recover, bad, good) = match loss {
            Loss::None => return false,
            Loss::Random(share) => return chance(share, rng),
            Loss::Bursts { share, mean } => {
                let recover = 1.0 / mean;
                let worsen = recover * share.chance() / (1.0 - share.chance()).max(f64::MIN_POSITIVE);
                (worsen, recover, 1.0, 0.0)
            }
            Loss::GilbertElliott { worsen, recover, bad, good } => {
                (worsen.chance(), recover.chance(), bad.chance(), good.chance())
            }
        };
        // Begin as if it had run for long, so that the first packets are like all others.
        let now = match self.bad {
            Some(true) => rng.f64() >= recover,
            Some(false) => rng.f64() < worsen,
            None => rng.f64() * (worsen + recover) < worsen,
        };
        self.bad = Some(now);
        rng.f64() < if now { bad } else { good }
    }
}

/// True for this share of all calls.
pub(super) fn chance(share: Share, rng: &mut fastrand::Rng) -> bool {
    // Without this, settings that ask for nothing would still change what the seed gives for the others.
    share.chance() > 0.0 && rng.f64() < share.chance()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(percent: f64) -> Share {
        Share::percent(percent).unwrap()
    }

    /// Lost packets and runs of them, of `count`.
    fn run(loss: Loss, count: u32) -> (f64, f64) {
        let (mut losses, mut rng) = (Losses::default(), fastrand::Rng::with_seed(7));
        let (mut lost, mut bursts, mut before) = (0, 0, false);
        for _ in 0..count {
            let now = losses.next(loss, &mut rng);
            lost += u32::from(now);
            bursts += u32::from(now && !before);
            before = now;
        }
        (f64::from(lost), f64::from(bursts))
    }

    /// Five standard deviations of a share measured over `count` independent packets.
    fn bound(share: f64, count: f64) -> f64 {
        5.0 * (share * (1.0 - share) / count).sqrt()
    }

    #[test]
    fn the_share_is_kept_at_random() {
        for share in [0.001, 0.01, 0.1, 0.5, 0.99] {
            let (lost, bursts) = run(Loss::Random(percent(share * 100.0)), 1_000_000);
            assert!((lost / 1e6 - share).abs() < bound(share, 1e6), "{share}: {lost}");
            // Independent losses follow one another with the same chance.
            let mean = lost / bursts;
            assert!((mean * (1.0 - share) - 1.0).abs() < 0.1, "{share}: bursts of {mean}");
        }
        assert_eq!(run(Loss::None, 1000).0, 0.0);
        assert_eq!(run(Loss::Random(Share::ALL), 1000).0, 1000.0);
    }

    #[test]
    fn the_share_and_the_length_are_kept_in_bursts() {
        for (share, mean) in [(0.01, 5.0), (0.1, 20.0), (0.5, 3.0)] {
            let (lost, bursts) = run(Loss::Bursts { share: percent(share * 100.0), mean }, 2_000_000);
            // Packets of a burst are no independent samples.
            assert!((lost / 2e6 - share).abs() < bound(share, 2e6 / (2.0 * mean)), "{share}: {lost}");
            assert!((lost / bursts / mean - 1.0).abs() < 0.1, "{mean}: {}", lost / bursts);
        }
    }

    #[test]
    fn both_states_have_their_own_loss() {
        let (worsen, recover) = (percent(1.0), percent(10.0));
        let loss = Loss::GilbertElliott { worsen, recover, bad: percent(60.0), good: percent(2.0) };
        let share = (0.6 * 0.01 + 0.02 * 0.10) / 0.11;
        let (lost, _) = run(loss, 2_000_000);
        assert!((lost / 2e6 - share).abs() < bound(share, 1e5), "{}", lost / 2e6);
    }
}
