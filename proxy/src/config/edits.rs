//! Live settings: values that the operator has laid over the file and the environment, `filters.db.db_pool.size=5`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::env;
use super::problem::Problem;
use super::tree::{Node, Origin};

/// The longest key, in bytes.
const LONGEST_KEY: usize = 512;

/// A value for a key, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The key, `filters.db.db_pool.size` for instance; an element of a list is named by its position from 0.
    pub key: String,
    /// The value in YAML.
    pub value: String,
}

impl Edit {
    /// An edit whose key may be one.
    ///
    /// # Errors
    /// When it cannot, with what would be right.
    pub fn new(key: &str, value: &str) -> Result<Self, String> {
        let step =
            |step: &str| !step.is_empty() && !step.chars().any(|c| c.is_control() || c.is_whitespace());
        if key.len() > LONGEST_KEY || !key.split('.').all(step) {
            let shown: String = key.chars().take(80).collect();
            return Err(format!("{shown:?} is no key; keys are written as filters.db.db_pool.size"));
        }
        if value.len() > env::LONGEST_VALUE {
            return Err("the value is longer than 64 KiB".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }

    fn path(&self) -> Vec<String> {
        self.key.split('.').map(str::to_owned).collect()
    }
}

/// Lays the edits over the tree, shorter paths first, so that an edit of a section does not undo one of a key in it.
pub(super) fn merge(tree: &mut Node, edits: &[Edit]) -> Vec<Problem> {
    let wanted: BTreeMap<_, _> = edits.iter().map(|edit| (edit.path(), &edit.value)).collect();
    let set = |(path, value): (Vec<String>, &String)| {
        env::set(tree, &path, &Origin::Operator, &OsString::from(value)).err().map(|problem| *problem)
    };
    wanted.into_iter().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load_text_with};

    const YAML: &str = "version: 1\nfilters:\n  db:\n    db_pool: { enabled: true, size: 20 }\n";

    fn edit(key: &str, value: &str) -> Edit {
        Edit::new(key, value).unwrap()
    }

    fn load(edits: &[Edit]) -> Result<crate::config::Loaded, crate::config::ConfigFailure> {
        let variables = [("QUDAG_SIDECAR__FILTERS__DB__DB_POOL__WAIT", "7s")];
        load_text_with(&Source::File("/x/test.yaml".into()), YAML.to_owned(), variables, edits)
    }

    #[test]
    fn they_outrank_the_file_and_the_environment_and_say_so() {
        let all = [
            edit("filters.db.db_pool.size", "5"),
            edit("filters.db.db_pool.wait", "3s"),
            edit("filters.dns.dns_upstream.servers", "[192.0.2.1]"),
            edit("filters.dns.dns_upstream.servers.1", "192.0.2.2"),
        ];
        let loaded = load(&all).unwrap();
        let pool = &loaded.config.filters.db.db_pool.settings;
        assert_eq!((pool.size, pool.wait.to_string().as_str()), (5, "3s"));
        assert_eq!(loaded.config.filters.dns.dns_upstream.servers.len(), 2);
        assert_eq!(loaded.origin(&["filters", "db", "db_pool", "size"]), "set");
        assert_eq!(loaded.origin(&["filters", "db", "db_pool", "enabled"]), "/x/test.yaml:4");
        let shown = crate::config::show(&loaded, true);
        assert!(shown.lines().any(|line| line.contains("size: 5") && line.ends_with("# set")), "{shown}");
        assert_eq!(loaded.edits, all);
        assert_eq!(load(&[]).unwrap().config.filters.db.db_pool.settings.wait.to_string(), "7s");
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (key, value, said) in [
            ("filters.db.db_pool.size", "0", "live setting: filters.db.db_pool.size: 0 is out of range"),
            ("filters.db.db_pool.size", "many", "live setting: filters.db.db_pool.size: "),
            ("filters.db.db_pool.sise", "5", "live setting: filters.db.db_pool.sise: unknown key `sise`"),
            ("filters.db.db_pool.size.x", "5", "live setting: filters.db.db_pool.size.x: "),
            ("node.name", "[1", "live setting: node.name: not valid YAML"),
            ("admin.token", "hunter2", "live setting: admin.token: "),
        ] {
            let failure = load(&[edit(key, value)]).unwrap_err();
            assert!(failure.to_string().starts_with(said), "{failure}");
            assert!(failure.problems[0].operator, "{failure}");
            assert!(
                !failure.to_string().contains("hunter2") && !failure.render(false).contains("hunter2"),
                "{failure}"
            );
        }
        // Not the edit itself is wrong, but what it does not fit to.
        let failure = load(&[edit("filters.db.db_pool.size", "200")]).unwrap_err();
        assert!(failure.to_string().contains("max_servers"), "{failure}");
    }

    #[test]
    fn keys_are_checked() {
        for key in ["", ".", "a.", ".a", "a..b", "a b", "a\n", &"x".repeat(513)] {
            assert!(Edit::new(key, "1").is_err(), "{key:?}");
        }
        assert!(Edit::new("a", &"x".repeat(65 << 10)).is_err());
    }
}
