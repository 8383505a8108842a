//! A configuration as a tree in which every key and value knows where it was written.

use std::sync::Arc;

/// A place in the text of a configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// How many characters belong to it, at least 1, on its first line.
    pub length: usize,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// How many bytes belong to it, on all its lines.
    pub bytes: usize,
}

/// Who wrote a key or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file, there.
    File(Place),
    /// The environment variable of this name.
    Env(Arc<str>),
    /// The operator, while the sidecar runs.
    Operator,
}

impl Origin {
    /// The place in the file, if the file wrote it.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::File(place) => Some(*place),
            Self::Env(_) | Self::Operator => None,
        }
    }
}

/// What a node holds: the values of the YAML 1.2 core schema (section 10.3).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Everything else that is neither list nor map.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order in which it was written.
    Map(Vec<Entry>),
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written.
    pub origin: Origin,
    /// Left out of everything that reads the tree, because it was found wrong; its position in a list stays taken.
    pub dropped: bool,
}

/// A key of a map with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub origin: Origin,
    /// The value.
    pub node: Node,
}

impl Node {
    /// A node.
    pub fn new(value: Value, origin: Origin) -> Self {
        Self { value, origin, dropped: false }
    }

    /// The value of a key, unless it was dropped.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key && !entry.node.dropped),
            _ => None,
        }
    }

    /// What was written at a path, dropped or not.
    pub fn written(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| match &node.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == *step).map(|entry| &entry.node),
            Value::List(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The child of this name, or at this position of a list, dropped or not.
    pub fn child_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Map(entries) => {
                entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
            }
            Value::List(items) => items.get_mut(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// Marks what is at a path as dropped. False if nothing is there, it was dropped before, or it is the root.
    pub fn drop_at(&mut self, path: &[String]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        let Some(parent) = above.iter().try_fold(self, |node, key| node.child_mut(key)) else {
            return false;
        };
        let child = match &mut parent.value {
            // Of a key written twice only the first is alive.
            Value::Map(entries) => entries
                .iter_mut()
                .find(|entry| entry.key == *last && !entry.node.dropped)
                .map(|entry| &mut entry.node),
            _ => parent.child_mut(last),
        };
        child.is_some_and(|child| !std::mem::replace(&mut child.dropped, true))
    }

    /// The origin of what is at a path, and its value; the path may lead through lists, whose positions count
    /// what was not dropped. The answer's path counts everything.
    pub fn find(&self, path: &[String]) -> Option<Found<'_>> {
        let mut found = Found { node: self, key: None, path: Vec::new() };
        for step in path {
            found = match &found.node.value {
                Value::Map(_) => {
                    let entry = found.node.get(step)?;
                    found.path.push(entry.key.clone());
                    Found { node: &entry.node, key: Some(&entry.origin), path: found.path }
                }
                Value::List(items) => {
                    let alive = items.iter().enumerate().filter(|(_, item)| !item.dropped);
                    let (index, node) = alive.into_iter().nth(step.parse().ok()?)?;
                    found.path.push(index.to_string());
                    Found { node, key: None, path: found.path }
                }
                _ => return None,
            };
        }
        Some(found)
    }

    /// The name of the kind of value, as errors say it.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value as it was written, for errors: shortened, on one line; `None` for lists and maps.
    pub fn seen(&self, text: &str) -> Option<String> {
        const LONGEST: usize = 80;
        let written = match (&self.value, &self.origin) {
            (Value::List(_) | Value::Map(_), _) => return None,
            // Where nothing was written, the place is that of the key.
            (Value::Null, _) => return Some("null".to_owned()),
            (_, Origin::File(place)) if place.bytes > 0 => {
                text.get(place.offset..place.offset.saturating_add(place.bytes))?.to_owned()
            }
            (Value::Bool(value), _) => value.to_string(),
            (Value::Int(value), _) => value.to_string(),
            (Value::Float(value), _) => value.to_string(),
            (Value::Text(value), _) => value.clone(),
        };
        let line = written.lines().next().unwrap_or_default();
        let mut seen: String = line.chars().take(LONGEST).map(printable).collect();
        if seen.len() < written.len() {
            seen.push('…');
        }
        Some(seen)
    }
}

/// A character that a terminal shows and does not obey.
pub(super) fn printable(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

/// What [`Node::find`] found.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The node.
    pub node: &'a Node,
    /// Where its key was written, if it has one.
    pub key: Option<&'a Origin>,
    /// The path, with positions in lists as they were written.
    pub path: Vec<String>,
}
