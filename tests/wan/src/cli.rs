//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use qudag_wan::link::duration;
use qudag_wan::{LinkSettings, Settings};

const EXAMPLES: &str = "\
Examples:
  A link across an ocean, with statistics until Ctrl-C:
    qudag-wan --delay 40ms --loss 1% --rate 100mbit

  A home line: slow towards the right, with a deep buffer; see what a ping becomes beside a transfer:
    qudag-wan --delay 10ms --rate 50mbit --to-right rate=5mbit,queue=500ms

  A path whose MTU the hosts must find out, and one that does not tell them:
    qudag-wan --mtu 1300
    qudag-wan --mtu 1300/silent

  One command in the left namespace; its exit status is that of this program:
    qudag-wan --delay 20ms -- python3 -c 'import socket; …'

  Losses in bursts of 8 packets, jitter that reorders, for a minute, as JSON:
    qudag-wan --loss 2%/8 --delay 30ms --jitter 5ms/normal --reorder jitter --for 1min --json

Without COMMAND, lines on standard input change the running link:
  loss=5%,delay=80ms      both directions
  to-left rate=1mbit      one direction (to-right, to-left)
  cut, mend               nothing passes; as before
  udp=block, udp=pass     UDP vanishes while TCP passes

Exit status: that of COMMAND (128 + N when signal N ended it); 0 after --for without COMMAND or after Ctrl-C; 124
when --for ended COMMAND; 127 when COMMAND is not found; 1 when there can be no link; 2 for a wrong command line.";

/// A wide-area link between two network namespaces: delay, jitter, loss, rate, MTU.
///
/// Makes two namespaces with an emulated link between them and removes them at the end. It needs root and /dev/net/tun, and no
/// netem. Each option below holds for both directions; --to-right and --to-left override it for one.
#[derive(Debug, Parser)]
#[command(name = "qudag-wan", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Arguments {
    /// How long a packet travels, for instance 40ms; a round trip takes twice as long.
    #[arg(long, value_name = "TIME")]
    delay: Option<String>,
    /// How much the delay varies: evenly by up to ±TIME, or with /normal in a bell with this standard deviation, cut
    /// at three of them.
    #[arg(long, value_name = "TIME[/normal]")]
    jitter: Option<String>,
    /// Whether packets overtake each other: never (none, the default), where jitter brings it about (jitter), or because
    /// a share of them comes later.
    #[arg(long, value_name = "none|jitter|SHARE/TIME")]
    reorder: Option<String>,
    /// Packets that vanish, for instance 1%; with /MEAN in bursts of this mean length; with four shares
    /// (worsen/recover/loss in bad/loss in good) as Gilbert and Elliott have it.
    #[arg(long, value_name = "SHARE[/MEAN]")]
    loss: Option<String>,
    /// Packets that come twice.
    #[arg(long, value_name = "SHARE")]
    duplicate: Option<String>,
    /// Packets of which one bit changes.
    #[arg(long, value_name = "SHARE")]
    corrupt: Option<String>,
    /// Bits of IP per second: 500kbit, 100mbit, 1gbit.
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// How much may wait for a link with a rate, as a time or in bytes; what comes then is dropped [default: 100ms].
    #[arg(long, value_name = "TIME|BYTES")]
    queue: Option<String>,
    /// The largest packet that passes; the sender is told by ICMP, or with /silent not told (a black hole).
    #[arg(long, value_name = "BYTES[/silent]")]
    mtu: Option<String>,
    /// Let everything pass but UDP.
    #[arg(long)]
    block_udp: bool,

    /// Settings from left to right, as KEY=VALUE,… with the names of the options above, udp=block and link=cut.
    #[arg(long, value_name = "LIST")]
    to_right: Option<String>,
    /// Settings from right to left.
    #[arg(long, value_name = "LIST")]
    to_left: Option<String>,

    /// Addresses of the left end.
    #[arg(long, value_name = "LIST", default_value = "10.90.0.1/24,fd90::1/64")]
    pub(crate) left: String,
    /// Addresses of the right end.
    #[arg(long, value_name = "LIST", default_value = "10.90.0.2/24,fd90::2/64")]
    pub(crate) right: String,
    /// The MTU of the devices, which the hosts know; --mtu is what they must find out.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..))]
    device_mtu: u16,
    /// What chance begins with; the same packets then meet the same fate.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// End after this time.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub(crate) limit: Option<Duration>,
    /// How often statistics are printed.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(crate) interval: Duration,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,

    /// A command to run in the left namespace; the link ends with it. What this program prints then goes to standard error.
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

impl Arguments {
    /// How the link begins; the text of an error names the option.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let mut both = LinkSettings::default();
        let values = [
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("reorder", &self.reorder),
            ("loss", &self.loss),
            ("duplicate", &self.duplicate),
            ("corrupt", &self.corrupt),
            ("rate", &self.rate),
            ("queue", &self.queue),
            ("mtu", &self.mtu),
        ];
        for (key, value) in values {
            if let Some(value) = value {
                both.apply(key, value).map_err(|error| format!("--{error}"))?;
            }
        }
        both.block_udp = self.block_udp;
        let mut settings = Settings { seed: self.seed, device_mtu: self.device_mtu, ..Settings::both(both) };
        let sides = [
            ("to-right", &self.to_right, &mut settings.to_right),
            ("to-left", &self.to_left, &mut settings.to_left),
        ];
        for (option, list, side) in sides {
            if let Some(list) = list {
                side.apply_all(list).map_err(|error| format!("--{option}: {error}"))?;
            }
        }
        Ok(settings)
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = duration(text).filter(|time| *time >= Duration::from_millis(1));
    time.ok_or_else(|| "write a time of at least 1ms, as 500ms, 10s or 2min".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn one_direction_overrides_both() {
        let words = "qudag-wan --delay 40ms --loss 1% --rate 100mbit --mtu 1300 --to-left delay=10ms,rate=none --block-udp";
        let settings = Arguments::parse_from(words.split(' ')).settings().unwrap();
        assert_eq!(settings.to_right.to_string(), "delay=40ms,loss=1%,rate=100mbit,mtu=1300,udp=block");
        assert_eq!(settings.to_left.to_string(), "delay=10ms,loss=1%,mtu=1300,udp=block");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_option() {
        let said = |words: &str| Arguments::parse_from(words.split(' ')).settings().unwrap_err();
        assert!(said("qudag-wan --rate fast").starts_with("--rate: \"fast\" is not a rate"));
        assert!(said("qudag-wan --to-left speed=1").starts_with("--to-left: there is no setting \"speed\""));
    }
}
