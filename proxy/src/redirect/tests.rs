use proptest::prelude::*;

use super::*;

/// A configuration with these settings of the capture, in JSON, which `BOTH` begins.
fn config(capture: &str) -> Config {
    let peer = format!(
        r#"{{"quic": "0.0.0.0:4433", "capture": {{{capture}}}, "outbound": [{{"bind": "127.0.0.1:4101", "to": "192.0.2.1:4001",
            "sidecar": {{"to": ["192.0.2.1:4434"], "name": "spiffe://a/b"}}}}]}}"#
    );
    let mut config = Config::default();
    config.listeners.peer = Some(serde_json::from_str(&peer).unwrap_or_else(|why| panic!("{why} in {peer}")));
    config
}

const BOTH: &str = r#""bind": ["127.0.0.1:4180", "[::1]:4181"]"#;

fn refused(ports: &str) -> Vec<String> {
    let config = config(&format!(r#"{BOTH}, "ports": {ports}"#));
    check(&config)
        .iter()
        .map(|error| format!("{error} ({})", error.hint.as_deref().unwrap_or_default()))
        .collect()
}

#[test]
fn redirection_is_written_as_nft_reads_it() {
    let config = config(&format!(
        r#"{BOTH}, "ports": [4001, "8000-8010", 8011],
            "owner": {{"users": ["qudag", "1000"], "cgroups": ["system.slice/qudag.service"]}}"#
    ));
    let rules = wanted(&config).unwrap().unwrap();
    let comment = |chain: usize, rule: usize| rules.outline()[chain].1[rule].clone();
    let expected = format!(
        "table inet qudag_sidecar\ndelete table inet qudag_sidecar\ntable inet qudag_sidecar {{\n\tchain capture {{\n\t\tmeta \
         nfproto ipv4 tcp dport {{ 4001, 8000-8011 }} redirect to :4180 comment \"{}\"\n\t\tmeta nfproto ipv6 tcp dport {{ \
         4001, 8000-8011 }} redirect to :4181 comment \"{}\"\n\t}}\n\tchain output {{\n\t\ttype nat hook output priority -100; \
         policy accept;\n\t\tmeta l4proto != tcp return comment \"{}\"\n\t\tmeta mark 0x7164 return comment \
         \"{}\"\n\t\ttcp dport {{ 22, 4180-4181, 9901 }} return comment \"{}\"\n\t\tip6 daddr fe80::/10 return comment \"{}\"\n\t\toifname \"lo\" return comment \
         \"{}\"\n\t\tmeta skuid {{ \"qudag\", 1000 }} goto capture comment \"{}\"\n\t\tsocket cgroupv2 level 2 \
         \"system.slice/qudag.service\" goto capture comment \"{}\"\n\t}}\n}}\n",
        comment(0, 0),
        comment(0, 1),
        comment(1, 0),
        comment(1, 1),
        comment(1, 2),
        comment(1, 3),
        comment(1, 4),
        comment(1, 5),
        comment(1, 6)
    );
    assert_eq!(rules.text(), expected);
    assert!(rules.commands().is_empty());
    assert!(comment(1, 1).starts_with("own-sockets "), "{}", comment(1, 1));
}

#[test]
fn tproxy_takes_routes_and_leaves_old_connections_alone() {
    let config = config(&format!(r#"{BOTH}, "ports": [4001], "mode": "tproxy", "loopback": true"#));
    let rules = wanted(&config).unwrap().unwrap();
    let text = rules.text();
    let before = |first: &str, second: &str| {
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(place(first) < place(second), "{first} after {second} in {text}");
    };
    before("meta mark 0x7164 return", "ct direction original ct mark 0x7165 meta mark set 0x7165 return");
    before("ct direction original", "tcp flags & (fin | syn | rst | ack) != syn return");
    before("!= syn return", "tcp dport { 22, 4180-4181, 9901 } return");
    before("tcp dport { 22", "goto capture");
    assert!(text.contains("type route hook output priority -150"), "{text}");
    assert!(
        text.contains("tproxy ip to 127.0.0.1:4180 accept")
            && text.contains("tproxy ip6 to [::1]:4181 accept")
    );
    assert!(!text.contains("oifname"), "loopback is wanted: {text}");
    assert_eq!(
        rules.commands(),
        [
            "ip -4 route replace local default dev lo table 7164 proto 113",
            "ip -4 rule add pref 7164 fwmark 0x7165 lookup 7164 protocol 113",
            "ip -6 route replace local default dev lo table 7164 proto 113",
            "ip -6 rule add pref 7164 fwmark 0x7165 lookup 7164 protocol 113",
        ]
    );
}

#[test]
fn management_is_not_cut_off_and_the_reason_is_said() {
    assert!(refused("[4001, \"8000-8010\"]").is_empty());
    for (ports, why) in [
        (
            "[22]",
            "listeners.peer.capture.ports.0: 22 is protected (capture.protect): by it the host is managed; it must not be captured (leave it out)",
        ),
        (
            "[4001, 9901]",
            "listeners.peer.capture.ports.1: port 9901 is the sidecar's admin API (admin.bind); it must not be captured (leave it out)",
        ),
        ("[\"9000-9999\"]", "(leave it out: \"9000-9900\", \"9902-9999\")"),
        ("[4180]", "the listener of captured connections itself"),
        ("[4433]", "port 4433 is this sidecar's tunnel, over UDP"),
        ("[4434]", "port 4434 is the tunnel to a peer's sidecar, over UDP"),
    ] {
        let refused = refused(ports);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains(why), "{refused:?} for {ports}");
    }
    assert_eq!(refused("[\"1-65535\"]").len(), 6, "every one of them is named");
    // A node's own port may be that of a tunnel: one is TCP, the other UDP.
    let mut same = config(&format!(r#"{BOTH}, "ports": [4001]"#));
    if let Some(peer) = &mut same.listeners.peer {
        peer.quic = Some("0.0.0.0:4001".parse().unwrap());
    }
    assert!(check(&same).is_empty());
    assert!(wanted(&same).unwrap().is_some());
    let elsewhere = config(r#""bind": ["192.0.2.9:4180"], "ports": [4001]"#);
    assert_eq!(check(&elsewhere).len(), 1);
    assert!(wanted(&Config::default()).unwrap().is_none());
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(22), Just(4180), Just(4181), Just(9901), Just(4001), Just(4433), 1..=u16::MAX]
}

proptest! {
    /// Whatever the ports, even those that the check refuses: the rules leave alone what is marked, what is not TCP, what is protected,
    /// other people, and this host; everything else goes to the listener of its family.
    #[test]
    fn rules_capture_what_they_should_and_nothing_else(
        from in port(), to in port(), probe in port(),
        tproxy: bool, v6: bool, tcp: bool, loopback: bool, with_loopback: bool, marked: bool,
        user in prop_oneof![Just("qudag"), Just("root")], named: bool, link_local: bool,
    ) {
        let (first, last) = (from.min(to), from.max(to));
        let mode = if tproxy { "tproxy" } else { "redirect" };
        let owner = if named { r#"{"users": ["qudag"]}"# } else { "{}" };
        let config = config(&format!(
            r#"{BOTH}, "ports": ["{first}-{last}"], "mode": "{mode}", "owner": {owner}, "loopback": {with_loopback}"#
        ));
        let ip = if v6 && link_local {
            IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 7])
        } else if v6 { IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]) } else { IpAddr::from([192, 0, 2, 7]) };
        let to = SocketAddr::new(ip, probe);
        let mark = if marked { 0x7164 } else { 0 };
        let attempt = Attempt { tcp, to, mark, loopback, user, group: "", cgroup: "" };
        let rules = wanted(&config).unwrap().unwrap();
        let wished = tcp && !marked && !(v6 && link_local) && (with_loopback || !loopback) && (!named || user == "qudag")
            && (first..=last).contains(&probe) && ![22, 4180, 4181, 9901].contains(&probe);
        prop_assert_eq!(rules.captures(&attempt), wished.then_some(if v6 { 4181 } else { 4180 }));
        let kept = rules.for_open_connections();
        prop_assert_eq!(kept.captures(&attempt), None);
        prop_assert_eq!(kept.routed, rules.routed);
    }

    #[test]
    fn merged_ports_are_the_same_ports(list in proptest::collection::vec((1..=300_u16, 0..=40_u16), 0..12), probe in 1..=400_u16) {
        let list: Vec<_> = list.into_iter().map(|(first, more)| PortRange { first, last: first + more }).collect();
        let merged = merged(list.clone());
        let has = |list: &[PortRange]| list.iter().any(|ports| ports.contains(probe));
        prop_assert_eq!(has(&list), has(&merged));
        prop_assert!(merged.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
    }
}
