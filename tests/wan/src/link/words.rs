//! Settings as people write them: `delay=40ms,loss=1%`.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::settings::{Jitter, LinkSettings, Loss, Mtu, Queue, Rate, Reorder, Shape, Share};

/// Why a text is no setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// No setting has this name.
    #[error(
        "there is no setting {0:?}; there are delay, jitter, reorder, loss, duplicate, corrupt, rate, queue, mtu, udp and link"
    )]
    Key(String),
    /// There is no `=`.
    #[error("{0:?} is not written as key=value")]
    Pair(String),
    /// The value does not fit.
    #[error("{key}: {value:?} is not {expected}")]
    Value {
        /// The setting.
        key: String,
        /// What was written.
        value: String,
        /// What can be written.
        expected: &'static str,
    },
}

const DURATION: &str = "a time, as 250us, 40ms or 1.5s";
const SHARE: &str = "a share, as 0.1% or 25%";

impl LinkSettings {
    /// Changes one setting.
    ///
    /// | key | value |
    /// | --- | --- |
    /// | `delay` | `40ms` |
    /// | `jitter` | `2ms`, `2ms/normal`, `2ms/uniform` |
    /// | `reorder` | `none`, `jitter`, `1%/5ms` (share, how much later) |
    /// | `loss` | `1%`, `1%/8` (in bursts of 8 on average), `W%/R%/B%/G%` (Gilbert–Elliott: worsen, recover, loss in the bad and in the good state) |
    /// | `duplicate`, `corrupt` | `0.1%` |
    /// | `rate` | `100mbit`, `none` |
    /// | `queue` | `50ms`, `64kb`, `65536` |
    /// | `mtu` | `1300`, `1300/silent`, `none` |
    /// | `udp` | `pass`, `block` |
    /// | `link` | `up`, `cut` |
    ///
    /// # Errors
    /// When there is no such setting or the value does not fit; nothing is changed then.
    pub fn apply(&mut self, key: &str, value: &str) -> Result<(), WordError> {
        let value = value.trim();
        let wrong = |expected| WordError::Value { key: key.to_owned(), value: value.to_owned(), expected };
        match key {
            "delay" => self.delay = duration(value).ok_or_else(|| wrong(DURATION))?,
            "jitter" => {
                self.jitter = jitter(value)
                    .ok_or_else(|| wrong("a time with or without its shape, as 2ms or 2ms/normal"))?;
            }
            "reorder" => {
                self.reorder = reorder(value).ok_or_else(|| {
                    wrong("none, jitter, or a share and how much later it comes, as 1%/5ms")
                })?;
            }
            "loss" => {
                self.loss = loss(value).ok_or_else(|| {
                    wrong("a share as 1%, a share and the mean length of bursts as 1%/8, or four shares")
                })?;
            }
            "duplicate" => self.duplicate = share(value).ok_or_else(|| wrong(SHARE))?,
            "corrupt" => self.corrupt = share(value).ok_or_else(|| wrong(SHARE))?,
            "rate" => {
                self.rate = optional(value, rate)
                    .ok_or_else(|| wrong("a rate above zero as 500kbit, 100mbit or 1gbit, or none"))?;
            }
            "queue" => {
                self.queue = queue(value).ok_or_else(|| wrong("a time or a size, as 50ms, 64kb or 65536"))?;
            }
            "mtu" => {
                self.mtu = optional(value, mtu).ok_or_else(|| {
                    wrong("a size of at least 68 bytes as 1300, the same with /silent for a black hole, or none")
                })?;
            }
            "udp" => self.block_udp = either(value, "pass", "block").ok_or_else(|| wrong("pass or block"))?,
            "link" => self.cut = either(value, "up", "cut").ok_or_else(|| wrong("up or cut"))?,
            _ => return Err(WordError::Key(key.to_owned())),
        }
        Ok(())
    }

    /// Changes the settings that the list `key=value,key=value` names; others stay.
    ///
    /// # Errors
    /// At the first pair that cannot be read; nothing is changed then.
    pub fn apply_all(&mut self, pairs: &str) -> Result<(), WordError> {
        let mut changed = self.clone();
        for pair in pairs.split(|c: char| c == ',' || c.is_whitespace()).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| WordError::Pair(pair.to_owned()))?;
            changed.apply(key, value)?;
        }
        *self = changed;
        Ok(())
    }
}

impl FromStr for LinkSettings {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let mut settings = Self::default();
        settings.apply_all(text)?;
        Ok(settings)
    }
}

/// A time as `40ms`, `1.5s` or `2min`; nothing when it is written otherwise.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number(text)?;
    let nanos = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        "" if number == 0.0 => 1.0,
        _ => return None,
    };
    // A day is longer than any test, and short enough that sums of times cannot overflow.
    let nanos = (number * nanos).round();
    (nanos <= 86_400e9).then(|| Duration::from_nanos(nanos as u64))
}

fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

