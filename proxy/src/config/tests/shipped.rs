//! The schema and the configurations that are shipped.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use super::{loaded, problems};
use crate::config::tree::{Node, Place, Value};
use crate::config::{schema, yaml};

fn shipped(name: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|why| panic!("{}: {why}", file.display()))
}

const CONFIGS: [&str; 3] = ["quickstart.yaml", "production.yaml", "canary.yaml"];

#[test]
fn the_schema_in_the_repository_is_current() {
    let kept: Json = serde_json::from_str(&shipped("schema.json")).unwrap();
    assert!(
        kept == schema(),
        "configs/schema.json is stale: run `cargo run -- schema > configs/schema.json`"
    );
}

#[test]
fn shipped_configurations_are_right() {
    let validator = Validator::new();
    for name in CONFIGS {
        let text = shipped(name);
        let found = problems(&text);
        assert_eq!(found, [], "{name}");
        let value = json(&yaml::read(&text, None).0.unwrap());
        assert_eq!(validator.refusal(&value), None, "{name}");
    }
}

#[test]
fn what_is_shown_fits_the_schema() {
    let validator = Validator::new();
    for name in CONFIGS {
        let shown = crate::config::show(&loaded(&shipped(name)), false);
        let value = json(&yaml::read(&shown, None).0.unwrap());
        assert_eq!(validator.refusal(&value), None, "{name}");
    }
}

#[test]
fn production_mentions_every_key() {
    let tree = yaml::read(&shipped("production.yaml"), None).0.unwrap();
    let schema = schema();
    let missing: Vec<String> = schema_paths(&schema)
        .into_iter()
        .filter(|path| {
            let path: Vec<String> = path.split('.').map(|key| key.replace("[]", "0")).collect();
            // What is switched off as a whole is shown in comments.
            let is_off = |upto| matches!(tree.written(upto).map(|node| &node.value), Some(Value::Null));
            tree.written(&path).is_none()
                && !(1..path.len()).any(|depth| path.get(..depth).is_some_and(is_off))
        })
        .collect();
    assert_eq!(missing, Vec::<String>::new(), "add these keys to configs/production.yaml");
}

#[test]
fn every_key_has_a_description() {
    fn walk(schema: &Json, at: &str, bare: &mut Vec<String>) {
        match schema {
            Json::Object(map) => {
                if let Some(properties) = map.get("properties").and_then(Json::as_object) {
                    for (key, property) in properties {
                        // The alternatives of an enum are described as a whole.
                        if property.get("description").is_none() && !at.ends_with("/oneOf") {
                            bare.push(format!("{at}.{key}"));
                        }
                    }
                }
                map.iter().for_each(|(key, value)| walk(value, &format!("{at}/{key}"), bare));
            }
            Json::Array(items) => items.iter().for_each(|item| walk(item, at, bare)),
            _ => {}
        }
    }
    let mut bare = Vec::new();
    walk(&schema(), "", &mut bare);
    assert_eq!(bare, Vec::<String>::new());
}

/// Each value of the complete configuration is replaced by every kind of value; what the schema forbids, the loader
/// refuses in that line. It reads the part around the value alone: there are thousands of them.
#[test]
fn whatever_the_schema_forbids_is_refused_in_its_place() {
    let text = shipped("production.yaml");
    let tree = yaml::read(&text, None).0.unwrap();
    let (validator, mut value) = (Validator::new(), json(&tree));
    let (mut forbidden, mut refused) = (0, 0);
    for (path, place) in scalars(&tree) {
        let pointer = format!("/{}", path.join("/"));
        let old = value.pointer(&pointer).unwrap().clone();
        for new in [
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(1.5),
            json!(1_000_000_000_000_u64),
            json!("no such thing"),
            json!(""),
            json!([]),
            json!({}),
            json!({"bogus": 1}),
        ] {
            *value.pointer_mut(&pointer).unwrap() = new.clone();
            if validator.accepts(&value) {
                continue;
            }
            forbidden += 1;
            let mut broken = text.clone();
            broken.replace_range(place.offset..place.offset + place.bytes, &new.to_string());
            let found = problems(&part(&broken, place.line));
            let problem = found.iter().find(|problem| problem.path.starts_with(&path.join(".")));
            let Some(problem) = problem else { panic!("{} = {new} is accepted: {found:#?}", path.join(".")) };
            assert_eq!(problem.line, Some(place.line), "{} = {new}: {problem:#?}", path.join("."));
            assert!(!problem.message.is_empty());
            refused += 1;
        }
        *value.pointer_mut(&pointer).unwrap() = old;
    }
    assert_eq!(forbidden, refused);
    assert!(forbidden > 300, "the test has lost its subject: {forbidden}");
}

/// In each map of the complete configuration an unknown key is refused where it stands.
#[test]
fn unknown_keys_are_refused_in_every_map() {
    let text = shipped("production.yaml");
    let tree = yaml::read(&text, None).0.unwrap();
    let mut maps = 0;
    for (path, first_key) in first_keys(&tree) {
        let indent = " ".repeat(first_key.column - 1);
        let flow = text[..first_key.offset].trim_end().ends_with('{');
        let new = if flow { "bogus: 1, ".to_owned() } else { format!("bogus: 1\n{indent}") };
        let mut broken = text.clone();
        broken.insert_str(first_key.offset, &new);
        let found = problems(&broken);
        let wanted = path.iter().map(String::as_str).chain(["bogus"]).collect::<Vec<_>>().join(".");
        let problem = found.iter().find(|problem| problem.path == wanted);
        // A reference to a secret has one key or the other.
        let secret = found.iter().any(|problem| problem.message.contains("exactly one"));
        assert!(problem.is_some() || secret, "{wanted} is accepted: {found:#?}");
        if let Some(problem) = problem {
            assert_eq!((problem.line, problem.column), (Some(first_key.line), Some(first_key.column)));
            assert!(problem.hint.as_deref().is_some_and(|hint| hint.contains("expected `")), "{problem:#?}");
        }
        maps += 1;
    }
    assert!(maps > 20, "the test has lost its subject: {maps}");
}

