//! A corpus of broken configurations, each with what must be said of it.

use std::os::unix::ffi::OsStringExt;

use super::{load_with, problems};
use crate::config::{Problem, Source, load, parse};

/// What is expected: `LINE:COLUMN`, the path, a part of the message, a part of the hint.
type Expected<'a> = (&'a str, &'a str, &'a str, &'a str);

#[track_caller]
fn refuse(text: &str, expected: &[Expected<'_>]) -> Vec<Problem> {
    let problems = problems(text);
    let seen: Vec<_> = problems
        .iter()
        .map(|p| (format!("{}:{}", p.line.unwrap_or(0), p.column.unwrap_or(0)), p.path.as_str()))
        .collect();
    let wanted: Vec<_> = expected.iter().map(|(place, path, ..)| ((*place).to_owned(), *path)).collect();
    assert_eq!(seen, wanted, "{text}\n{problems:#?}");
    for (problem, (_, _, message, hint)) in problems.iter().zip(expected) {
        assert!(problem.message.contains(message), "{message:?} in {problem:#?}");
        let said = problem.hint.as_deref().unwrap_or_default();
        assert!(said.contains(hint), "{hint:?} in {problem:#?}");
        assert!(problem.length.is_some_and(|length| length > 0));
    }
    problems
}

#[test]
fn the_version_must_be_there_and_known() {
    refuse("", &[("1:1", "version", "missing", "`version: 1`")]);
    refuse("# nothing\n", &[("1:1", "version", "missing", "`version: 1`")]);
    refuse("node: {}\n", &[("1:1", "version", "missing", "`version: 1`")]);
    let problems = refuse(
        "version: 2\n",
        &[("1:10", "version", "not a version that this program knows", "`version: 1`")],
    );
    assert_eq!(problems[0].value.as_deref(), Some("2"));
    refuse("version: \"1\"\n", &[("1:10", "version", "not a version", "")]);
    refuse("version:\n", &[("1:1", "version", "not a version", "")]);
}

#[test]
fn a_wrong_version_hides_nothing_else() {
    refuse(
        "version: 3\nnode: { nam: x }\n",
        &[
            ("1:10", "version", "not a version", ""),
            (
                "2:9",
                "node.nam",
                "unknown key `nam`",
                "did you mean `name`? expected `name`, `p2p`, `rpc`, `http`",
            ),
        ],
    );
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    for (text, place, path, hint) in [
        ("version: 1\nlistener: {}\n", "2:1", "listener", "did you mean `listeners`?"),
        ("version: 1\nnode:\n  port: 1\n", "3:3", "node.port", "expected `name`, `p2p`"),
        ("version: 1\nlisteners:\n  ftp: {}\n", "3:3", "listeners.ftp", "expected `dns`"),
        (
            "version: 1\nlisteners:\n  dns: { binds: \"127.0.0.1:1\" }\n",
            "3:10",
            "listeners.dns.binds",
            "`bind`",
        ),
        (
            "version: 1\nlisteners:\n  peer:\n    outbound:\n      - { bind: \"127.0.0.1:1\", too: \"a.example:1\", to: \"b.example:1\" }\n",
            "5:32",
            "listeners.peer.outbound.0.too",
            "did you mean `to`?",
        ),
        ("version: 1\nfilters: { sql: {} }\n", "2:12", "filters.sql", "expected `dns`"),
        ("version: 1\nfilters:\n  dns:\n    cache: {}\n", "4:5", "filters.dns.cache", "`dns_cache`"),
        (
            "version: 1\nfilters:\n  dns:\n    dns_cache: { max_tll: 60s }\n",
            "4:18",
            "filters.dns.dns_cache.max_tll",
            "did you mean `max_ttl`? expected `enabled`, `rollout`, ",
        ),
        (
            "version: 1\nfilters:\n  rpc:\n    retry: { enable: true }\n",
            "4:14",
            "filters.rpc.retry.enable",
            "did you mean `enabled`? expected `enabled`, `rollout`, ",
        ),
        (
            "version: 1\nfilters:\n  dns:\n    dns_upstream: { enabled: true }\n",
            "4:21",
            "filters.dns.dns_upstream.enabled",
            "expected `servers`",
        ),
        ("version: 1\nadmin: { binds: \"127.0.0.1:1\" }\n", "2:10", "admin.binds", "did you mean `bind`?"),
        ("version: 1\ntelemetry: { log: { colour: true } }\n", "2:21", "telemetry.log.colour", "`format`"),
        ("version: 1\ntelemetry: { flows: { postgres: all } }\n", "2:23", "telemetry.flows.postgres", "`db`"),
        ("version: 1\nflags: { killfile: /x }\n", "2:10", "flags.killfile", "did you mean `kill_file`?"),
        ("version: 1\nruntime: { threads: 1 }\n", "2:12", "runtime.threads", "`workers`"),
    ] {
        refuse(text, &[(place, path, "unknown key", hint)]);
    }
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for (text, place, path, message, hint) in [
        ("version: 1\nnode: 5\n", "2:7", "node", "expected a map of settings, found the number 5", ""),
        ("version: 1\nnode:\n", "2:1", "node", "expected a map of settings, found nothing", "write `{}`"),
        ("version: 1\nnode: [a]\n", "2:7", "node", "found", ""),
        (
            "version: 1\nnode: { name: 5 }\n",
            "2:15",
            "node.name",
            "expected text, found the number 5",
            "quotes",
        ),
        ("version: 1\nnode: { name: }\n", "2:9", "node.name", "found nothing", "remove the key"),
        ("version: 1\nnode: { name: [a] }\n", "2:15", "node.name", "expected text, found a list", ""),
        ("version: 1\nnode: { name: { a: b } }\n", "2:15", "node.name", "expected text, found a map", ""),
        ("version: 1\nnode: { http: 8080 }\n", "2:15", "node.http", "expected HOST:PORT", ""),
        (
            "version: 1\nruntime: { drain_timeout: 30 }\n",
            "2:27",
            "runtime.drain_timeout",
            "expected a duration with its unit",
            "add the unit: 30s",
        ),
        (
            "version: 1\nruntime: { workers: two }\n",
            "2:21",
            "runtime.workers",
            "whole number, 1 or more",
            "without quotes",
        ),
        (
            "version: 1\nfilters: { dns: { hosts: { enabled: yes } } }\n",
            "2:37",
            "filters.dns.hosts.enabled",
            "expected true or false, found the text \"yes\"",
            "write true or false",
        ),
        (
            "version: 1\nfilters: { dns: { hosts: true } }\n",
            "2:26",
            "filters.dns.hosts",
            "a filter: a map",
            "",
        ),
        (
            "version: 1\nfilters: { dns: { dns_upstream: { servers: \"1.1.1.1:53\" } } }\n",
            "2:44",
            "filters.dns.dns_upstream.servers",
            "expected a list",
            "",
        ),
        (
            "version: 1\ntelemetry: { log: { file: 7 } }\n",
            "2:27",
            "telemetry.log.file",
            "expected a path",
            "",
        ),
    ] {
        refuse(text, &[(place, path, message, hint)]);
    }
    refuse("- a\n- b\n", &[("1:1", "", "expected a map", "")]);
    refuse("hello\n", &[("1:1", "", "expected a map", "")]);
}

#[test]
fn values_out_of_range_are_refused() {
    for (text, place, path, message, hint) in [
        (
            "version: 1\nfilters: { dns: { dns_cache: { max_ttl: 400s } } }\n",
            "2:41",
            "filters.dns.dns_cache.max_ttl",
            "",
            "300s",
        ),
        (
            "version: 1\nfilters: { rpc: { retry: { rollout: 101 } } }\n",
            "2:37",
            "filters.rpc.retry.rollout",
            "101 is out of range",
            "0 to 100",
        ),
        ("version: 1\nruntime: { workers: 0 }\n", "2:21", "runtime.workers", "number", ""),
        ("version: 1\nruntime: { workers: -1 }\n", "2:21", "runtime.workers", "number", ""),
        (
            "version: 1\nruntime: { workers: 5000 }\n",
            "2:21",
            "runtime.workers",
            "more than 1024",
            "leave it out",
        ),
        (
            "version: 1\nruntime: { drain_timeout: 2h }\n",
            "2:27",
            "runtime.drain_timeout",
            "longer than 1h",
            "",
        ),
        (
            "version: 1\nruntime: { drain_timeout: 5 weeks ago }\n",
            "2:27",
            "runtime.drain_timeout",
            "",
            "write a duration",
        ),
        ("version: 1\nnode: { p2p: \"127.0.0.1:0\" }\n", "2:14", "node.p2p", "port 0", ""),
        ("version: 1\nnode: { name: \"\" }\n", "2:15", "node.name", "not a name", ""),
        (
            "version: 1\ntelemetry: { log: { level: loud!! } }\n",
            "2:28",
            "telemetry.log.level",
            "not a level",
            "info",
        ),
        (
            "version: 1\ntelemetry: { log: { file: \"\" } }\n",
            "2:27",
            "telemetry.log.file",
            "an empty path",
            "",
        ),
        (
            "version: 1\ntelemetry: { log: { format: xml } }\n",
            "2:29",
            "telemetry.log.format",
            "`xml` is not possible here",
            "expected `human`, `json`",
        ),
        (
            "version: 1\ntelemetry: { flows: { dns: error } }\n",
            "2:28",
            "telemetry.flows.dns",
            "`error` is not possible here",
            "did you mean `errors`?",
        ),
        (
            "version: 1\ntelemetry: { flows: { dns: false } }\n",
            "2:28",
            "telemetry.flows.dns",
            "false is not possible here",
            "`off`",
        ),
    ] {
        refuse(text, &[(place, path, message, hint)]);
    }
}

#[test]
fn bad_addresses_are_refused() {
    for bad in [
        "127.0.0.1",
        "127.0.0.1:99999",
        "::1:53",
        "-x:1",
        "\"unix:\"",
        "\"[::1:53\"",
        "a b:1",
        "300.1.1.1:53",
    ] {
        let text = format!("version: 1\nlisteners:\n  rpc: {{ bind: {bad} }}\n");
        let problems = refuse(&text, &[("3:16", "listeners.rpc.bind", "", "HOST:PORT or unix:PATH")]);
        assert_eq!(problems[0].value.as_deref(), Some(bad));
    }
    refuse("version: 1\nnode: { http: [::1]:80 }\n", &[("2:20", "node", "not valid YAML", "in quotes")]);
}

#[test]
fn a_list_keeps_its_positions_when_several_elements_are_wrong() {
    refuse(
        "version: 1\nlisteners:\n  peer:\n    inbound: [\"127.0.0.1:7001\", nowhere, \"127.0.0.1:7002\", 5]\n",
        &[
            ("4:33", "listeners.peer.inbound.1", "no port", "HOST:PORT"),
            ("4:60", "listeners.peer.inbound.3", "expected HOST:PORT", ""),
        ],
    );
    // The check counts the elements that are left; the answer counts all.
    refuse(
        "version: 1\nlisteners:\n  peer:\n    outbound:\n      - nothing\n      - { bind: \"127.0.0.1:7001\", to: \"a.example:0\" }\n",
        &[
            ("5:9", "listeners.peer.outbound.0", "expected a map", ""),
            ("6:39", "listeners.peer.outbound.1.to", "port 0", ""),
        ],
    );
}

#[test]
fn what_a_list_element_must_have_is_named() {
    refuse(
        "version: 1\nlisteners:\n  peer:\n    outbound:\n      - { bind: \"127.0.0.1:7001\" }\n",
        &[("5:9", "listeners.peer.outbound.0.to", "key `to` is missing", "add `to: …`")],
    );
    // A key whose value is wrong is not missing as well.
    refuse(
        "version: 1\nlisteners:\n  peer:\n    outbound:\n      - { bind: \"127.0.0.1:7001\", to: 5 }\n",
        &[("5:39", "listeners.peer.outbound.0.to", "expected HOST:PORT", "")],
    );
}

#[test]
fn syntax_errors_have_a_place_and_a_hint() {
    refuse("version: 1\nnode:\n\tname: x\n", &[("3:2", "node", "", "spaces")]);
    refuse(
        "version: 1\nnode: { name: \"x }\n",
        &[("2:15", "node.name", "not valid YAML", "close the quotation mark")],
    );
    refuse("version: 1\nnode: { name: x\n", &[("2:7", "node", "not valid YAML", "close the bracket `{`")]);
    refuse("version: 1\n---\nversion: 1\n", &[("2:1", "", "second document", "---")]);
    refuse(
        "version: 1\nnode: {}\nnode: {}\n",
        &[("3:1", "node", "key `node` is given twice", "the first is in line 2")],
    );
    refuse(
        "version: 1\nfilters: { dns: { hosts: { ttl: 1s, ttl: 2s } } }\n",
        &[("2:37", "filters.dns.hosts.ttl", "given twice", "line 2")],
    );
}

#[test]
fn what_no_part_sees_alone_is_refused() {
    refuse(
        "version: 1\nlisteners:\n  rpc: { bind: \"127.0.0.1:7000\" }\n  http: { bind: \"0.0.0.0:7000\" }\n",
        &[("4:17", "listeners.http.bind", "listeners.rpc.bind is 127.0.0.1:7000", "choose another port")],
    );
    refuse(
        "version: 1\nlisteners:\n  rpc: { bind: \"127.0.0.1:9901\" }\n",
        &[("0:0", "admin.bind", "is taken", "")].map(|_| ("1:1", "admin.bind", "listeners.rpc.bind is", "")),
    );
    refuse(
        "version: 1\nlisteners:\n  rpc: { bind: \"127.0.0.1:9090\" }\n",
        &[("3:16", "listeners.rpc.bind", "is where the node listens: node.rpc", "an address of its own")],
    );
    refuse(
        "version: 1\nlisteners:\n  rpc: { bind: \"unix:/run/a.sock\" }\nadmin: { bind: \"unix:/run/a.sock\" }\n",
        &[("4:16", "admin.bind", "is taken", "")],
    );
    refuse(
        "version: 1\nlisteners:\n  peer: { inbound: [\"127.0.0.1:7000\", \"[::]:8000\"] }\n",
        &[("3:39", "listeners.peer.inbound.1", "node.p2p", "")],
    );
    refuse(
        "version: 1\nlisteners: { dns: { bind: \"0.0.0.0:5300\" } }\nfilters: { dns: { dns_upstream: { servers: [9.9.9.9, \"127.0.0.1:5300\"] } } }\n",
        &[("3:54", "filters.dns.dns_upstream.servers.1", "is listeners.dns", "another server")],
    );
    refuse(
        "version: 1\nlisteners: { postgres: { bind: \"[::]:6432\", server: \"localhost:6432\" } }\n",
        &[("2:53", "listeners.postgres.server", "would ask itself", "another server")],
    );
    refuse(
        "version: 1\nadmin: { bind: \"0.0.0.0:9901\" }\n",
        &[("2:16", "admin.bind", "no `admin.token`", "token: { file: PATH }")],
    );
    assert_eq!(problems("version: 1\nadmin: { bind: \"0.0.0.0:9901\", token: { env: T } }\n"), []);
    assert_eq!(
        problems(
            "version: 1\nlisteners: { rpc: { bind: \"127.0.0.1:0\" }, http: { bind: \"127.0.0.1:0\" } }\n"
        ),
        []
    );
}

#[test]
fn secrets_are_references_and_are_not_repeated() {
    for token in
        ["hunter2", "{ value: hunter2 }", "{ file: /x, env: hunter2 }", "[hunter2]", "{ file: [hunter2] }"]
    {
        let text = format!("version: 1\nadmin: {{ bind: \"0.0.0.0:1\", token: {token} }}\n");
        let failure = parse(&text).unwrap_err();
        assert_eq!(failure.problems.len(), 1, "{failure}");
        let all = format!("{failure}{}{}", failure.render(false), serde_json::to_string(&failure).unwrap());
        assert!(!all.contains("hunter2"), "{all}");
        assert!(failure.problems[0].path.starts_with("admin.token"), "{failure}");
    }
    let unreadable = "version: 1\nadmin:\n  token: hunter2\n\tbind: x\n";
    let shown = parse(unreadable).unwrap_err().render(false);
    assert!(shown.contains("token: *******") && !shown.contains("hunter2"), "{shown}");
    let variable = [("ADMIN__TOKEN", "hunter2")];
    let failure = load_with("version: 1\n", &variable).unwrap_err();
    assert!(!format!("{failure}{}", failure.render(false)).contains("hunter2"));
    refuse(
        "version: 1\nadmin: { token: abc }\n",
        &[("2:17", "admin.token", "by reference", "{ file: PATH }")],
    );
}

#[test]
fn all_problems_are_reported_at_once_in_order() {
    let problems = refuse(
        "version: 1\n\
         node:\n\
         \x20 name: 7\n\
         \x20 p2p: nowhere\n\
         filters:\n\
         \x20 dns:\n\
         \x20   dns_cache: { enabled: maybe, max_ttl: 400s, siez: 1 }\n\
         runtime: { workers: 0, drain_timeout: 1s, drain_timeout: 2s }\n\
         admin: { token: { file: /x, env: Y } }\n\
         bogus: 1\n",
        &[
            ("3:9", "node.name", "expected text", ""),
            ("4:8", "node.p2p", "no port", ""),
            ("7:27", "filters.dns.dns_cache.enabled", "expected true or false", ""),
            ("7:43", "filters.dns.dns_cache.max_ttl", "", "300s"),
            ("7:49", "filters.dns.dns_cache.siez", "unknown key", ""),
            ("8:21", "runtime.workers", "number", ""),
            ("8:43", "runtime.drain_timeout", "given twice", ""),
            ("9:17", "admin.token", "exactly one", ""),
            ("10:1", "bogus", "unknown key", ""),
        ],
    );
    assert_eq!(problems[1].value.as_deref(), Some("nowhere"));
    let many: String = (0..300).map(|n| format!("bogus{n}: 1\n")).collect();
    let problems = super::problems(&format!("version: 1\n{many}"));
    assert_eq!(problems.len(), 101);
    assert!(problems.iter().any(|problem| problem.message == "more problems than are shown"));
}

#[test]
fn variables_are_named_where_they_are_wrong() {
    for (name, value, path, message) in [
        ("FILTERS__DNS__DNS_CACHE__MAX_TTL", "400s", "filters.dns.dns_cache.max_ttl", ""),
        ("FILTERS__DNS__DNS_CACHE__MAX_TTL", "60", "filters.dns.dns_cache.max_ttl", "duration"),
        ("FILTERS__DNS__CASHE__MAX_TTL", "60s", "filters.dns.cashe", "unknown key `cashe`"),
        ("NODE__P2P", "nowhere", "node.p2p", "no port"),
        ("NODE__P2P__PORT", "1", "node.p2p", "expected HOST:PORT"),
        ("VERSION", "2", "version", "not a version"),
        ("LISTENERS__RPC__BIND", "127.0.0.1:9090", "listeners.rpc.bind", "is where the node listens"),
    ] {
        let failure = load_with("version: 1\n", &[(name, value)]).unwrap_err();
        let [problem] = failure.problems.as_slice() else { panic!("{failure}") };
        assert_eq!(problem.variable.as_deref(), Some(format!("QUDAG_SIDECAR__{name}").as_str()), "{failure}");
        assert_eq!(problem.path, path, "{failure}");
        assert!(problem.message.contains(message), "{failure}");
        assert_eq!(problem.line, None);
        assert!(
            failure.to_string().starts_with(&format!("environment variable QUDAG_SIDECAR__{name}: {path}: "))
        );
        assert!(failure.render(false).contains(name));
    }
    let not_text = std::ffi::OsString::from_vec(vec![0xff]);
    let failure = load(
        &Source::Embedded,
        [("QUDAG_SIDECAR__NODE__NAME".into(), not_text)] as [(std::ffi::OsString, _); 1],
    );
    assert!(failure.unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let nothing: [(&str, &str); 0] = [];
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.yaml");
    for path in [missing.as_path(), dir.path()] {
        let failure = load(&Source::File(path.to_owned()), nothing).unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("cannot be read") && said.contains(&path.display().to_string()), "{said}");
        assert!(failure.render(false).contains("cannot be read"));
    }
    assert!(Source::new(Some(&missing)).unwrap_err().to_string().contains("No such file"));

    let file = dir.path().join("x.yaml");
    std::fs::write(&file, b"version: 1\nnode: { name: \xff }\n").unwrap();
    let failure = load(&Source::new(Some(&file)).unwrap(), nothing).unwrap_err();
    assert_eq!((failure.problems[0].line, failure.problems[0].column), (Some(2), Some(15)));
    assert!(failure.to_string().contains("not UTF-8"), "{failure}");

    std::fs::write(&file, "#".repeat(2 << 20)).unwrap();
    assert!(load(&Source::File(file), nothing).unwrap_err().to_string().contains("larger than 1 MiB"));
}

#[test]
fn files_that_the_configuration_names_must_be_readable() {
    let text = "version: 1\nfilters:\n  dns:\n    hosts: { enabled: true, file: /no/such/file }\n";
    refuse(text, &[("4:35", "filters.dns.hosts.file", "/no/such/file", "")]);
}

#[test]
fn a_refusal_shows_the_line() {
    let failure = parse("version: 1\nnode:\n  nmae: x\n").unwrap_err();
    let shown = failure.render(false);
    for part in [
        "node.nmae: unknown key `nmae`",
        "embedded:3:3",
        "nmae: x",
        "help: did you mean `name`?",
        "1 problem in embedded",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    assert_eq!(failure.lines().len(), 1);
    let json = serde_json::to_value(&failure).unwrap();
    assert_eq!(json["source"], "embedded");
    assert_eq!(json["problems"][0]["line"], 3);
    assert_eq!(json["problems"][0]["path"], "node.nmae");
    assert!(json.get("text").is_none());
}
