//! Environment variables that override keys: `QUDAG_SIDECAR__FILTERS__DNS__DNS_CACHE__MAX_TTL=60s`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use super::problem::Problem;
use super::tree::{Entry, Node, Origin, Value};
use super::yaml;

/// What every overriding variable begins with. The keys follow, separated by `__`.
pub const PREFIX: &str = "QUDAG_SIDECAR__";
/// The longest value, in bytes.
pub(super) const LONGEST_VALUE: usize = 64 << 10;

/// Merges the variables into the tree, shorter paths first, so that a variable for a section does not undo one for a key in
/// it. The value is YAML; an element of a list is named by its position from 0.
pub(super) fn merge<I>(tree: &mut Node, variables: I) -> Vec<Problem>
where
    I: IntoIterator<Item = (OsString, OsString)>,
{
    let mut problems = Vec::new();
    let mut wanted: BTreeMap<Vec<String>, (Arc<str>, OsString)> = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str() else { continue };
        let Some(keys) = name.strip_prefix(PREFIX) else { continue };
        let path: Vec<String> = keys.split("__").map(str::to_lowercase).collect();
        let name: Arc<str> = name.into();
        let origin = Origin::Env(Arc::clone(&name));
        if path.iter().any(String::is_empty) {
            problems.push(
                Problem::new(Vec::new(), "the variable does not name a key")
                    .at(&origin)
                    .hint(format!("write {PREFIX}SECTION__KEY, with two underscores between keys")),
            );
        } else if let Some((other, _)) = wanted.get(&path) {
            problems.push(Problem::new(path, format!("variable {other} sets the same key")).at(&origin));
        } else {
            wanted.insert(path, (name, value));
        }
    }
    for (path, (name, value)) in wanted {
        if let Err(problem) = set(tree, &path, &Origin::Env(name), &value) {
            problems.push(*problem);
        }
    }
    problems
}

/// Sets what is at a path to a value in YAML that comes from `origin`.
pub(super) fn set(
    tree: &mut Node,
    path: &[String],
    origin: &Origin,
    value: &OsString,
) -> Result<(), Box<Problem>> {
    let fail = |message: &str| Box::new(Problem::new(path.to_vec(), message).at(origin));
    let value = value.to_str().ok_or_else(|| fail("the value is not UTF-8"))?;
    if value.len() > LONGEST_VALUE {
        return Err(fail("the value is longer than 64 KiB"));
    }
    let new =
        parse(value, origin).map_err(|problem| Box::new(Problem { path: path.join("."), ..*problem }))?;
    let mut node = tree;
    for (depth, step) in path.iter().enumerate() {
        let index = step.parse::<usize>().ok();
        if node.value == Value::Null || node.dropped {
            let empty = if index == Some(0) { Value::List(Vec::new()) } else { Value::Map(Vec::new()) };
            *node = Node::new(empty, origin.clone());
        }
        let kind = node.kind();
        node = match &mut node.value {
            Value::Map(entries) => {
                let at = entries.iter().position(|entry| entry.key == *step).unwrap_or_else(|| {
                    let node = Node::new(Value::Null, origin.clone());
                    entries.push(Entry { key: step.clone(), origin: origin.clone(), node });
                    entries.len() - 1
                });
                let Some(entry) = entries.get_mut(at) else { return Err(fail("cannot be set")) };
                if depth + 1 == path.len() {
                    entry.origin = origin.clone();
                }
                &mut entry.node
            }
            Value::List(items) => {
                let length = items.len();
                if index == Some(length) {
                    items.push(Node::new(Value::Null, origin.clone()));
                }
                let hint = format!("the list has {length} elements, counted from 0; {length} adds one");
                index
                    .and_then(|index| items.get_mut(index))
                    .ok_or_else(|| Box::new(fail(&format!("`{step}` is no position in a list")).hint(hint)))?
            }
            _ => {
                let above = path.get(..depth).unwrap_or_default().join(".");
                return Err(fail(&format!("{above} is {kind} and has no keys")));
            }
        };
    }
    *node = new;
    Ok(())
}

