//! The documents say what the program does: every key with its default, every metric, every link.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/e2e lies two folders below the root").to_path_buf()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// `configs/schema.json`, which another check compares with what the program prints.
fn schema() -> Value {
    serde_json::from_str(&read("configs/schema.json")).expect("JSON")
}

/// The properties of the object that `node` is, refers to, or may be.
fn properties<'a>(schema: &'a Value, node: &'a Value) -> Vec<(&'a String, &'a Value)> {
    if let Some(name) = node["$ref"].as_str() {
        return properties(schema, &schema["$defs"][name.trim_start_matches("#/$defs/")]);
    }
    if let Some(choices) = node["anyOf"].as_array() {
        return choices.iter().flat_map(|choice| properties(schema, choice)).collect();
    }
    node["properties"].as_object().into_iter().flatten().collect()
}

fn property<'a>(schema: &'a Value, node: &'a Value, key: &str) -> &'a Value {
    let found = properties(schema, node).into_iter().find(|(name, _)| *name == key);
    found.unwrap_or_else(|| panic!("no {key} in the schema")).1
}

/// The rows of a Markdown table that begins below a heading, or of the whole text: the cells without white space around
/// them.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim_matches([' ', '|'])).collect())
        .collect()
}

/// The part of a text below a heading and before the next one of any level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    rest.split("\n#").next().unwrap_or(rest)
}

/// What stands in the first pair of backticks.
fn quoted(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or(cell)
}

/// A default as people write it: durations of several units are written with one.
fn same(shown: &str, default: &Value) -> bool {
    let text = match default {
        // Words may say what happens then.
        Value::Null => return !shown.contains('`') || quoted(shown) == "null",
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let shown = quoted(shown);
    let plain = |text: &str| text.replace([' ', '"', '{', '}'], "");
    let aliases = [("300s", "5m"), ("240s", "4m"), ("60s", "1m"), ("1500ms", "1s 500ms")];
    let same_fields = |a: &str, b: &str| {
        let fields = |text: &str| plain(text).split(',').map(str::to_owned).collect::<BTreeSet<_>>();
        fields(a) == fields(b)
    };
    shown == text || same_fields(shown, &text) || aliases.contains(&(shown, text.as_str()))
}

/// Checks one table of keys against one object of the schema: no key is missing or too many, and defaults fit.
fn check_table(what: &str, table: &str, schema: &Value, node: &Value) {
    let rows = rows(table);
    let shown: Vec<_> = rows.iter().filter(|row| row.len() == 3 && row[0].starts_with('`')).collect();
    let names = |row: &&Vec<&str>| quoted(row[0]).to_owned();
    let documented: BTreeSet<_> = shown.iter().map(names).filter(|name| !name.starts_with('…')).collect();
    let actual: BTreeSet<_> = properties(schema, node).into_iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(documented, actual, "the keys of {what}");
    for row in shown.iter().filter(|row| !quoted(row[0]).starts_with('…')) {
        let property = property(schema, node, quoted(row[0]));
        let Some(default) = property.get("default") else { continue };
        // A default that is another one for one kind stands behind the kind's name.
        let own = what.split('.').nth(1).and_then(|kind| row[1].split_once(&format!("{kind}: ")));
        let shown = own.map_or(row[1], |(_, own)| own);
        assert!(same(shown, default), "{what}.{}: shown as {}, is {default}", quoted(row[0]), row[1]);
    }
}

#[test]
fn every_filter_has_a_page_with_all_its_keys_and_defaults() {
    let schema = schema();
    let filters = property(&schema, &schema, "filters");
    let mut pages = BTreeSet::new();
    for (kind, chain) in properties(&schema, filters) {
        for (name, filter) in properties(&schema, chain) {
            let page = read(format!("docs/filters/{name}.md"));
            assert!(
                page.contains(&format!("`{kind}`")),
                "docs/filters/{name}.md does not say that {kind} has it"
            );
            // A filter with other keys for another kind has a section for that one, after what holds for the others.
            let what = format!("filters.{kind}.{name}");
            let own = page
                .split_once(&format!("\n## `{what}`\n"))
                .map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest));
            let common = page.split("\n## `filters.").next().unwrap_or(&page);
            check_table(&what, own.unwrap_or(common), &schema, filter);
            pages.insert(format!("{name}.md"));
        }
    }
    let entries = std::fs::read_dir(root().join("docs/filters")).expect("the pages");
    let there: BTreeSet<_> =
        entries.map(|entry| entry.expect("a page").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(there, pages, "pages without a filter");
}

