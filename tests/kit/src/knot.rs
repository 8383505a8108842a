//! A real authoritative server: Knot, with one zone that takes signed updates.

use std::net::SocketAddr;

use hickory_proto::rr::{Name, RData, RecordType};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::ports;
use crate::program::{Program, Start};
use crate::wait::PATIENCE;

/// The name of the key that Knot knows.
pub const KEY: &str = "sidecar-key";
/// Its secret in base64, for `hmac-sha256`.
pub const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A running Knot with the zone `example.test.`; killed on drop.
pub struct Knot {
    addr: SocketAddr,
    namespace: Option<String>,
    program: Option<Program>,
    dir: TempDir,
}

impl Knot {
    /// Starts it on a free port of loopback. `records` are lines of a zone file, below the zone where they have no dot at their end.
    pub async fn start(records: &[&str]) -> Self {
        let mut knot = Self::prepare(ports::free(), None, records);
        knot.resume().await;
        knot
    }

    /// Starts it on an address of a namespace.
    pub async fn within(namespace: &Namespace, addr: SocketAddr, records: &[&str]) -> Self {
        let mut knot = Self::prepare(addr, Some(namespace.name().to_owned()), records);
        knot.resume().await;
        knot
    }

    fn prepare(addr: SocketAddr, namespace: Option<String>, records: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("qk").tempdir().unwrap();
        let path = dir.path().display();
        let conf = format!(
            "server:\n  rundir: \"{path}\"\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\ndatabase:\n  storage: \"{path}\"\nlog:\n  - target: stdout\n    any: info\n\
             key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\nacl:\n  - id: update\n    \
             key: {KEY}\n    action: update\n    update-owner: name\n    update-owner-match: equal\n    \
             update-owner-name: [rpc]\n    update-type: [A, AAAA]\nzone:\n  - domain: example.test\n    storage: \"{path}\"\n    file: \
             zone\n    acl: update\n    zonefile-sync: 0\n    journal-content: changes\n",
            ip = addr.ip(),
            port = addr.port(),
        );
        std::fs::write(dir.path().join("knot.conf"), conf).unwrap();
        let zone = format!(
            "$ORIGIN example.test.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\nns A 192.0.2.53\n{}\n",
            records.join("\n")
        );
        std::fs::write(dir.path().join("zone"), zone).unwrap();
        Self { addr, namespace, program: None, dir }
    }

    /// Kills it.
    pub fn pause(&mut self) {
        self.program = None;
    }

    /// Starts it again, with the zone as it was.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn resume(&mut self) {
        let mut start = Start::new("knotd").arg("-c").arg(self.dir.path().join("knot.conf"));
        if let Some(namespace) = &self.namespace {
            start = start.in_namespace_named(namespace);
        }
        let mut program = start.spawn(self.dir.path());
        let ready = |line: &str| line.contains("server started").then_some(());
        program.wait_for_log("started", ready).await;
        if self.namespace.is_none() {
            crate::eventually(PATIENCE, "Knot answers", async || {
                crate::dns::ask(self.addr, "example.test.", RecordType::SOA).await.ok()
            })
            .await;
        }
        self.program = Some(program);
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

    /// The serial number of the zone.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn serial(&self) -> u32 {
        let answer = crate::dns::ask(self.addr, "example.test.", RecordType::SOA).await.unwrap();
        match &answer.answers[0].data {
            RData::SOA(soa) => soa.serial,
            other => panic!("{other:?}"),
        }
    }

    /// The addresses of both families of a name in the zone, sorted.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn addresses(&self, name: &str) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for rtype in [RecordType::A, RecordType::AAAA] {
            let answer = crate::dns::ask(self.addr, &Name::from_utf8(name).unwrap().to_utf8(), rtype).await?;
            found.extend(crate::dns::addresses(&answer).iter().map(ToString::to_string));
        }
        found.sort();
        Ok(found)
    /// Its log so far.
    pub fn log(&self) -> String {
        self.program.log()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_for_its_zone_and_comes_back() {
        crate::needs_program!("knotd");
        let mut knot = Knot::start(&["a A 192.0.2.1", "a AAAA 2001:db8::1"]).await;
        assert_eq!(knot.addresses("a.example.test.").await.unwrap(), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(knot.serial().await, 1);
        knot.pause();
        knot.resume().await;
        assert_eq!(knot.addresses("a.example.test.").await.unwrap().len(), 2);
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
