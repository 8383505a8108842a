//! Network namespaces and the cables between them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program::{Finished, Start};
use crate::wait::PATIENCE;

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A network namespace of its own, removed with everything in it on drop.
///
/// Its name begins with `qk-` and the process id of the test, so that `tests/run` can remove what a killed test
/// left behind.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Whether namespaces can be made here; if not, why.
    ///
    /// # Errors
    /// When they cannot, with what `ip` said.
    pub fn available() -> Result<(), String> {
        let name = fresh();
        run(&["netns", "add", &name]).map_err(|why| format!("no network namespaces here: {why}"))?;
        run(&["netns", "del", &name]).map(|_| ())
    }

    /// A new namespace with its loopback up.
    ///
    /// # Panics
    /// When it cannot be made; ask [`available`](Self::available) first.
    #[expect(clippy::new_without_default, reason = "it makes something outside the process")]
    pub fn new() -> Self {
        let name = fresh();
        run(&["netns", "add", &name]).unwrap();
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lays a cable to `other`. The ends get the addresses, written as `10.0.0.1/24` or `fd00::1/64`; several
    /// are separated by commas.
    pub fn connect(&self, address: &str, other: &Self, other_address: &str) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = format!("q{}x{number}", std::process::id() % 1_000_000);
        let (near, far) = (format!("{base}a"), format!("{base}b"));
        let cable = ["link", "add", &near, "netns", &self.name, "type", "veth", "peer", "name", &far];
        run(&[&cable[..], &["netns", &other.name]].concat()).unwrap();
        self.plug(&near, address);
        other.plug(&far, other_address);
        self.wait_for(address);
        other.wait_for(other_address);
    }

    /// Gives a device inside its addresses, written as for [`connect`](Self::connect), and brings it up.
    ///
    /// # Panics
    /// When `ip` refuses.
    pub fn plug(&self, device: &str, addresses: &str) {
        for address in addresses.split(',') {
            let mut words = vec!["addr", "add", address, "dev", device];
            if address.contains(':') {
                // Duplicate address detection would keep the address unusable for a second.
                words.push("nodad");
            }
            self.ip(&words);
        }
        self.ip(&["link", "set", device, "up"]);
    }

    /// Waits until packets to these addresses of an end whose both sides are up are taken. The kernel makes an address
    /// of IPv6 reachable some time after the commands that add it, and drops what comes before.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for(&self, addresses: &str) {
        let start = Instant::now();
        for address in addresses.split(',').filter(|address| address.contains(':')) {
            let host = address.split('/').next().unwrap_or_default();
            let args = ["-n", &self.name, "-6", "route", "show", "table", "local", host];
            while run(&args).unwrap().is_empty() {
                assert!(start.elapsed() < PATIENCE, "{host} does not become an address of {}", self.name);
            }
        }
    }

    /// `ip ARGS` inside.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, args: &[&str]) {
        run(&[&["-n", &self.name], args].concat()).unwrap();
    }

    /// Runs `work` inside, on a thread of its own. Sockets and devices that it makes stay in the namespace wherever
    /// they are used later.
    ///
    /// # Errors
    /// When the namespace cannot be entered, which needs root.
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let place = File::open(format!("/run/netns/{}", self.name))?;
        // The thread that enters a namespace stays there.
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                enter(&place)?;
                Ok(work())
            });
            entered.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a program inside, to its end.
    pub async fn run(&self, program: &str, args: &[&str]) -> Finished {
        Start::new(program).args(args).in_namespace(Some(self)).output().await
    }
}

/// Moves the thread, for good, into the namespace of a file as `/run/netns/NAME`.
///
/// # Errors
/// When the system refuses, which it does to all but root.
pub fn enter(place: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(&["netns", "del", &self.name]);
    }
}

fn fresh() -> String {
    format!("qk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn run(args: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn two_namespaces_see_each_other_and_nobody_else() {
        crate::needs_namespaces!();
        let (one, two) = (Namespace::new(), Namespace::new());
        one.connect("10.91.0.1/24", &two, "10.91.0.2/24");
        assert!(one.run("ip", &["route", "get", "10.91.0.2"]).await.ok().contains("10.91.0.2 dev"));
        assert_ne!(one.run("ip", &["route", "get", "10.92.0.2"]).await.code, 0);
    }

    #[test]
    fn a_socket_made_inside_stays_inside() {
        crate::needs_namespaces!();
        if !crate::program::is_root() {
            crate::skip!("entering a namespace needs root");
        }
        let (one, two) = (Namespace::new(), Namespace::new());
        one.connect("10.91.0.1/24", &two, "10.91.0.2/24");
        let bind = || UdpSocket::bind("10.91.0.1:0");
        assert!(one.inside(bind).unwrap().is_ok());
        assert!(two.inside(bind).unwrap().is_err());
        assert!(bind().is_err());
    }
}