#[test]
fn canary_rolls_out_in_part() {
    let config = loaded(&shipped("canary.yaml")).config;
    let partial = |toggle: qudag_filter_api::SlotInfo| {
        toggle.configured.enabled && toggle.configured.rollout != qudag_filter_api::Percent::ALL
    };
    let slots = qudag_filter_api::ChainSpec::slots(&config.filters.dns);
    assert!(slots.into_iter().any(partial));
}

#[test]
fn quickstart_stays_on_this_host() {
    let config = loaded(&shipped("quickstart.yaml")).config;
    let shown = serde_json::to_string(&config.listeners).unwrap();
    assert!(config.listeners.dns.is_some() && config.listeners.postgres.is_some());
    assert!(!shown.contains("0.0.0.0") && !shown.contains("[::]"), "{shown}");
    assert!(config.filters.dns.hosts.enabled && config.filters.dns.dns_cache.enabled);
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(number) => {
            i64::try_from(*number).map_or_else(|_| json!(*number as f64), |number| json!(number))
        }
        Value::Float(number) => json!(number),
        Value::Text(text) => json!(text),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => Json::Object(
            entries.iter().map(|entry| (entry.key.clone(), json(&entry.node))).collect::<Map<_, _>>(),
        ),
    }
}

/// A text with all lines blank but those of the part around a line: a key of the second level, and the one above it.
fn part(text: &str, line: usize) -> String {
    let indent = |line: &str| {
        let content = line.trim_start();
        (!content.is_empty() && !content.starts_with('#')).then(|| line.len() - content.len())
    };
    let lines = || text.lines().zip(1..);
    let upper: Vec<_> = lines()
        .filter_map(|(line, number)| Some((number, indent(line)?)))
        .filter(|(_, indent)| *indent <= 2)
        .collect();
    let begin = upper.iter().rposition(|(number, _)| *number <= line).unwrap();
    let top = upper[..=begin].iter().rposition(|(_, indent)| *indent == 0).unwrap();
    let end = upper.get(begin + 1).map_or(usize::MAX, |(number, _)| *number);
    let is_kept = |number| number == upper[top].0 || (upper[begin].0..end).contains(&number);
    lines().flat_map(|(line, number)| [if is_kept(number) { line } else { "" }, "\n"]).collect()
}

/// The scalars of a tree with their places.
fn scalars(tree: &Node) -> Vec<(Vec<String>, Place)> {
    fn walk(node: &Node, path: &[String], found: &mut Vec<(Vec<String>, Place)>) {
        let below = |step: String| [path, &[step]].concat();
        match &node.value {
            Value::Map(entries) => entries.iter().for_each(|e| walk(&e.node, &below(e.key.clone()), found)),
            Value::List(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| walk(item, &below(index.to_string()), found));
            }
            _ => found.push((path.to_vec(), node.origin.place().unwrap())),
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// The first key of each map that has one.
fn first_keys(tree: &Node) -> Vec<(Vec<String>, Place)> {
    fn walk(node: &Node, path: &[String], found: &mut Vec<(Vec<String>, Place)>) {
        let below = |step: String| [path, &[step]].concat();
        match &node.value {
            Value::Map(entries) => {
                found.extend(entries.first().map(|entry| (path.to_vec(), entry.origin.place().unwrap())));
                entries.iter().for_each(|entry| walk(&entry.node, &below(entry.key.clone()), found));
            }
            Value::List(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| walk(item, &below(index.to_string()), found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// The paths of all keys that a schema knows; `[]` stands for the elements of a list. Alternatives (a secret in a file or in
/// a variable) are not looked into.
fn schema_paths(root: &Json) -> BTreeSet<String> {
    fn walk(root: &Json, schema: &Json, at: &str, found: &mut BTreeSet<String>) {
        let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
        if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            let target = root.pointer(reference.trim_start_matches('#')).unwrap();
            walk(root, target, at, found);
        }
        let alternatives: Vec<&Json> = ["anyOf", "oneOf"]
            .iter()
            .filter_map(|key| schema.get(key)?.as_array())
            .flatten()
            .filter(|schema| schema.get("type").is_none_or(|kind| kind != "null"))
            .collect();
        if let [only] = alternatives.as_slice() {
            walk(root, only, at, found);
        }
        if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
            for (key, property) in properties {
                found.insert(below(key));
                walk(root, property, &below(key), found);
            }
        }
        if let Some(items) = schema.get("items") {
            walk(root, items, &below("[]"), found);
        }
    }
    let mut found = BTreeSet::new();
    walk(root, root, "", &mut found);
    found
}

/// A JSON schema validator that knows the schema.
struct Validator {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        let url = "urn:qudag-sidecar:config:1";
        compiler.add_resource(url, schema()).unwrap();
        let index =
            compiler.compile(url, &mut schemas).unwrap_or_else(|why| panic!("not a valid schema: {why}"));
        Self { schemas, index }
    }

    fn accepts(&self, value: &Json) -> bool {
        self.schemas.validate(value, self.index).is_ok()
    }

    fn refusal(&self, value: &Json) -> Option<String> {
        self.schemas.validate(value, self.index).err().map(|why| why.to_string())
    }
}