/// A value from elsewhere: YAML, except that an IPv6 address needs no quotes here.
fn parse(value: &str, origin: &Origin) -> Result<Node, Box<Problem>> {
    if value.starts_with('[') && value.contains("]:") {
        return Ok(Node::new(Value::Text(value.to_owned()), origin.clone()));
    }
    let (node, problems) = yaml::read(value, Some(origin));
    match (node, problems.into_iter().next()) {
        (_, Some(problem)) => Err(Box::new(problem)),
        (Some(node), None) => Ok(node),
        (None, None) => Ok(Node::new(Value::Null, origin.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, variables: &[(&str, &str)]) -> (Node, Vec<Problem>) {
        let mut tree = yaml::read(text, None).0.unwrap();
        let variables =
            variables.iter().map(|(name, value)| (format!("{PREFIX}{name}").into(), value.into()));
        let problems = merge(&mut tree, variables);
        (tree, problems)
    }

    fn value<'a>(tree: &'a Node, path: &str) -> &'a Node {
        tree.written(&path.split('.').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn keys_are_set_replaced_and_added() {
        let (tree, problems) = merged(
            "a: {b: 1}\nlist: [x, y]\n",
            &[
                ("A__B", "2"),
                ("A__C__D", "5s"),
                ("LIST__1", "z"),
                ("LIST__2", "[::1]:53"),
                ("NEW__0", "first"),
                ("MAP", "{k: [1, true]}"),
                ("NOTHING", ""),
            ],
        );
        assert_eq!(problems, []);
        assert_eq!(value(&tree, "a.b").value, Value::Int(2));
        assert_eq!(value(&tree, "a.c.d").value, Value::Text("5s".into()));
        assert_eq!(value(&tree, "list.0").value, Value::Text("x".into()));
        assert_eq!(value(&tree, "list.1").value, Value::Text("z".into()));
        assert_eq!(value(&tree, "list.2").value, Value::Text("[::1]:53".into()));
        assert_eq!(value(&tree, "new.0").value, Value::Text("first".into()));
        assert_eq!(value(&tree, "map.k.1").value, Value::Bool(true));
        assert_eq!(value(&tree, "nothing").value, Value::Null);
        assert_eq!(value(&tree, "a.b").origin, Origin::Env("QUDAG_SIDECAR__A__B".into()));
        assert!(value(&tree, "list.0").origin.place().is_some());
    }

    #[test]
    fn a_section_does_not_undo_a_key_in_it() {
        let (tree, problems) = merged("a: {b: 1}", &[("A__C", "2"), ("A", "{c: 0, d: 3}")]);
        assert_eq!(problems, []);
        assert_eq!(value(&tree, "a.c").value, Value::Int(2));
        assert_eq!(value(&tree, "a.d").value, Value::Int(3));
        assert!(tree.written(&["a".to_owned(), "b".to_owned()]).is_none());
    }

    #[test]
    fn other_variables_are_left_alone() {
        let mut tree = yaml::read("a: 1", None).0.unwrap();
        let before = tree.clone();
        let others = ["QUDAG_SIDECAR_CONFIG", "PATH", "QUDAG_DISABLE_ALL_OPTIMIZATIONS"];
        assert_eq!(merge(&mut tree, others.map(|name| (name.into(), "2".into()))), []);
        assert_eq!(tree, before);
    }

    #[test]
    fn what_cannot_be_set_is_refused_by_name() {
        for (name, value, message) in [
            ("", "1", "does not name a key"),
            ("A____B", "1", "does not name a key"),
            ("A__B__C", "1", "a.b is a number and has no keys"),
            ("LIST__7", "1", "`7` is no position"),
            ("LIST__FIRST", "1", "`first` is no position"),
            ("A__B", "[1", "not valid YAML"),
            ("A__B", "1\n---\n2", "second document"),
        ] {
            let (_, problems) = merged("a: {b: 1}\nlist: [x, y]\n", &[(name, value)]);
            assert_eq!(problems.len(), 1, "{name}={value}: {problems:?}");
            assert!(problems[0].message.contains(message), "{problems:?}");
            assert_eq!(problems[0].variable.as_deref(), Some(format!("{PREFIX}{name}").as_str()));
        }
        let (_, problems) = merged("a: 1", &[("A", "1"), ("a", "2")]);
        assert!(problems[0].message.contains("sets the same key"));
    }
}
