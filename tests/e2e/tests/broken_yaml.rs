//! Broken configurations: refused with the place and a hint, at start with exit code 78, at run time without harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::path::Path;
use std::time::Duration;

use qudag_kit::program::{Finished, Start};
use qudag_kit::{TestSidecar, eventually};
use serde_json::{Map, Value, json};

/// A configuration with one mistake, the line that it is in (0 where it has none), and words of the refusal.
struct Broken {
    yaml: &'static str,
    line: usize,
    words: &'static [&'static str],
}

const CORPUS: &[Broken] = &[
    Broken { yaml: "version: 2\n", line: 1, words: &["version", "2", "1"] },
    Broken { yaml: "version: one\n", line: 1, words: &["version", "one"] },
    Broken { yaml: "version: 1\nlisteners: [\n", line: 0, words: &[] },
    Broken { yaml: "version: 1\n\tnode: { name: a }\n", line: 0, words: &["tab", "spaces"] },
    Broken { yaml: "version: 1\nversion: 1\n", line: 2, words: &["version"] },
    Broken { yaml: "just text\n", line: 1, words: &["map"] },
    Broken { yaml: "- 1\n- 2\n", line: 1, words: &["map"] },
    Broken {
        yaml: "version: 1\nlisteners:\n  dsn: { bind: \"127.0.0.1:0\" }\n",
        line: 3,
        words: &["dsn", "dns"],
    },
    Broken { yaml: "version: 1\nlistener: {}\n", line: 2, words: &["listener", "listeners"] },
    Broken { yaml: "version: 1\nnode:\n  nmae: x\n", line: 3, words: &["nmae", "name"] },
    Broken {
        yaml: "version: 1\nnode: { p2p: \"127.0.0.1\" }\n",
        line: 2,
        words: &["node.p2p", "127.0.0.1", ":"],
    },
    Broken {
        yaml: "version: 1\nnode: { p2p: \"127.0.0.1:99999\" }\n",
        line: 2,
        words: &["node.p2p", "99999"],
    },
    Broken { yaml: "version: 1\nnode: { rpc: \"unix:\" }\n", line: 2, words: &["node.rpc"] },
    Broken { yaml: "version: 1\nnode: { http: [1] }\n", line: 2, words: &["node.http"] },
    Broken {
        yaml: "version: 1\nlisteners: { dns: { bind: 53 } }\n",
        line: 2,
        words: &["listeners.dns.bind", "53"],
    },
    Broken {
        yaml: "version: 1\nlisteners:\n  peer:\n    outbound:\n      - { name: a, bind: \"127.0.0.1:0\" }\n",
        line: 5,
        words: &["to"],
    },
    Broken {
        yaml: "version: 1\nlisteners:\n  peer:\n    outbound:\n      - { name: a, bind: \"127.0.0.1:0\", to: \"b:1\" }\n      \
               - { name: a, bind: \"127.0.0.1:0\", to: \"c:1\" }\n",
        line: 6,
        words: &["a"],
    },
    Broken {
        yaml: "version: 1\nlisteners:\n  rpc: { bind: \"127.0.0.1:5999\" }\n  http: { bind: \"127.0.0.1:5999\" }\n",
        line: 4,
        words: &["127.0.0.1:5999"],
    },
    Broken { yaml: "version: 1\nfilters: { dsn: {} }\n", line: 2, words: &["dsn", "dns"] },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cach: { enabled: true }\n",
        line: 4,
        words: &["dns_cach", "dns_cache"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache: { enable: true }\n",
        line: 4,
        words: &["enable", "enabled"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache: { enabled: maybe }\n",
        line: 4,
        words: &["filters.dns.dns_cache.enabled", "maybe", "true"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache: { enabled: true, rollout: 101 }\n",
        line: 4,
        words: &["filters.dns.dns_cache.rollout", "101", "100"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache:\n      enabled: true\n      max_ttl: 301s\n",
        line: 6,
        words: &["filters.dns.dns_cache.max_ttl", "301", "300"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache: { enabled: true, max_ttl: 300 }\n",
        line: 4,
        words: &["filters.dns.dns_cache.max_ttl", "300", "s"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_cache: { enabled: true, max_ttl: 5 parsecs }\n",
        line: 4,
        words: &["filters.dns.dns_cache.max_ttl", "parsecs"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    dns_upstream: { servers: [\"not an address\"] }\n",
        line: 4,
        words: &["filters.dns.dns_upstream.servers"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  dns:\n    hosts: { enabled: true, file: /no/such/file }\n",
        line: 0,
        words: &["filters.dns.hosts", "/no/such/file"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  peer:\n    retry: { enabled: true, attempts: 0 }\n",
        line: 4,
        words: &["filters.peer.retry.attempts", "0"],
    },
    Broken {
        yaml: "version: 1\nfilters:\n  http:\n    circuit_breaker: { enabled: true, failures: -3 }\n",
        line: 4,
        words: &["filters.http.circuit_breaker.failures", "-3"],
    },
    Broken {
        yaml: "version: 1\nlisteners:\n  dns: { bind: \"127.0.0.1:5398\" }\nfilters:\n  dns:\n    dns_upstream: { servers: \
               [\"127.0.0.1:5398\"] }\n",
        line: 6,
        words: &["127.0.0.1:5398"],
    },
];

async fn validate(dir: &Path, text: &[u8]) -> Finished {
    let file = dir.join("broken.yaml");
    std::fs::write(&file, text).unwrap();
    Start::new(TestSidecar::binary()).arg("validate").arg(file).output().await
}

#[tokio::test]
async fn every_mistake_of_the_corpus_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for Broken { yaml, line, words } in CORPUS {
        let finished = validate(dir.path(), yaml.as_bytes()).await;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        // Text is wrapped to the width of the terminal.
        let flat = said.replace(['│', '\n'], " ").split_whitespace().collect::<Vec<_>>().join(" ");
        let mut expect = |held: bool, what: &str| {
            if !held {
                wrong.push(format!("{what}:\n{yaml}\n{said}"));
            }
        };
        expect(finished.code == 78, "exit code");
        expect(said.contains("broken.yaml"), "no file name");
        expect(*line == 0 || said.contains(&format!("broken.yaml:{line}:")), "another line");
        for word in *words {
            expect(flat.contains(word), &format!("no {word:?}"));
        }
        expect(!said.contains("panicked"), "a panic");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn bytes_that_are_no_yaml_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d \
                 [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let deep = "[".repeat(100_000);
    let huge = format!("version: 1\n# {}\n", "x".repeat(2 << 20));
    let texts: [(&str, &[u8]); 6] = [
        ("not UTF-8", b"version: \xff\xfe\n"),
        ("a zero byte", b"version: 1\0\n"),
        ("a bomb of aliases", bomb),
        ("deep nesting", deep.as_bytes()),
        ("a huge file", huge.as_bytes()),
        ("two documents", b"version: 1\n---\nversion: 1\n"),
    ];
    for (what, text) in texts {
        let finished = validate(dir.path(), text).await;
        assert_eq!(finished.code, 78, "{what}: {finished:?}");
        assert!(finished.stderr.len() + finished.stdout.len() < 20_000, "{what}: a refusal too long to read");
    }
    let missing = Start::new(TestSidecar::binary()).args(["validate", "/no/such/file.yaml"]).output().await;
    assert_eq!(missing.code, 78, "{missing:?}");
    assert!(missing.stderr.contains("/no/such/file.yaml"), "{missing:?}");
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "version: 1\nnode: { p2p: nowhere }\nlisteners:\n  dns: { bind: 1 }\nfilters:\n  dns:\n    dns_cache: { \
                max_ttl: 9000s, rollout: 300 }\n    hots: {}\n";
    let finished = validate(dir.path(), yaml.as_bytes()).await;
    let said = format!("{}{}", finished.stdout, finished.stderr);
    for key in ["node.p2p", "listeners.dns.bind", "dns_cache.max_ttl", "dns_cache.rollout", "hots"] {
        assert!(said.contains(key), "no {key} in\n{said}");
    }
    let json =
        Start::new(TestSidecar::binary()).args(["validate", "--json"]).arg(dir.path().join("broken.yaml"));
    let finished = json.output().await;
    let printed: Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|why| panic!("{why}: {finished:?}"));
    assert!(printed.to_string().contains("listeners.dns.bind"), "{printed:#}");
}

/// A schema node with its references followed.
fn follow<'a>(schema: &'a Value, mut node: &'a Value) -> &'a Value {
    while let Some(reference) = node["$ref"].as_str() {
        node = schema.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"));
    }
    node
}

/// Every path to a value that the schema describes, with the schema of the value.
fn places<'a>(
    schema: &'a Value,
    node: &'a Value,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, &'a Value)>,
) {
    let node = follow(schema, node);
    found.push((path.clone(), node));
    if path.len() > 8 {
        return;
    }
    let choices = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| node[key].as_array()).flatten();
    for choice in choices {
        let choice = follow(schema, choice);
        properties(schema, choice, path, found);
    }
    properties(schema, node, path, found);
}

fn properties<'a>(
    schema: &'a Value,
    node: &'a Value,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, &'a Value)>,
) {
    for (key, value) in node["properties"].as_object().into_iter().flatten() {
        path.push(key.clone());
        places(schema, value, path, found);
        path.pop();
    }
}

/// `{version: 1, a: {b: VALUE}}` for the path a, b.
fn document(path: &[String], value: &Value) -> String {
    let nested = path.iter().rev().fold(value.clone(), |inner, key| {
        let mut map = Map::new();
        map.insert(key.clone(), inner);
        Value::Object(map)
    });
    let mut root = nested.as_object().cloned().unwrap_or_default();
    root.entry("version").or_insert(json!(1));
    // JSON is YAML, and the map below has `version` wherever it sorts.
    Value::Object(root).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_place_of_the_schema_refuses_what_does_not_belong() {
    let printed = Start::new(TestSidecar::binary()).arg("schema").output().await.ok();
    let schema: Value = serde_json::from_str(&printed).unwrap();
    let mut found = Vec::new();
    places(&schema, &schema, &mut Vec::new(), &mut found);
    assert!(found.len() > 60, "only {} places", found.len());
    let dir = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (path, node) in &found {
        if path.is_empty() {
            continue;
        }
        let is_map = node["properties"].is_object();
        let mut wrong = vec![json!([[["nothing", "here", "is", "a", "list"]]])];
        if is_map {
            wrong.push(json!({ "no_such_key": 1 }));
            wrong.push(json!(7));
        } else {
            wrong.push(json!({ "no_such_key": 1 }));
        }
        if let Some(least) = node["minimum"].as_f64() {
            wrong.push(json!(least - 1.0));
        }
        if let Some(most) = node["maximum"].as_f64() {
            wrong.push(json!(most + 1.0));
        }
        if node["enum"].is_array() {
            wrong.push(json!("none of them"));
        }
        for value in wrong {
            let text = document(path, &value);
            let finished = validate(dir.path(), text.as_bytes()).await;
            let said = format!("{}{}", finished.stdout, finished.stderr);
            assert_eq!(finished.code, 78, "{text}\n{said}");
            assert!(said.contains("broken.yaml:1:"), "no place for\n{text}\n{said}");
            assert!(said.contains(path.last().unwrap().as_str()), "no key for\n{text}\n{said}");
            tried += 1;
        }
    }
    println!("{tried} wrong values at {} places refused", found.len());
}

const FINE: &str =
    "listeners:\n  dns: { bind: \"127.0.0.1:0\" }\nfilters:\n  dns:\n    dns_cache: { enabled: true }\n";

#[tokio::test]
async fn at_start_the_exit_code_is_78() {
    let finished = TestSidecar::refused("listeners: { dns: { bind: nonsense } }\n").await;
    assert_eq!(finished.code, 78, "{finished:?}");
    assert!(finished.stderr.contains("listeners.dns.bind"), "{}", finished.stderr);
    assert!(finished.stderr.contains("sidecar.yaml:2:"), "{}", finished.stderr);
}

#[tokio::test]
async fn at_run_time_the_old_generation_goes_on() {
    let sidecar = TestSidecar::start(FINE).await;
    let before = sidecar.status().await;
    let wrong = [
        ("max_ttl", FINE.replace("enabled: true", "enabled: true, max_ttl: 301s")),
        ("dsn", FINE.replace("  dns: { bind", "  dsn: { bind")),
        ("listeners.dns.bind", FINE.replace("127.0.0.1:0", "nonsense")),
        ("version", format!("version: 9\n{FINE}")),
        (
            "hosts",
            FINE.replace("dns_cache: {", "hosts: { enabled: true, file: /no/such/file }\n    dns_cache: {"),
        ),
    ];
    for (word, yaml) in wrong {
        let refused = sidecar.metric("qudag_sidecar_reloads_total", &[("result", "refused")]).await;
        sidecar.write_config(&yaml);
        // The watcher notices by itself.
        let told = async || {
            let status = sidecar.status().await;
            status["config"]["refused"]["problems"].to_string().contains(word).then_some(status)
        };
        let status = eventually(Duration::from_secs(20), &format!("{word} is refused"), told).await;
        for key in ["generation", "listeners", "filters"] {
            assert_eq!(status[key], before[key], "{word}: {key}");
        }
        let counted = async || {
            let now = sidecar.metric("qudag_sidecar_reloads_total", &[("result", "refused")]).await;
            (now > refused).then_some(())
        };
        eventually(Duration::from_secs(5), "the refusal is counted", counted).await;
        assert_eq!(sidecar.metric("qudag_sidecar_config_refused", &[]).await, 1.0, "{word}");
        let logged = async || sidecar.log().lines().any(|line| line.contains(word)).then_some(());
        eventually(Duration::from_secs(5), "the refusal is logged", logged).await;
        let answer = sidecar.admin("POST", "/reload", Value::Null).await;
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(answer.body["problems"].to_string().contains(word), "{}", answer.body);
        let reloaded = sidecar.cli(&["reload"]).await;
        assert_eq!(reloaded.code, 78, "{reloaded:?}");
    }
    sidecar.reload_with(FINE).await.ok();
    assert_eq!(sidecar.status().await["config"]["refused"], Value::Null);
    assert_eq!(sidecar.metric("qudag_sidecar_config_refused", &[]).await, 0.0);
}

#[tokio::test]
async fn secrets_are_references_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "hunter2hunter2hunter2\n").unwrap();
    let yaml =
        format!("admin: {{ bind: \"127.0.0.1:0\", token: {{ file: \"{}\" }} }}\n{FINE}", file.display());
    let sidecar = TestSidecar::start(&yaml).await;
    let shown = sidecar.cli(&["config", "show", "--origin"]).await.ok();
    let status = sidecar.status().await.to_string();
    for text in [&shown, &status, &sidecar.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let plain =
        TestSidecar::refused(&yaml.replace(&format!("{{ file: \"{}\" }}", file.display()), "hunter2")).await;
    assert_eq!(plain.code, 78);
    assert!(!plain.stderr.contains("hunter2"), "a secret in the refusal: {}", plain.stderr);
}
