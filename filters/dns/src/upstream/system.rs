//! The name servers of the host (resolv.conf(5)).

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::server::Server;

/// Where they are written.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long a reading is good for: a lease or a VPN may change the file at any time.
const FRESH: Duration = Duration::from_secs(2);
/// More servers than this are of no use within the time that a query has.
const MOST: usize = 8;
/// More of the file is not read.
const MAX_FILE: u64 = 64 << 10;

/// The servers of a resolv.conf, read again when they are needed.
#[derive(Debug)]
pub(super) struct SystemServers {
    path: PathBuf,
    last: Mutex<Reading>,
}

#[derive(Clone, Debug, Default)]
struct Reading {
    at: Option<Instant>,
    servers: Vec<Server>,
}

impl SystemServers {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), last: Mutex::default() }
    }

    /// The servers in the file's order; those of the last reading that succeeded when the file cannot be read.
    pub(super) async fn servers(&self) -> Vec<Server> {
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        {
            let mut last = lock();
            let fresh = last.at.is_some_and(|at| now.saturating_duration_since(at) < FRESH);
            if fresh {
                return last.servers.clone();
            }
            // One query reads and the others go on with what there is, unless there is nothing yet.
            if last.at.is_some() {
                last.at = Some(now);
            }
        }
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let mut last = lock();
        last.at = Some(now);
        match read.unwrap_or_else(|why| Err(io::Error::other(why))) {
            Ok(servers) => last.servers = servers,
            Err(why) => {
                tracing::warn!(file = %self.path.display(), error = %why, "cannot read the host's name servers");
            }
        }
        last.servers.clone()
    }
}

fn read(path: &Path) -> io::Result<Vec<Server>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The servers that a resolv.conf names. Link-local addresses with a zone are left out.
fn parse(text: &str) -> Vec<Server> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    addresses.map(|ip: std::net::IpAddr| ip.into()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_the_other_lines() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1 # first\n\
            nameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.8\noptions edns0\n";
        let servers: Vec<_> = parse(text).iter().map(Server::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_is_read_again_and_the_last_servers_stay_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let system = SystemServers::new(&path);
        assert_eq!(system.servers().await, []);
        let first: Server = "192.0.2.1".parse().unwrap();
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        tokio::time::advance(FRESH).await;
        assert_eq!(system.servers().await, std::slice::from_ref(&first));
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(FRESH).await;
        assert_eq!(system.servers().await, [first]);
    }
}
