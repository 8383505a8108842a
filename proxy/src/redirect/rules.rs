//! The rules as data: written for `nft`, and answered for a connection without a kernel.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use qudag_filter_peer::PortRange;

/// The table that holds all rules and nothing else (nft(8)).
pub(super) const TABLE: &str = "qudag_sidecar";
/// What routes and routing rules are recognised by (`protocol` in ip-rule(8) and ip-route(8)).
pub(super) const PROTOCOL: u8 = 113;
/// The routing table that leads everything to this host, and the preference of the rule that leads there.
pub(super) const ROUTES: u32 = 7164;

/// A connection that somebody on this host begins, or a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Whether it is TCP.
    pub tcp: bool,
    /// Where it leads.
    pub to: SocketAddr,
    /// The mark of its socket.
    pub mark: u32,
    /// Whether it leads to this host itself.
    pub loopback: bool,
    /// The user, as the configuration names it.
    pub user: &'a str,
    /// The group.
    pub group: &'a str,
    /// The control group, as a path.
    pub cgroup: &'a str,
}

/// What a rule asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    NotTcp,
    Mark(u32),
    /// Of a connection in its own direction that was handed over before, marked with this.
    HandedOver(u32),
    NotTheFirst,
    Ports(Vec<PortRange>),
    OverLoopback,
    LinkLocal,
    Users(Vec<String>),
    Groups(Vec<String>),
    Cgroup(String),
    V4,
    V6,
    /// Of a connection whose destination was rewritten.
    Rewritten,
    /// It came back over loopback with this mark.
    Returned(u32),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Pass,
    MarkAgain(u32),
    Capture,
    Redirect(u16),
    HandOver(u32),
    Tproxy(SocketAddr),
    /// Answers that nobody is there.
    Reset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) tests: Vec<Test>,
    pub(super) action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// The type, hook and priority of a chain that packets enter from outside.
    pub(super) base: Option<(&'static str, &'static str, i32)>,
    pub(super) rules: Vec<Rule>,
}

/// The names of the chains.
pub(super) const OUTPUT: &str = "output";
pub(super) const CAPTURE: &str = "capture";
pub(super) const RETURNED: &str = "prerouting";

/// All rules, and the routes that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// With TPROXY: the mark of what is routed to this host, and for which families (IPv4, IPv6).
    pub(super) routed: Option<(u32, [bool; 2])>,
}