fn share(text: &str) -> Option<Share> {
    match number(text)? {
        (percent, "%") => Share::percent(percent),
        (0.0, "") => Some(Share::default()),
        _ => None,
    }
}

fn jitter(text: &str) -> Option<Jitter> {
    let (spread, shape) = text.split_once('/').unwrap_or((text, "uniform"));
    let shape = match shape {
        "uniform" => Shape::Uniform,
        "normal" => Shape::Normal,
        _ => return None,
    };
    Some(Jitter { spread: duration(spread)?, shape })
}

fn reorder(text: &str) -> Option<Reorder> {
    match text {
        "none" => Some(Reorder::Never),
        "jitter" => Some(Reorder::ByJitter),
        _ => {
            let (part, by) = text.split_once('/')?;
            Some(Reorder::Late { share: share(part)?, by: duration(by)? })
        }
    }
}

fn loss(text: &str) -> Option<Loss> {
    if text == "none" {
        return Some(Loss::None);
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [all] => Some(share(all)?)
            .map(|share| if share == Share::default() { Loss::None } else { Loss::Random(share) }),
        [all, mean] => {
            let (share, mean) = (share(all)?, mean.parse().ok().filter(|mean| (1.0..=1e6).contains(mean))?);
            // The good state lasts at least one packet.
            (share.chance() <= mean / (mean + 1.0)).then_some(Loss::Bursts { share, mean })
        }
        [worsen, recover, bad, good] => Some(Loss::GilbertElliott {
            worsen: share(worsen)?,
            recover: share(recover)?,
            bad: share(bad)?,
            good: share(good)?,
        }),
        _ => None,
    }
}

fn rate(text: &str) -> Option<Rate> {
    let (number, unit) = number(text)?;
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return None,
    };
    let bits = (number * factor).round();
    (bits <= 1e12).then_some(bits as u64).and_then(Rate::bits)
}

fn queue(text: &str) -> Option<Queue> {
    let (number, unit) = number(text)?;
    let factor = match unit {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        _ => return duration(text).map(Queue::Time),
    };
    let bytes = (number * factor).round();
    (bytes <= 1e12).then_some(Queue::Bytes(bytes as u64))
}

fn mtu(text: &str) -> Option<Mtu> {
    let (bytes, silent) = match text.split_once('/') {
        Some((bytes, "silent")) => (bytes, true),
        Some((bytes, "icmp")) => (bytes, false),
        Some(_) => return None,
        None => (text, false),
    };
    // RFC 791: every host can forward 68 bytes.
    Some(Mtu { bytes: bytes.parse().ok().filter(|bytes| *bytes >= 68)?, silent })
}

fn optional<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "none" { Some(None) } else { read(text).map(Some) }
}

fn either(text: &str, no: &str, yes: &str) -> Option<bool> {
    (text == yes || text == no).then_some(text == yes)
}

impl Display for LinkSettings {
    /// Only what differs from the default; `link=up` when nothing does.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = Self::default();
        let mut words = Vec::new();
        if self.delay != plain.delay {
            words.push(format!("delay={:?}", self.delay));
        }
        if self.jitter != plain.jitter {
            let shape = if self.jitter.shape == Shape::Normal { "/normal" } else { "" };
            words.push(format!("jitter={:?}{shape}", self.jitter.spread));
        }
        match self.reorder {
            Reorder::Never => (),
            Reorder::ByJitter => words.push("reorder=jitter".to_owned()),
            Reorder::Late { share, by } => words.push(format!("reorder={share}/{by:?}")),
        }
        match self.loss {
            Loss::None => (),
            Loss::Random(share) => words.push(format!("loss={share}")),
            Loss::Bursts { share, mean } => words.push(format!("loss={share}/{mean}")),
            Loss::GilbertElliott { worsen, recover, bad, good } => {
                words.push(format!("loss={worsen}/{recover}/{bad}/{good}"));
            }
        }
        if self.duplicate != plain.duplicate {
            words.push(format!("duplicate={}", self.duplicate));
        }
        if self.corrupt != plain.corrupt {
            words.push(format!("corrupt={}", self.corrupt));
        }
        if let Some(rate) = self.rate {
            words.push(format!("rate={rate}"));
        }
        if self.queue != plain.queue {
            words.push(match self.queue {
                Queue::Bytes(bytes) => format!("queue={bytes}"),
                Queue::Time(time) => format!("queue={time:?}"),
            });
        }
        if let Some(mtu) = self.mtu {
            words.push(format!("mtu={}{}", mtu.bytes, if mtu.silent { "/silent" } else { "" }));
        }
        if self.block_udp {
            words.push("udp=block".to_owned());
        }
        if self.cut {
            words.push("link=cut".to_owned());
        }
        if words.is_empty() {
            words.push("link=up".to_owned());
        }
        f.write_str(&words.join(","))
    }
}

