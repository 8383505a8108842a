//! From the configuration to the rules, and what is refused because it would cut somebody off.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use qudag_filter_api::{Address, ConfigError, ConfigPath, HostPort};
use qudag_filter_peer::{Capture, CaptureMode, PeerListener, PortRange};

use super::rules::{Action, Attempt, CAPTURE, Chain, OUTPUT, RETURNED, Rule, Ruleset, Test};
use crate::config::Config;

/// Where destinations are rewritten, and where packets are marked before they are routed (nft(8), "priority").
const DSTNAT: i32 = -100;
const MANGLE: i32 = -150;

/// The rules that a configuration asks for; `None` without `listeners.peer.capture`.
///
/// # Errors
/// When they would capture what must not be captured, in words.
pub fn wanted(config: &Config) -> Result<Option<Ruleset>, String> {
    let Some(peer) = &config.listeners.peer else { return Ok(None) };
    let Some(capture) = &peer.capture else { return Ok(None) };
    let rules = ruleset(capture, &protected(config, peer, capture));
    // The check of the configuration has refused this before, by comparing ports; here the rules themselves are asked.
    for Protected { port, what, tcp } in protected(config, peer, capture) {
        if captures_anywhere(&rules, capture, port, tcp) {
            return Err(format!("the rules would capture port {port}, {what}"));
        }
    }
    Ok(Some(rules))
}

/// What must never be captured.
struct Protected {
    port: u16,
    /// What it is, after "port N is".
    what: &'static str,
    tcp: bool,
}

/// The ports by which this host and this sidecar are managed, and over which the tunnel goes.
fn protected(config: &Config, peer: &PeerListener, capture: &Capture) -> Vec<Protected> {
    let mut all = Vec::new();
    if let Address::Tcp(HostPort { port, .. }) = config.admin.bind
        && port != 0
    {
        all.push(Protected { port, what: "the sidecar's admin API (admin.bind)", tcp: true });
    }
    for bind in &capture.bind {
        let what = "the listener of captured connections itself (capture.bind)";
        all.push(Protected { port: bind.port, what, tcp: true });
    }
    let own = peer.quic.iter().map(|quic| (quic, "this sidecar's tunnel, over UDP (listeners.peer.quic)"));
    let sidecars = peer.outbound.iter().filter_map(|outbound| outbound.sidecar.as_ref());
    let theirs = sidecars
        .flat_map(|sidecar| &sidecar.to)
        .map(|to| (to, "the tunnel to a peer's sidecar, over UDP (outbound[].sidecar.to)"));
    for (address, what) in own.chain(theirs).filter(|(address, _)| address.port != 0) {
        all.push(Protected { port: address.port, what, tcp: false });
    }
    all
}

/// Every way in which the capture of a configuration would cut somebody off.
pub fn check(config: &Config) -> Vec<ConfigError> {
    let Some(peer) = &config.listeners.peer else { return Vec::new() };
    let Some(capture) = &peer.capture else { return Vec::new() };
    let at = ConfigPath::root().key("listeners").key("peer").key("capture");
    let mut errors = Vec::new();
    for (index, ports) in capture.ports.iter().enumerate() {
        let at = at.key("ports").index(index);
        let mut refuse = |taken: PortRange, why: String| {
            let error = at.error(format!("{why}; it must not be captured"));
            errors.push(error.hint(left(*ports, taken)));
        };
        for Protected { port, what, tcp } in protected(config, peer, capture) {
            // Nodes may listen on the port, over TCP, that the tunnel has over UDP.
            let of_a_node = !tcp && peer.outbound.iter().any(|outbound| outbound.to.port == port);
            if ports.contains(port) && !of_a_node {
                refuse(PortRange { first: port, last: port }, format!("port {port} is {what}"));
            }
        }
        for kept in &capture.protect {
            if ports.first <= kept.last && kept.first <= ports.last {
                refuse(*kept, format!("{kept} is protected (capture.protect): by it the host is managed"));
            }
        }
    }
    if capture.mode == CaptureMode::Redirect {
        for (index, bind) in capture.bind.iter().enumerate() {
            let reached = |ip: IpAddr| {
                ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == std::net::Ipv6Addr::LOCALHOST
            };
            if bind.socket_addr().is_some_and(|addr| !reached(addr.ip())) {
                let error = at.key("bind").index(index).error("redirected connections do not come here");
                errors.push(error.hint("127.0.0.1 or [::1]; only with `mode: tproxy` another address"));
            }
        }
    }
    if capture.manage_rules && capture.bind.is_empty() {
        errors
            .push(at.key("manage_rules").error("there is no rule to manage").hint("add `bind` and `ports`"));
    }
    errors
}

/// What may be captured instead.
fn left(ports: PortRange, taken: PortRange) -> String {
    let below = taken.first.checked_sub(1).filter(|last| *last >= ports.first);
    let above = taken.last.checked_add(1).filter(|first| *first <= ports.last);
    let below = below.map(|last| PortRange { first: ports.first, last }.to_string());
    let above = above.map(|first| PortRange { first, last: ports.last }.to_string());
    let parts: Vec<_> = below.into_iter().chain(above).map(|part| format!("\"{part}\"")).collect();
    if parts.is_empty() { "leave it out".to_owned() } else { format!("leave it out: {}", parts.join(", ")) }
}

