//! What is said when the sidecar starts with the built-in defaults: where it listens, what it waits for, what to try.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use qudag_filter_api::Address;

use super::args::Common;
use super::local;
use super::output::{Tone, cell, colour_on_stderr, columns, plain};
use crate::config::NodeConfig;
use crate::control::Status;

/// How long a look at the node may take.
const PROBE: Duration = Duration::from_millis(100);

/// Called with the status and the address of the admin API.
type Greeting = Box<dyn FnOnce(&Status, &str)>;

/// Prints the banner to standard error when everything listens; nothing for a run with a file of one's own.
pub(super) fn for_run(common: &Common) -> Option<Greeting> {
    if common.config.is_some() {
        return None;
    }
    // What is wrong here, a variable for instance, is wrong for the run too, and said there.
    let node = local::load(None).ok()?.config.node;
    Some(Box::new(move |status, admin| {
        let text = banner(status, admin, &absent(&node), colour_on_stderr());
        let _ = std::io::stderr().write_all(text.as_bytes());
    }))
}

/// The parts of the node that do not answer now.
fn absent(node: &NodeConfig) -> Vec<(&'static str, Address)> {
    let parts = [
        ("p2p", Address::Tcp(node.p2p.clone())),
        ("rpc", node.rpc.clone()),
        ("http", Address::Tcp(node.http.clone())),
    ];
    parts.into_iter().filter(|(_, address)| !answers(address)).collect()
}

fn answers(address: &Address) -> bool {
    match address {
        Address::Tcp(tcp) => match tcp.socket_addr() {
            Some(addr) => TcpStream::connect_timeout(&addr, PROBE).is_ok(),
            // Looking up a name may take long; the sidecar does it when the name is needed.
            None => true,
        },
        Address::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

fn banner(status: &Status, admin: &str, absent: &[(&str, Address)], colour: bool) -> String {
    let mut text = format!("\nqudag-sidecar {} runs with the built-in defaults.\n\n", status.version);
    let listeners = status.listeners.iter().map(|l| (format!("{} {}", l.kind, l.name), l.addr.to_string()));
    let rows = listeners.chain([("admin".to_owned(), admin.to_owned())]).map(|(name, address)| {
        // Most kinds have one listener, of the same name.
        let name = match name.split_once(' ') {
            Some((kind, name)) if kind == name => kind.to_owned(),
            _ => name,
        };
        vec![plain(""), cell(name, Tone::Head), plain(address)]
    });
    text += &columns(rows.collect(), colour);
    if !absent.is_empty() {
        let parts: Vec<_> = absent.iter().map(|(part, address)| format!("{part} at {address}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{} the node does not answer yet ({}).\nIt is used as soon as it does; nothing needs a restart.",
            cell("Waiting:", Tone::Warn).paint(colour),
            parts.join(", ")
        );
    }
    text += "\nTry:\n";
    let tcp = |kind: &str| {
        status.listeners.iter().filter(|listener| listener.kind == kind).find_map(|listener| match &listener
            .addr
        {
            Address::Tcp(tcp) => Some(tcp.clone()),
            Address::Unix(_) => None,
        })
    };
    if let Some(dns) = tcp("dns") {
        let _ = writeln!(text, "  dig @{} -p {} localhost", dns.host, dns.port);
    }
    if let Some(http) = tcp("http") {
        let _ = writeln!(text, "  curl -i http://{http}/health");
    }
    text += "  qudag-sidecar status\n  qudag-sidecar check\n  qudag-sidecar init      a configuration file to start from\n\n";
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::control::{ConfigOrigin, ConfigStatus, ListenerStatus};

    fn status() -> Status {
        let listener = |kind, name: &str, addr: &str| ListenerStatus {
            kind,
            name: name.into(),
            addr: addr.parse().unwrap(),
        };
        Status {
            version: "0.1.0",
            pid: 1,
            node: "n".into(),
            uptime_seconds: 0,
            generation: 1,
            draining_generations: 0,
            bypass: false,
            draining: false,
            config: ConfigStatus {
                source: "embedded".into(),
                origin: ConfigOrigin::Embedded,
                fingerprint: String::new(),
                since: SystemTime::UNIX_EPOCH,
                refused: None,
            },
            capture: None,
            settings: Vec::new(),
            listeners: vec![
                listener("dns", "dns", "127.0.0.1:5300"),
                listener("peer", "inbound-0", "127.0.0.1:4001"),
                listener("http", "http", "[::1]:8180"),
            ],
            filters: Vec::new(),
        }
    }

    #[test]
    fn it_says_where_what_is_missing_and_what_to_try() {
        let absent = [("p2p", "127.0.0.1:8000".parse().unwrap())];
        let expected = "
qudag-sidecar 0.1.0 runs with the built-in defaults.

  dns             127.0.0.1:5300
  peer inbound-0  127.0.0.1:4001
  http            [::1]:8180
  admin           127.0.0.1:9901

Waiting: the node does not answer yet (p2p at 127.0.0.1:8000).
It is used as soon as it does; nothing needs a restart.

Try:
  dig @127.0.0.1 -p 5300 localhost
  curl -i http://[::1]:8180/health
  qudag-sidecar status
  qudag-sidecar check
  qudag-sidecar init      a configuration file to start from

";
        assert_eq!(banner(&status(), "127.0.0.1:9901", &absent, false), expected);
        assert!(!banner(&status(), "x", &[], false).contains("Waiting"));
    }

    #[test]
    fn a_run_with_a_file_has_no_banner() {
        let common = Common { config: Some("x.yaml".into()), state_dir: None };
        assert!(for_run(&common).is_none());
    }

    #[test]
    fn a_node_that_listens_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap().into();
        let gone = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().into()
        };
        let node = NodeConfig {
            p2p: here,
            http: gone,
            rpc: "unix:/nonexistent".parse().unwrap(),
            ..NodeConfig::default()
        };
        let absent: Vec<_> = absent(&node).into_iter().map(|(part, _)| part).collect();
        assert_eq!(absent, ["rpc", "http"]);
    }
}