impl Serialize for LinkSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.as_percent())
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bits = self.as_bits();
        for (size, unit) in [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")] {
            if bits.is_multiple_of(size) {
                return write!(f, "{}{unit}", bits / size);
            }
        }
        write!(f, "{bits}bit")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = "delay=40ms,jitter=2ms/normal,reorder=1%/5ms,loss=1%/8,duplicate=0.5%,corrupt=0.1%,rate=100mbit,\
                    queue=64kb,mtu=1300/silent,udp=block,link=cut";
        let settings: LinkSettings = text.parse().unwrap();
        let percent = |percent| Share::percent(percent).unwrap();
        let expected = LinkSettings {
            delay: Duration::from_millis(40),
            jitter: Jitter { spread: Duration::from_millis(2), shape: Shape::Normal },
            reorder: Reorder::Late { share: percent(1.0), by: Duration::from_millis(5) },
            loss: Loss::Bursts { share: percent(1.0), mean: 8.0 },
            duplicate: percent(0.5),
            corrupt: percent(0.1),
            rate: Rate::bits(100_000_000),
            queue: Queue::Bytes(64_000),
            mtu: Some(Mtu { bytes: 1300, silent: true }),
            block_udp: true,
            cut: true,
        };
        assert_eq!(settings, expected);
        let undone = "delay=0,jitter=0,reorder=none,loss=none,duplicate=0,corrupt=0,rate=none,queue=100ms,mtu=none,udp=pass,link=up";
        let mut settings = settings;
        settings.apply_all(undone).unwrap();
        assert_eq!(settings, LinkSettings::default());
        assert_eq!(settings.to_string(), "link=up");
    }

    #[test]
    fn what_cannot_be_read_is_named_and_changes_nothing() {
        let mut settings = LinkSettings::default();
        for (text, error) in [
            ("delay=1ms,lag=2ms", "there is no setting \"lag\""),
            ("delay=1ms,fast", "\"fast\" is not written as key=value"),
            ("delay=1ms,rate=100mbot", "rate: \"100mbot\" is not a rate above zero"),
            ("rate=0bit", "rate: \"0bit\""),
            ("loss=101%", "loss: \"101%\""),
            ("loss=90%/2", "loss: \"90%/2\""),
            ("loss=1", "loss: \"1\""),
            ("delay=40", "delay: \"40\" is not a time, as 250us, 40ms or 1.5s"),
            ("delay=-1ms", "delay: \"-1ms\""),
            ("mtu=60", "mtu: \"60\""),
            ("reorder=1%", "reorder: \"1%\""),
            ("udp=maybe", "udp: \"maybe\" is not pass or block"),
        ] {
            let said = settings.apply_all(text).unwrap_err().to_string();
            assert!(said.starts_with(error), "{text}: {said}");
        }
        assert_eq!(settings, LinkSettings::default());
    }

    fn shares() -> impl Strategy<Value = Share> {
        (0..=100_000_u32).prop_map(|n| Share::percent(f64::from(n) / 1000.0).unwrap())
    }

    fn times() -> impl Strategy<Value = Duration> {
        (0..100_000_000_000_u64).prop_map(Duration::from_nanos)
    }

    prop_compose! {
        fn any_settings()(
            delay in times(),
            jitter in (times(), prop_oneof![Just(Shape::Uniform), Just(Shape::Normal)]),
            reorder in prop_oneof![
                Just(Reorder::Never),
                Just(Reorder::ByJitter),
                (shares(), times()).prop_map(|(share, by)| Reorder::Late { share, by }),
            ],
            loss in prop_oneof![
                Just(Loss::None),
                shares().prop_filter("no loss", |share| share.chance() > 0.0).prop_map(Loss::Random),
                (0..=50_u32, 1..50_u32).prop_map(|(share, mean)| Loss::Bursts {
                    share: Share::percent(f64::from(share)).unwrap(),
                    mean: f64::from(mean),
                }),
                (shares(), shares(), shares(), shares())
                    .prop_map(|(worsen, recover, bad, good)| Loss::GilbertElliott { worsen, recover, bad, good }),
            ],
            (duplicate, corrupt) in (shares(), shares()),
            rate in prop::option::of((1..1_000_000_000_000_u64).prop_map(|bits| Rate::bits(bits).unwrap())),
            queue in prop_oneof![(0..1_000_000_000_u64).prop_map(Queue::Bytes), times().prop_map(Queue::Time)],
            mtu in prop::option::of((68..=u16::MAX, any::<bool>()).prop_map(|(bytes, silent)| Mtu { bytes, silent })),
            (block_udp, cut) in (any::<bool>(), any::<bool>()),
        ) -> LinkSettings {
            let jitter = Jitter { spread: jitter.0, shape: jitter.1 };
            LinkSettings { delay, jitter, reorder, loss, duplicate, corrupt, rate, queue, mtu, block_udp, cut }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(settings in any_settings()) {
            prop_assert_eq!(settings.to_string().parse(), Ok(settings));
        }

        #[test]
        fn no_text_is_a_surprise(text in "[a-z=/,%0-9. µ-]{0,40}") {
            let _ = text.parse::<LinkSettings>();
        }
    }
}