#[test]
fn every_key_of_the_listeners_and_the_node_is_documented_with_its_default() {
    let (schema, text) = (schema(), read("docs/configuration.md"));
    let listeners = property(&schema, &schema, "listeners");
    for (kind, listener) in properties(&schema, listeners) {
        let what = format!("listeners.{kind}");
        check_table(&what, section(&text, &format!("### `{what}`")), &schema, listener);
    }
    let capture = property(&schema, property(&schema, listeners, "peer"), "capture");
    check_table("peer.capture", section(&text, "#### `listeners.peer.capture`"), &schema, capture);
    for key in ["node", "admin"] {
        check_table(key, section(&text, &format!("### `{key}`")), &schema, property(&schema, &schema, key));
    }
    let bypass = property(&schema, &schema, "bypass");
    check_table("bypass", section(&text, "### `bypass`\n"), &schema, bypass);
    for key in ["update", "verify"] {
        let what = format!("bypass.{key}");
        check_table(
            &what,
            section(&text, &format!("#### `{what}`")),
            &schema,
            property(&schema, bypass, key),
        );
    }
    for (top, _) in properties(&schema, &schema) {
        assert!(
            text.contains(&format!("{top}:")) || text.contains(&format!("`{top}")),
            "{top} is not documented"
        );
    }
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let names = |text: &str, quote: char| -> BTreeSet<String> {
        let words = text.split(quote).skip(1).step_by(2);
        let metric = |word: &&str| {
            let prefixed = word.starts_with("qudag_sidecar_") || word.starts_with("process_");
            prefixed && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        words.filter(metric).map(str::to_owned).collect()
    };
    let tables: String = read("docs/metrics.md").lines().filter(|line| line.starts_with("| `")).collect();
    let catalogue = names(&read("proxy/src/telemetry/catalogue.rs"), '"');
    assert!(catalogue.len() > 20, "{catalogue:?}");
    assert_eq!(names(&tables, '`'), catalogue);
}

#[test]
fn every_standard_names_tests_that_exist() {
    let text = read("docs/dns-standards.md");
    let named: BTreeSet<_> =
        text.split('`').skip(1).step_by(2).filter_map(|it| it.split_once("::")).collect();
    assert!(named.len() > 25, "only {named:?}");
    for (file, test) in named {
        let source = read(format!("tests/e2e/tests/{file}.rs"));
        let (before, _) = source
            .split_once(&format!("fn {test}()"))
            .unwrap_or_else(|| panic!("no test {test} in {file}.rs"));
        let attributes = before.rsplit("\n\n").next().unwrap_or(before);
        assert!(attributes.contains("test"), "{file}::{test} is no test");
    }
    let standards = section(&text, "# DNS and its standards");
    for row in rows(standards).iter().filter(|row| row[0].starts_with("RFC")) {
        assert!(row.len() == 4 && row[3].contains("::"), "{} has no test", row[0]);
    }
    let reasons: BTreeSet<_> = qudag_e2e::differences::Reason::ALL.map(|reason| reason.label()).into();
    let documented =
        rows(section(&text, "## Beside Unbound")).into_iter().filter(|row| row[0].starts_with('`'));
    assert_eq!(documented.map(|row| quoted(row[0]).to_owned()).collect::<BTreeSet<_>>(), reasons);
}

#[test]
fn links_lead_somewhere() {
    let mut pages =
        vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("CHANGELOG.md")];
    for folder in ["docs", "docs/filters"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("the pages");
        let entries = entries.map(|entry| entry.expect("a page").path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut links = 0;
    for page in pages {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let target = page.parent().expect("a folder").join(file);
            assert!(target.exists(), "{} links to {file}, which is not there", page.display());
            links += 1;
        }
    }
    assert!(links > 30, "only {links} links were found");
}
