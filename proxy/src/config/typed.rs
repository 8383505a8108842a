//! From the tree to a typed value, with every error at once.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::de::{Fault, NodeDe};
use super::problem::Problem;
use super::tree::Node;

/// How many problems are looked for.
pub(super) const MOST_PROBLEMS: usize = 100;

/// What a tree gave.
pub(super) struct Typed<T> {
    /// The value, without everything that was wrong; `None` if nothing is left.
    pub(super) value: Option<T>,
    /// What was wrong.
    pub(super) problems: Vec<Problem>,
    /// The paths of known keys whose values were wrong.
    pub(super) wrong: BTreeSet<Vec<String>>,
}

/// Reads a value from the tree. What is wrong is dropped from the tree and reading starts again, so that one run finds everything.
pub(super) fn typed<T: DeserializeOwned>(tree: &mut Node, text: &str) -> Typed<T> {
    let mut typed = Typed { value: None, problems: Vec::new(), wrong: BTreeSet::new() };
    loop {
        let error = match T::deserialize(NodeDe(tree)) {
            Ok(value) => {
                typed.value = Some(value);
                return typed;
            }
            Err(error) => error,
        };
        let (path, culprit) = (error.path(), error.culprit());
        // A key that is missing only because its value was dropped has been complained about.
        let consequence = match error.fault {
            Fault::Consequence => true,
            Fault::Missing => typed.wrong.contains(&path),
            Fault::Key | Fault::Value => false,
        };
        if !consequence {
            let at = error.at.clone().unwrap_or_else(|| tree.origin.clone());
            let value = tree.written(&path).and_then(|node| node.seen(text));
            let mut problem = Problem::new(path, error.message).at(&at);
            problem.hint = error.hint;
            match error.secret {
                Some(origin) => problem.secret = origin.place(),
                None => problem.value = value,
            }
            typed.problems.push(problem);
        }
        if typed.problems.len() >= MOST_PROBLEMS {
            typed.problems.push(Problem::new(Vec::new(), "more problems than are shown"));
            return typed;
        }
        if error.fault != Fault::Key {
            typed.wrong.insert(culprit.clone());
        }
        if !tree.drop_at(&culprit) {
            return typed;
        }
    }
}
