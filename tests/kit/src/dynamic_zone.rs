//! A zone that takes signed updates, served by a real authoritative server: Knot.

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
pub struct DynamicZone {
    addr: SocketAddr,
    namespace: Option<String>,
    program: Option<Program>,
    dir: TempDir,
}

impl DynamicZone {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_for_its_zone_and_comes_back() {
        crate::needs_program!("knotd");
        let mut knot = DynamicZone::start(&["a A 192.0.2.1", "a AAAA 2001:db8::1"]).await;
        assert_eq!(knot.addresses("a.example.test.").await.unwrap(), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(knot.serial().await, 1);
        knot.pause();
        knot.resume().await;
        assert_eq!(knot.addresses("a.example.test.").await.unwrap().len(), 2);
    }
}
