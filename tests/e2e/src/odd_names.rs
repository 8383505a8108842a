//! A zone with everything that is legal and rare, served by Knot, behind a sidecar with the cache and one without.

use std::fmt::Write;
use std::net::SocketAddr;

use qudag_kit::dns_wire::{Ask, View};
use qudag_kit::knot::Zone;
use qudag_kit::{Knot, TestSidecar, dns};

/// The texts of `big.odd.test.`: 240 strings of 250 bytes in one record, 60,240 bytes on the wire.
pub const BIG_STRINGS: usize = 240;
/// How many addresses `many.odd.test.` has.
pub const MANY: usize = 50;
/// How many aliases lead from `c0.odd.test.` to an address; Knot follows no more than five.
pub const LINKS: usize = 4;

/// The longest name in the zone: 255 bytes on the wire (RFC 1035 section 2.3.4).
pub fn longest() -> String {
    let label = "x".repeat(63);
    format!("{label}.{label}.{label}.{}.odd.test.", "y".repeat(52))
}

/// The zone `odd.test.`, its records with times to live of 300 s, and MINIMUM 30 s.
pub fn zone() -> String {
    let mut zone = "$ORIGIN odd.test.\n$TTL 300\n".to_owned();
    zone.push_str(
        r#"@ SOA ns admin 1 3600 600 86400 30
@ NS ns
ns A 192.0.2.53
a A 192.0.2.1
a AAAA 2001:db8::1
mixed A 192.0.2.2
xn--bcher-kva A 192.0.2.3
text TXT "some words" "and \"more\""
empty-text TXT ""
*.wild A 192.0.2.77
leaf.empty A 192.0.2.4
sp\032ace A 192.0.2.5
dot\.ted A 192.0.2.6
b\001\255 A 192.0.2.7
unknown TYPE65280 \# 6 0A0000010203
unknown-empty TYPE65281 \# 0
_sip._tcp SRV 1 2 5060 a
mail MX 10 a
mail MX 20 none
naptr NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@odd.test!" .
caa CAA 0 issue "ca.odd.test"
svc HTTPS 1 . alpn=h2,h3
tlsa TLSA 3 1 1 0000000000000000000000000000000000000000000000000000000000000000
sshfp SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789
loc LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
7 PTR a
dangling CNAME none
bare CNAME text
loop1 CNAME loop2
loop2 CNAME loop1
outside CNAME a.elsewhere.invalid.
dn DNAME deep.empty
x.deep.empty A 192.0.2.8
"#,
    );
    for link in 0..LINKS {
        writeln!(zone, "c{link} CNAME c{}", link + 1).unwrap();
    }
    writeln!(zone, "c{LINKS} A 192.0.2.10").unwrap();
    for number in 1..=MANY {
        writeln!(zone, "many A 198.51.100.{number}").unwrap();
        writeln!(zone, "many AAAA 2001:db8::{number:x}").unwrap();
    }
    for count in 1..=20 {
        for number in 1..=count * 4 {
            writeln!(zone, "n{count} A 203.0.113.{number}").unwrap();
        }
    }
    let strings = (0..BIG_STRINGS).map(|number| format!("\"{number:03}{}\"", "t".repeat(246)));
    writeln!(zone, "big TXT {}", strings.collect::<Vec<_>>().join(" ")).unwrap();
    writeln!(zone, "{} A 192.0.2.11", longest()).unwrap();
    zone
}

/// `signed.test.`, which Knot signs.
const SIGNED: &str = "$ORIGIN signed.test.\n$TTL 300\n@ SOA ns admin 1 3600 600 86400 30\n@ NS ns\nns A 192.0.2.53\na A \
                      192.0.2.21\n*.wild A 192.0.2.22\nalias CNAME a\n";

/// How a query goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// In a datagram.
    Udp,
    /// On a connection of its own.
    Tcp,
}

impl By {
    /// Sends a query and returns the bytes of the reply.
    ///
    /// # Errors
    /// When none comes.
    pub async fn exchange(self, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Udp => dns::exchange_udp(server, query).await,
            Self::Tcp => dns::exchange_tcp(server, query).await,
        }
    }
}

/// A sidecar without filters and one with the cache, in front of the same server.
pub struct Pair {
    /// No filter is on.
    pub plain: TestSidecar,
    /// The cache is on.
    pub cached: TestSidecar,
    doors: [SocketAddr; 2],
}

impl Pair {
    /// Starts both.
    pub async fn of(server: SocketAddr) -> Self {
        let yaml = |cache: bool| {
            format!(
                "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: {cache} \
                 }}\n    dns_upstream: {{ servers: [\"{server}\"] }}\n"
            )
        };
        let plain = TestSidecar::start(&yaml(false)).await;
        let cached = TestSidecar::start(&yaml(true)).await;
        let doors = [plain.listener("dns").await, cached.listener("dns").await];
        Self { plain, cached, doors }
    }

    /// Where the sidecar without filters and the one with the cache listen.
    pub fn doors(&self) -> [SocketAddr; 2] {
        self.doors
    }

    /// The reply to a query. It is asked with the cache off, twice with it on (so that the second is a hit where there
    /// can be one), and all three replies must be the same but for times to live, which only go down.
    ///
    /// # Panics
    /// When a reply is missing or malformed, belongs to another question, or depends on the cache.
    pub async fn ask(&self, by: By, ask: &Ask) -> View {
        let of = async |door| {
            let reply = by.exchange(door, &ask.bytes()).await.unwrap_or_else(|why| panic!("{ask}: {why}"));
            let view = View::read(&reply).unwrap_or_else(|why| panic!("{ask}: {why}: {reply:02x?}"));
            assert_eq!(view.id, ask.id, "{ask}: another id");
            view
        };
        let off = of(self.doors[0]).await;
        let cold = of(self.doors[1]).await;
        let warm = of(self.doors[1]).await;
        assert_eq!(
            cold.without_age(),
            off.without_age(),
            "{ask} {by:?}: the cache, still cold, changes the reply"
        );
        assert_eq!(warm.without_age(), off.without_age(), "{ask} {by:?}: the cache, warm, changes the reply");
        let oldest = |view: &View| view.answers.iter().map(|record| record.ttl).max();
        assert!(oldest(&warm) <= oldest(&cold), "{ask} {by:?}: a time to live went up");
        off
    }
}

/// Knot with both zones, behind a [`Pair`].
pub struct OddNames {
    /// The authority.
    pub knot: Knot,
    /// The sidecars.
    pub pair: Pair,
}

impl OddNames {
    /// Starts everything.
    pub async fn start() -> Self {
        let zone = zone();
        let knot =
            Knot::start(&[Zone::new("odd.test.", &zone), Zone::new("signed.test.", SIGNED).signed()]).await;
        let pair = Pair::of(knot.addr()).await;
        Self { knot, pair }
    }

    /// Where the sidecar without filters and the one with the cache listen.
    pub fn doors(&self) -> [SocketAddr; 2] {
        self.pair.doors()
    }

    /// See [`Pair::ask`].
    pub async fn ask(&self, by: By, ask: &Ask) -> View {
        self.pair.ask(by, ask).await
    }

    /// What the authority itself says.
    ///
    /// # Panics
    /// When it says nothing.
    pub async fn direct(&self, by: By, ask: &Ask) -> View {
        View::read(&by.exchange(self.knot.addr(), &ask.bytes()).await.unwrap()).unwrap()
    }
}
