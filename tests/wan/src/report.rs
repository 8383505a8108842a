//! What the program prints: a line that is written over on a terminal, plain lines elsewhere, or JSON.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use qudag_kit::Namespace;
use qudag_wan::{Counters, DIRECTIONS, Direction, Wan, WanError};
use serde_json::{Value, json};

/// Where reports go.
pub(crate) struct Report {
    out: Box<dyn Write>,
    json: bool,
    terminal: bool,
    /// Whether a line stands that the next one is to replace.
    standing: bool,
    start: Instant,
    before: (Duration, [Counters; 2]),
}

impl Report {
    /// Standard error beside a command, which has standard output for itself.
    pub(crate) fn new(json: bool, beside_command: bool) -> Self {
        let (out, terminal): (Box<dyn Write>, bool) = if beside_command {
            (Box::new(io::stderr()), io::stderr().is_terminal())
        } else {
            (Box::new(io::stdout()), io::stdout().is_terminal())
        };
        let before = (Duration::ZERO, Default::default());
        Self { out, json, terminal: terminal && !json, standing: false, start: Instant::now(), before }
    }

    /// The two namespaces and what the link does.
    pub(crate) fn introduce(&mut self, wan: &Wan, sides: [(&Namespace, &str); 2]) -> Result<(), WanError> {
        let settings = [wan.settings(Direction::ToRight)?, wan.settings(Direction::ToLeft)?];
        let [left, right] = sides.map(|(namespace, addresses)| (namespace.name(), addresses));
        if self.json {
            let side = |(name, addresses): (&str, &str)| {
                json!({
                    "namespace": name,
                    "addresses": addresses.split(',').collect::<Vec<_>>(),
                    "enter": ["ip", "netns", "exec", name],
                })
            };
            let [to_right, to_left] = settings;
            let all =
                json!({ "left": side(left), "right": side(right), "to_right": to_right, "to_left": to_left });
            self.line(&all.to_string());
            return Ok(());
        }
        for (side, (name, addresses)) in [("left ", left), ("right", right)] {
            self.line(&format!("{side}  {:<26} ip netns exec {name} bash", addresses.replace(',', "  ")));
        }
        let [to_right, to_left] = settings.map(|settings| settings.to_string());
        if to_right == to_left {
            self.line(&format!("both ways  {to_right}"));
        } else {
            self.line(&format!("to the right  {to_right}"));
            self.line(&format!("to the left   {to_left}"));
        }
        Ok(())
    }

    /// What passed until now.
    pub(crate) fn statistics(&mut self, wan: &Wan) -> Result<(), WanError> {
        let now = self.start.elapsed();
        let counters = [wan.counters(Direction::ToRight)?, wan.counters(Direction::ToLeft)?];
        if self.json {
            let mut all =
                json!({ "seconds": now.as_secs_f64(), "cpu_seconds": wan.cpu_time()?.as_secs_f64() });
            for (direction, counters) in DIRECTIONS.into_iter().zip(counters) {
                let key = if direction == Direction::ToRight { "to_right" } else { "to_left" };
                let mut value = json!(counters);
                if let (Some(all), Some(value)) = (all.as_object_mut(), value.as_object_mut()) {
                    value.insert("settings".to_owned(), Value::String(wan.settings(direction)?.to_string()));
                    all.insert(key.to_owned(), Value::Object(std::mem::take(value)));
                }
            }
            self.line(&all.to_string());
        } else {
            let (then, before) = self.before;
            let seconds = now.saturating_sub(then).as_secs_f64();
            let [right, left] = counters;
            let [before_right, before_left] = before;
            let text = format!(
                "{:>5.0} s  → {}  ← {}",
                now.as_secs_f64(),
                one_way(&right, &before_right, seconds),
                one_way(&left, &before_left, seconds)
            );
            self.over(&text);
        }
        self.before = (now, counters);
        Ok(())
    }

    /// What became of a line of standard input.
    pub(crate) fn say(&mut self, text: &str) {
        if self.json {
            self.line(&json!({ "message": text }).to_string());
        } else {
            self.line(text);
        }
    }

    /// Ends the line that stands.
    pub(crate) fn end(&mut self) {
        if self.standing {
            self.standing = false;
            let _ = writeln!(self.out);
        }
    }

    fn over(&mut self, text: &str) {
        if self.terminal {
            let _ = write!(self.out, "\r\x1b[K{text}");
            let _ = self.out.flush();
            self.standing = true;
        } else {
            self.line(text);
        }
    }

    fn line(&mut self, text: &str) {
        self.end();
        // A reader that went away is no reason to end a link that others use.
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }
}

fn one_way(now: &Counters, before: &Counters, seconds: f64) -> String {
    let bytes = now.delivered.bytes.saturating_sub(before.delivered.bytes);
    let bits = if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 };
    let mut text = format!("{} packets, {}", now.delivered.packets, rate(bits));
    for (count, what) in [
        (now.lost, "lost"),
        (now.dropped.queue, "over the queue"),
        (now.dropped.mtu, "too big"),
        (now.dropped.cut, "cut"),
        (now.dropped.udp, "UDP blocked"),
        (now.dropped.overflow + now.dropped.not_ip + now.dropped.refused, "dropped"),
        (now.duplicated, "doubled"),
        (now.corrupted, "corrupted"),
        (now.reordered, "reordered"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    // What a person sees as a wrong delay; less is the nature of timers.
    if now.mean_late() > Duration::from_millis(1) {
        text.push_str(&format!(", late by {:.1} ms", now.mean_late().as_secs_f64() * 1e3));
    }
    if now.waiting.packets > 0 {
        text.push_str(&format!(", {:.0} kB wait", now.waiting.bytes as f64 / 1e3));
    }
    text
}

fn rate(bits: f64) -> String {
    for (size, unit) in [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")] {
        if bits >= size {
            return format!("{:.1} {unit}", bits / size);
        }
    }
    format!("{bits:.0} bit/s")
}

#[cfg(test)]
mod tests {
    use qudag_wan::link::Traffic;

    use super::*;

    #[test]
    fn a_line_shows_what_happened_and_nothing_else() {
        let before = Counters::default();
        assert_eq!(one_way(&before, &before, 0.0), "0 packets, 0 bit/s");
        let mut now = Counters { delivered: Traffic { packets: 3, bytes: 2_500_000 }, lost: 2, ..before };
        now.dropped.queue = 1;
        now.waiting = Traffic { packets: 1, bytes: 1400 };
        assert_eq!(
            one_way(&now, &before, 2.0),
            "3 packets, 10.0 Mbit/s, 2 lost, 1 over the queue, 1 kB wait"
        );
    }
}