/// Whether a connection to a port is captured for anybody, wherever it leads.
fn captures_anywhere(rules: &Ruleset, capture: &Capture, port: u16, tcp: bool) -> bool {
    let first = |names: &[String]| names.first().cloned().unwrap_or_default();
    let owner = &capture.owner;
    let (user, group, cgroup) = (first(&owner.users), first(&owner.groups), first(&owner.cgroups));
    let hosts = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    hosts.into_iter().flat_map(|ip| [(ip, false), (ip, true)]).any(|(ip, loopback)| {
        let to = SocketAddr::new(ip, port);
        let attempt = Attempt { tcp, to, mark: 0, loopback, user: &user, group: &group, cgroup: &cgroup };
        rules.captures(&attempt).is_some()
    })
}

fn rule(name: &'static str, tests: Vec<Test>, action: Action) -> Rule {
    Rule { name, tests, action }
}

fn ruleset(capture: &Capture, protected: &[Protected]) -> Ruleset {
    let own = capture.mark.0;
    // What is handed over needs a mark of its own: packets with that of the sidecar are left alone.
    let handed = own + 1;
    let tproxy = capture.mode == CaptureMode::Tproxy;

    let mut output = vec![
        rule("not-tcp", vec![Test::NotTcp], Action::Pass),
        rule("own-sockets", vec![Test::Mark(own)], Action::Pass),
    ];
    if tproxy {
        output.extend([
            rule("handed-over", vec![Test::HandedOver(handed)], Action::MarkAgain(handed)),
            // Connections from before these rules stay what they are, and so do answers to those that came from outside.
            rule("not-new", vec![Test::NotTheFirst], Action::Pass),
        ]);
    }
    let mut kept = capture.protect.clone();
    kept.extend(protected.iter().filter(|it| it.tcp).map(|it| PortRange { first: it.port, last: it.port }));
    output.push(rule("protected", vec![Test::Ports(merged(kept))], Action::Pass));
    // Their interface is a part of them, and nobody could tell it.
    output.push(rule("link-local", vec![Test::LinkLocal], Action::Pass));
    if !capture.loopback {
        output.push(rule("this-host", vec![Test::OverLoopback], Action::Pass));
    }
    let owner = &capture.owner;
    if owner.is_anybody() {
        output.push(rule("anybody", Vec::new(), Action::Capture));
    }
    if !owner.users.is_empty() {
        output.push(rule("users", vec![Test::Users(owner.users.clone())], Action::Capture));
    }
    if !owner.groups.is_empty() {
        output.push(rule("groups", vec![Test::Groups(owner.groups.clone())], Action::Capture));
    }
    for path in &owner.cgroups {
        output.push(rule("cgroup", vec![Test::Cgroup(path.clone())], Action::Capture));
    }

    let binds: Vec<SocketAddr> = capture.bind.iter().filter_map(HostPort::socket_addr).collect();
    let ports = merged(capture.ports.clone());
    let family = |to: &SocketAddr| if to.is_ipv4() { ("ipv4", Test::V4) } else { ("ipv6", Test::V6) };
    let captured = binds.iter().map(|to| {
        let (name, family) = family(to);
        let action = if tproxy { Action::HandOver(handed) } else { Action::Redirect(to.port()) };
        rule(name, vec![family, Test::Ports(ports.clone())], action)
    });
    let base = if tproxy { ("route", "output", MANGLE) } else { ("nat", "output", DSTNAT) };
    // A chain has to be there before another one goes to it.
    let mut chains = vec![
        Chain { name: CAPTURE, base: None, rules: captured.collect() },
        Chain { name: OUTPUT, base: Some(base), rules: output },
    ];
    if tproxy {
        let returned = binds.iter().map(|to| {
            let (name, family) = family(to);
            rule(name, vec![family, Test::Returned(handed)], Action::Tproxy(*to))
        });
        // Reached where nobody listens: the node is told so, instead of waiting for an answer.
        let nobody = rule("nobody-listens", vec![Test::Returned(handed)], Action::Reset);
        let rules = returned.chain(std::iter::once(nobody)).collect();
        let base = Some(("filter", "prerouting", MANGLE));
        chains.push(Chain { name: RETURNED, base, rules });
    }
    let has = |v4: bool| binds.iter().any(|to| to.is_ipv4() == v4);
    Ruleset { chains, routed: tproxy.then(|| (handed, [has(true), has(false)])) }
}

/// The same ports in order, without overlaps, which sets must not have.
fn merged(mut ports: Vec<PortRange>) -> Vec<PortRange> {
    ports.sort();
    let mut merged: Vec<PortRange> = Vec::new();
    for next in ports {
        match merged.last_mut() {
            Some(last) if u32::from(next.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(next.last)
            }
            _ => merged.push(next),
        }
    }
    merged
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