impl Ruleset {
    /// The rules as `nft -f -` takes them: one transaction that replaces what there was.
    pub fn text(&self) -> String {
        let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
        for chain in &self.chains {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\tchain {} {{", chain.name);
            if let Some((kind, hook, priority)) = chain.base {
                let _ = writeln!(text, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for rule in &chain.rules {
                let _ = writeln!(text, "\t\t{rule} comment \"{}\"", rule.comment());
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// The commands beside the rules, for people.
    pub fn commands(&self) -> Vec<String> {
        let Some((mark, families)) = self.routed else { return Vec::new() };
        let family = |(on, flag): (bool, &str)| {
            on.then(|| {
                [
                    format!("ip {flag} route replace local default dev lo table {ROUTES} proto {PROTOCOL}"),
                    format!("ip {flag} rule add pref {ROUTES} fwmark {mark:#x} lookup {ROUTES} protocol {PROTOCOL}"),
                ]
            })
        };
        families.into_iter().zip(["-4", "-6"]).filter_map(family).flatten().collect()
    }

    /// What remains of the rules for connections that were captured before and are open still: it captures no new one. Without it
    /// they would break, as the kernel translates addresses only while there is a rule for which it has to.
    #[must_use]
    pub fn for_open_connections(&self) -> Self {
        let mut kept = self.clone();
        kept.chains.retain(|chain| chain.name != CAPTURE);
        for chain in kept.chains.iter_mut().filter(|chain| chain.name == OUTPUT) {
            chain.rules.retain(|rule| rule.action != Action::Capture);
            if self.routed.is_none() {
                let tests = vec![Test::Rewritten];
                chain.rules = vec![Rule { name: "open-connections", tests, action: Action::Pass }];
            }
        }
        kept
    }

    /// Each chain with what its rules are recognised by.
    pub(super) fn outline(&self) -> Vec<(String, Vec<String>)> {
        let rules = |chain: &Chain| chain.rules.iter().map(Rule::comment).collect();
        self.chains.iter().map(|chain| (chain.name.to_owned(), rules(chain))).collect()
    }

    /// The port at which a connection is captured; `None` when it goes its own way.
    pub fn captures(&self, attempt: &Attempt<'_>) -> Option<u16> {
        let mut chain = OUTPUT;
        'chains: loop {
            let rules = &self.chains.iter().find(|it| it.name == chain)?.rules;
            for rule in rules.iter().filter(|rule| rule.tests.iter().all(|test| test.fits(attempt))) {
                match &rule.action {
                    Action::Pass | Action::MarkAgain(_) => return None,
                    Action::Redirect(port) => return Some(*port),
                    Action::Capture => {
                        chain = CAPTURE;
                        continue 'chains;
                    }
                    Action::HandOver(mark) => return self.returned(*mark, attempt),
                    Action::Tproxy(_) | Action::Reset => {}
                }
            }
            return None;
        }
    }

    /// Where a packet ends that comes back over loopback.
    fn returned(&self, mark: u32, attempt: &Attempt<'_>) -> Option<u16> {
        let attempt = Attempt { mark, ..*attempt };
        let chain = self.chains.iter().find(|chain| chain.name == RETURNED)?;
        let rule = chain.rules.iter().find(|rule| rule.tests.iter().all(|test| test.fits(&attempt)))?;
        match rule.action {
            Action::Tproxy(to) => Some(to.port()),
            _ => None,
        }
    }
}

impl Test {
    /// Whether it holds for the first packet of an attempt.
    fn fits(&self, attempt: &Attempt<'_>) -> bool {
        let is = |names: &[String], name: &str| names.iter().any(|it| it == name);
        match self {
            Self::NotTcp => !attempt.tcp,
            Self::Mark(mark) | Self::Returned(mark) => attempt.mark == *mark,
            Self::HandedOver(_) | Self::NotTheFirst | Self::Rewritten => false,
            Self::Ports(ports) => attempt.tcp && ports.iter().any(|ports| ports.contains(attempt.to.port())),
            Self::OverLoopback => attempt.loopback,
            Self::LinkLocal => match attempt.to.ip() {
                IpAddr::V4(_) => false,
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            },
            Self::Users(names) => is(names, attempt.user),
            Self::Groups(names) => is(names, attempt.group),
            Self::Cgroup(path) => {
                attempt.cgroup.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::V4 => attempt.to.is_ipv4(),
            Self::V6 => attempt.to.is_ipv6(),
        }
    }
}

impl Rule {
    /// What it is recognised by in the kernel: its name and a digest of what it says.
    pub(super) fn comment(&self) -> String {
        let digest = blake3::hash(self.to_string().as_bytes()).to_hex();
        format!("{} {}", self.name, digest.get(..12).unwrap_or_default())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for test in &self.tests {
            write!(f, "{test} ")?;
        }
        self.action.fmt(f)
    }
}

/// A set as `nft` writes it.
fn set<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

/// Accounts: numbers, and names in quotes. The configuration's check lets nothing pass that could end a quote.
fn accounts(names: &[String]) -> String {
    let quoted = |name: &String| match name.parse::<u32>() {
        Ok(number) => number.to_string(),
        Err(_) => format!("\"{name}\""),
    };
    set(&names.iter().map(quoted).collect::<Vec<_>>())
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#x}"),
            Self::HandedOver(mark) => write!(f, "ct direction original ct mark {mark:#x}"),
            Self::Rewritten => f.write_str("ct status dnat"),
            Self::NotTheFirst => f.write_str("tcp flags & (fin | syn | rst | ack) != syn"),
            Self::Ports(ports) => write!(f, "tcp dport {}", set(ports)),
            Self::OverLoopback => f.write_str("oifname \"lo\""),
            Self::LinkLocal => f.write_str("ip6 daddr fe80::/10"),
            Self::Users(names) => write!(f, "meta skuid {}", accounts(names)),
            Self::Groups(names) => write!(f, "meta skgid {}", accounts(names)),
            Self::Cgroup(path) => {
                // Where both versions are mounted, `nft` sees the second one in this folder, which is no level of it.
                let level = path.strip_prefix("unified/").unwrap_or(path).split('/').count();
                write!(f, "socket cgroupv2 level {level} \"{path}\"")
            }
            Self::V4 => f.write_str("meta nfproto ipv4"),
            Self::V6 => f.write_str("meta nfproto ipv6"),
            Self::Returned(mark) => write!(f, "iifname \"lo\" meta l4proto tcp meta mark {mark:#x}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("return"),
            Self::MarkAgain(mark) => write!(f, "meta mark set {mark:#x} return"),
            Self::Capture => write!(f, "goto {CAPTURE}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::HandOver(mark) => write!(f, "ct mark set {mark:#x} meta mark set {mark:#x} return"),
            Self::Tproxy(to) => {
                let family = if to.is_ipv4() { "ip" } else { "ip6" };
                match to.ip() {
                    ip if ip.is_unspecified() => write!(f, "tproxy {family} to :{} accept", to.port()),
                    IpAddr::V4(ip) => write!(f, "tproxy {family} to {ip}:{} accept", to.port()),
                    IpAddr::V6(ip) => write!(f, "tproxy {family} to [{ip}]:{} accept", to.port()),
                }
            }
        }
    }
}
