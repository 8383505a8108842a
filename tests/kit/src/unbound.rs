//! A private Unbound that answers for zones of its own and asks nobody.

use std::fmt::Write;
use std::net::SocketAddr;

use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::ports;
use crate::program::{Program, Start};
use crate::wait::PATIENCE;

/// A running Unbound.
pub struct Unbound {
    addr: SocketAddr,
    program: Program,
    _dir: TempDir,
}

impl Unbound {
    /// Starts it with the zone `test.` static: names in it that are not in `records` do not exist. A record is a line
    /// of a zone file, `a.test. 60 IN A 192.0.2.1`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(records: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = ports::free();
        let mut conf = format!(
            "server:\n  interface: {}@{}\n  port: {}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
             directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  verbosity: 1\n  \
             num-threads: 1\n  access-control: 127.0.0.0/8 allow\n  module-config: \"iterator\"\n  \
             log-queries: yes\n  local-zone: \".\" refuse\n  local-zone: \"test.\" static\n  \
             local-data: \"test. 60 IN SOA ns.test. admin.test. 1 3600 600 86400 30\"\n",
            addr.ip(),
            addr.port(),
            addr.port(),
            dir = dir.path().display()
        );
        for record in records {
            writeln!(conf, "  local-data: '{record}'").unwrap();
        }
        conf.push_str("remote-control:\n  control-enable: no\n");
        Self::run(dir, addr, &conf).await
    }

    /// Starts it as a resolver that asks one server about everything, as the sidecar does, without checking signatures and
    /// with whole replies.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn in_front_of(server: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = ports::free();
        let conf = format!(
            "server:\n  interface: {}@{port}\n  port: {port}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
             directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  verbosity: 0\n  num-threads: \
             1\n  access-control: 127.0.0.0/8 allow\n  module-config: \"iterator\"\n  do-not-query-localhost: no\n  \
             edns-buffer-size: 1232\n  max-udp-size: 1232\n  minimal-responses: no\n  rrset-roundrobin: no\n  \
             cache-max-ttl: 300\n  cache-max-negative-ttl: 30\n  num-queries-per-thread: 4096\n  outgoing-range: \
             8192\n  so-rcvbuf: 4m\n  local-zone: \"test.\" nodefault\n  local-zone: \"invalid.\" nodefault\nforward-zone:\n  \
             name: \".\"\n  forward-addr: {}@{}\nremote-control:\n  control-enable: no\n",
            addr.ip(),
            server.ip(),
            server.port(),
            port = addr.port(),
            dir = dir.path().display()
        );
        Self::run(dir, addr, &conf).await
    }

    async fn run(dir: TempDir, addr: SocketAddr, conf: &str) -> Self {
        let path = dir.path().join("unbound.conf");
        std::fs::write(&path, conf).unwrap();
        let mut program = Start::new("unbound").args(["-d", "-p", "-c"]).arg(path).spawn(dir.path());
        crate::eventually(PATIENCE, "Unbound answers", async || {
            if let Some(status) = program.ended() {
                panic!("unbound ended: {status}\n{}", program.log());
            }
            crate::dns::ask(addr, "test.", RecordType::SOA).await.ok()
        })
        .await;
        Self { addr, program, _dir: dir }
    }

    /// Where it listens, UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many queries for a name in lower case it has seen, in whatever case they were.
    pub fn queries(&self, name: &str) -> usize {
        let name = format!(" {name} ");
        self.program.log().lines().filter(|line| line.to_ascii_lowercase().contains(&name)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_for_its_zone() {
        crate::needs_program!("unbound");
        let unbound = Unbound::start(&["a.test. 60 IN A 192.0.2.1"]).await;
        let answer = crate::dns::ask(unbound.addr(), "a.test.", RecordType::A).await.unwrap();
        assert_eq!(crate::dns::addresses(&answer), ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        let answer = crate::dns::ask_tcp(unbound.addr(), "none.test.", RecordType::A).await.unwrap();
        assert!(answer.answers.is_empty());
        assert_eq!(unbound.queries("a.test."), 1);
    }
}
