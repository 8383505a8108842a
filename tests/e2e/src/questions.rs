//! A zone and any number of questions about it, made from a seed: the same seed makes the same questions.

use std::fmt::Write;

use qudag_kit::dns_wire::{Ask, Edns, flag, name, rtype};

/// The zone that is asked for.
pub const ORIGIN: &str = "diff.test.";

/// A small generator (xorshift64*), good enough to choose questions.
pub struct Dice(u64);

impl Dice {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// How many names of each sort there are.
const EACH: u64 = 200;

/// The zone file of [`ORIGIN`]: `h` hosts, `t` texts, `m` mail, `a` aliases, `l` aliases of four links, `y` aliases of twelve, `x`
/// aliases that lead nowhere, `o` aliases out of the zone, `w` wildcards, `e` empty non-terminals, `b` sets of many records,
/// `u` unknown types, `d` DNAMEs.
pub fn zone() -> String {
    let mut zone = format!(
        "$ORIGIN {ORIGIN}\n$TTL 300\n@ SOA ns admin 1 3600 600 86400 300\n@ NS ns\n@ MX 10 m0\n@ TXT \"apex\"\nns A \
         192.0.2.53\n"
    );
    for n in 0..EACH {
        let (high, low) = (n / 250, n % 250 + 1);
        let lines = [
            format!("h{n} A 198.51.{high}.{low}"),
            format!("h{n} AAAA 2001:db8::{n:x}"),
            format!("t{n} TXT \"text {n}\" \"{}\"", "z".repeat((n % 200) as usize)),
            format!("m{n} MX 10 h{n}\nm{n} MX 20 none\nm{n} SRV 1 2 443 h{n}\nm{n} CAA 0 issue \"ca\""),
            format!("a{n} CNAME h{n}"),
            format!("l{n} CNAME l{n}b\nl{n}b CNAME l{n}c\nl{n}c CNAME a{n}"),
            format!("x{n} CNAME none{n}"),
            format!("o{n} CNAME h{n}.other.test."),
            format!("*.w{n} A 203.0.113.{low}\n*.w{n} TXT \"wild\"\nfixed.w{n} A 203.0.112.{low}"),
            format!("*.wa{n} CNAME h{n}"),
            format!("leaf.e{n} A 192.0.2.{low}"),
            format!("u{n} TYPE65280 \\# 4 0A{n:06X}"),
            format!("d{n} DNAME e{n}"),
        ];
        lines.iter().for_each(|line| writeln!(zone, "{line}").unwrap());
        for k in 1..=n % 60 + 2 {
            writeln!(zone, "b{n} A 100.64.{}.{k}", n % 250).unwrap();
        }
        for link in 0..12 {
            writeln!(zone, "y{n}-{link} CNAME y{n}-{}", link + 1).unwrap();
        }
        writeln!(zone, "y{n}-12 A 192.0.2.{low}").unwrap();
    }
    zone
}

/// Whether a name, on the wire and in lower case, is the beginning of twelve aliases.
pub fn is_long_chain(name: &[u8]) -> bool {
    let label = name.get(1..=usize::from(name[0])).unwrap_or_default();
    label.starts_with(b"y") && label.ends_with(b"-0")
}

/// `other.test.`, into which some aliases lead.
pub fn other_zone() -> String {
    let mut zone =
        "$ORIGIN other.test.\n$TTL 300\n@ SOA ns admin 1 3600 600 86400 300\n@ NS ns\nns A 192.0.2.53\n"
            .to_owned();
    (0..EACH).for_each(|n| writeln!(zone, "h{n} A 198.18.0.{}", n % 250 + 1).unwrap());
    zone
}

/// One question.
pub fn question(dice: &mut Dice) -> Ask {
    let asked = any_name(dice);
    let mut ask = Ask::new("", any_type(dice));
    ask.name = any_case(dice, name(&asked));
    ask.id = dice.below(0x1_0000) as u16;
    ask.class =
        if dice.once_in(25) { dice.one_of(&[0, 2, 3, 4, 5, 254, 255, 256, 65_280, 65_535]) } else { 1 };
    if dice.once_in(20) {
        ask.flags &= !flag::RD;
    }
    for (bit, times) in [(flag::AD, 5), (flag::CD, 6), (flag::Z, 40), (flag::AA, 50), (flag::RA, 50)] {
        if dice.once_in(times) {
            ask.flags |= bit;
        }
    }
    if dice.once_in(60) {
        ask = ask.opcode(dice.one_of(&[1, 2, 4, 5, 6, 15]));
    }
    if dice.below(3) > 0 {
        ask.edns = Some(any_edns(dice));
    }
    ask
}

fn any_name(dice: &mut Dice) -> String {
    let n = dice.below(EACH);
    let inside = match dice.below(40) {
        0..=7 => format!("h{n}"),
        8 => format!("t{n}"),
        9..=10 => format!("m{n}"),
        11..=12 => format!("a{n}"),
        13 => format!("l{n}"),
        14 => format!("y{n}-{}", dice.below(13)),
        15 => format!("x{n}"),
        16 => format!("o{n}"),
        17..=18 => format!("v{}.w{n}", dice.below(4)),
        19 => format!("v.v{}.w{n}", dice.below(4)),
        20 => format!("fixed.w{n}"),
        21 => format!("w{n}"),
        22 => format!("v{}.wa{n}", dice.below(4)),
        23..=24 => format!("e{n}"),
        25 => format!("leaf.e{n}"),
        26..=28 => format!("b{n}"),
        29 => format!("u{n}"),
        30 => format!("leaf.d{n}"),
        31 => format!("none.d{n}"),
        32 => return ORIGIN.to_owned(),
        33 => format!("below.h{n}"),
        34..=36 => format!("none{n}"),
        37 => format!("deep.below.none{n}"),
        38 => format!("b\\{:03}{n}", dice.below(256)),
        _ => match dice.below(4) {
            0 => return ".".to_owned(),
            1 => return format!("h{n}.other.test."),
            2 => return format!("n{n}.elsewhere.invalid."),
            _ => "ns".to_owned(),
        },
    };
    format!("{inside}.{ORIGIN}")
}

fn any_type(dice: &mut Dice) -> u16 {
    match dice.below(20) {
        0..=7 => rtype::A,
        8..=10 => rtype::AAAA,
        11 => dice.one_of(&[rtype::TXT, rtype::MX, rtype::SRV, rtype::CAA]),
        12 => rtype::CNAME,
        13 => dice.one_of(&[rtype::SOA, rtype::NS]),
        14 => dice.one_of(&[rtype::DS, rtype::DNSKEY, rtype::RRSIG, rtype::NSEC, rtype::DNAME]),
        15 => dice.one_of(&[65_280, 65_281, 65_534]),
        16 => dice.one_of(&[rtype::ANY, rtype::AXFR, rtype::IXFR]),
        17 => dice.one_of(&[rtype::PTR, rtype::HTTPS, rtype::HINFO, 24, 35, 44, 52, 64, 99]),
        18 if dice.once_in(4) => dice.one_of(&[0, rtype::OPT, 128, 248, 249, 250, 253, 254]),
        19 if dice.once_in(2) => dice.below(260) as u16,
        _ => rtype::A,
    }
}

fn any_case(dice: &mut Dice, mut name: Vec<u8>) -> Vec<u8> {
    match dice.below(4) {
        0 => name.make_ascii_uppercase(),
        1 => name.iter_mut().for_each(|byte| {
            // Lengths are below 64 and so no letters.
            if dice.once_in(2) {
                byte.make_ascii_uppercase();
            }
        }),
        _ => {}
    }
    name
}

fn any_edns(dice: &mut Dice) -> Edns {
    let mut edns =
        Edns::size(dice.one_of(&[0, 100, 512, 513, 600, 800, 1000, 1232, 1232, 1232, 1400, 4096, 65_535]));
    if dice.once_in(3) {
        edns = edns.dnssec();
    }
    if dice.once_in(20) {
        edns.flags |= 0x4001;
    }
    if dice.once_in(30) {
        edns.version = dice.one_of(&[1, 2, 255]);
    }
    if dice.once_in(6) {
        let options: [(u16, &[u8]); 6] = [
            (3, b""),
            (8, &[0, 1, 24, 0, 192, 0, 2]),
            (10, &[1, 2, 3, 4, 5, 6, 7, 8]),
            (11, b""),
            (12, &[0; 40]),
            (65_001, b"whatever"),
        ];
        let (code, value) = dice.one_of(&options);
        edns = edns.option(code, value);
    }
    edns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_chains_are_known() {
        for (asked, long) in [
            ("y12-0", true),
            ("y5-0", true),
            ("y1-10", false),
            ("y1-1", false),
            ("h0", false),
            ("none-0", false),
        ] {
            assert_eq!(is_long_chain(&name(&format!("{asked}.{ORIGIN}"))), long, "{asked}");
        }
    }

    #[test]
    fn a_seed_makes_the_same_questions_again() {
        let of = |seed| {
            let mut dice = Dice::new(seed);
            (0..500).map(|_| question(&mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let distinct: std::collections::BTreeSet<_> = of(7).iter().map(Ask::bytes).collect();
        assert!(distinct.len() > 490);
    }
}
