//! The effective configuration as YAML.

use std::collections::BTreeMap;

use super::load::Loaded;
use super::tree::{Node, Origin, Place, Value};
use super::yaml;

/// The whole configuration in force, defaults included, as YAML that can be loaded again. Secrets appear as references only.
/// With `with_origin` each value is followed by `# FILE:LINE`, `# env NAME` or `# default`.
pub fn show(loaded: &Loaded, with_origin: bool) -> String {
    // A value is one line, so that its origin can stand behind it.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    // Serialisation of plain settings into memory does not fail.
    let text = serde_saphyr::to_string_with_options(&loaded.config, options).unwrap_or_default();
    if !with_origin {
        return text;
    }
    let mut origins = BTreeMap::new();
    if let (Some(shown), _) = yaml::read(&text, None) {
        leaves(&shown, &mut Vec::new(), &mut |place, path| {
            // Within a text of several lines a comment would be a part of it.
            let written = text.get(place.offset..place.offset.saturating_add(place.bytes));
            if !written.is_some_and(|written| written.trim_end().contains('\n')) {
                origins.entry(place.line).or_insert_with(|| loaded.origin(path));
            }
        });
    }
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default().min(60);
    let mut out = String::with_capacity(text.len() * 2);
    for (index, line) in text.lines().enumerate() {
        match origins.get(&(index + 1)) {
            Some(origin) => out.push_str(&format!("{line:widest$}  # {origin}\n")),
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

/// Calls `leaf` with the place and the path of each value that holds no others.
fn leaves(node: &Node, path: &mut Vec<String>, leaf: &mut impl FnMut(Place, &[String])) {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            for entry in entries {
                path.push(entry.key.clone());
                leaves(&entry.node, path, leaf);
                path.pop();
            }
        }
        Value::List(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                leaves(item, path, leaf);
                path.pop();
            }
        }
        _ => {
            if let Origin::File(place) = node.origin {
                leaf(place, path);
            }
        }
    }
}
