//! A private Knot DNS: a real authoritative server with zones of its own.

use std::fmt::Write;
use std::net::SocketAddr;

use tempfile::TempDir;

use crate::dns_wire::{Ask, View, rtype};
use crate::program::{Program, Start};
use crate::wait::PATIENCE;
use crate::{dns, ports};

/// A zone of the server.
#[derive(Clone, Debug)]
pub struct Zone<'a> {
    /// Its name, with the dot at the end.
    pub name: &'a str,
    /// The zone file (RFC 1035 section 5.1), SOA and NS records included.
    pub text: &'a str,
    /// Whether the server signs it (RFC 4033), with keys that it makes itself.
    pub signed: bool,
}

impl<'a> Zone<'a> {
    /// A zone that is not signed.
    pub fn new(name: &'a str, text: &'a str) -> Self {
        Self { name, text, signed: false }
    }

    /// The same zone, signed.
    #[must_use]
    pub fn signed(self) -> Self {
        Self { signed: true, ..self }
    }
}

/// A running Knot DNS.
pub struct Knot {
    addr: SocketAddr,
    program: Program,
    _dir: TempDir,
}

impl Knot {
    /// Starts it with these zones and waits until it serves all of them.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(zones: &[Zone<'_>]) -> Self {
        let dir = tempfile::Builder::new().prefix("knot").tempdir().unwrap();
        let addr = ports::free();
        let place = dir.path().display();
        let mut conf = format!(
            "server:\n  rundir: \"{place}\"\n  listen: \"{}@{}\"\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\n  udp-max-payload: 4096\nlog:\n  - target: stderr\n    any: notice\ndatabase:\n  \
             storage: \"{place}\"\npolicy:\n  - id: fast\n    algorithm: ecdsap256sha256\n    single-type-signing: \
             on\ntemplate:\n  - id: default\n    storage: \"{place}\"\n    zonefile-sync: -1\nzone:\n",
            addr.ip(),
            addr.port()
        );
        for (number, zone) in zones.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{number}.zone")), zone.text).unwrap();
            let (name, signed) = (zone.name, if zone.signed { "on" } else { "off" });
            write!(conf, "  - domain: \"{name}\"\n    file: \"{number}.zone\"\n").unwrap();
            write!(conf, "    dnssec-signing: {signed}\n    dnssec-policy: fast\n").unwrap();
        }
        let path = dir.path().join("knot.conf");
        std::fs::write(&path, conf).unwrap();
        let mut program = Start::new("knotd").arg("-c").arg(path).spawn(dir.path());
        for zone in zones {
            let ask = Ask::new(zone.name, rtype::SOA).bytes();
            crate::eventually(PATIENCE, "Knot serves its zones", async || {
                if let Some(status) = program.ended() {
                    panic!("knotd ended: {status}\n{}", program.log());
                }
                let reply = dns::exchange_udp(addr, &ask).await.ok()?;
                let reply = View::read(&reply).unwrap();
                assert!(reply.rcode() != 2 || program.ended().is_none(), "{}", program.log());
                (!reply.answers.is_empty()).then_some(())
            })
            .await;
        }
        Self { addr, program, _dir: dir }
    }

    /// Where it listens, UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.program.log()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns_wire::{Edns, flag};

    const ZONE: &str = "$ORIGIN test.\n@ 60 SOA ns admin 1 3600 600 86400 30\n@ 60 NS ns\nns 60 A 192.0.2.53\na 60 A 192.0.2.1\n";

    #[tokio::test]
    async fn it_serves_its_zones_and_signs_them() {
        crate::needs_program!("knotd");
        let signed = ZONE.replace("test.", "signed.");
        let knot = Knot::start(&[Zone::new("test.", ZONE), Zone::new("signed.", &signed).signed()]).await;
        for (name, signatures) in [("a.test.", 0), ("a.signed.", 1)] {
            let ask = Ask::new(name, rtype::A).edns(Edns::size(4096).dnssec());
            let reply = View::read(&dns::exchange_udp(knot.addr(), &ask.bytes()).await.unwrap()).unwrap();
            assert!(reply.has(flag::AA));
            assert_eq!(reply.data(rtype::A), [[192, 0, 2, 1]]);
            assert_eq!(reply.data(rtype::RRSIG).len(), signatures, "{name}");
        }
    }
}
