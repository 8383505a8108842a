//! From a file, or the embedded defaults, the environment and live settings to a checked configuration.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use qudag_filter_api::ConfigError;

use super::check::check;
use super::problem::{ConfigFailure, Problem};
use super::root::{Config, Version};
use super::tree::{Entry, Node, Origin, Value};
use super::typed::{MOST_PROBLEMS, Typed, typed};
use super::{Edit, edits, env, yaml};

/// The configuration that is used when no file is given.
pub const QUICKSTART: &str = include_str!("../../../configs/quickstart.yaml");

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The defaults inside the program.
    Embedded,
}

impl Source {
    /// The file that was asked for, as an absolute path; the embedded defaults where none was.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn new(file: Option<&Path>) -> Result<Self, ConfigFailure> {
        let Some(file) = file else { return Ok(Self::Embedded) };
        // Only made absolute: a symbolic link that is exchanged later must be followed anew.
        let absolute =
            std::path::absolute(file).map_err(|why| Self::File(file.to_owned()).unreadable(why))?;
        let source = Self::File(absolute);
        match std::fs::metadata(file) {
            Ok(_) => Ok(source),
            Err(why) => Err(source.unreadable(why)),
        }
    }

    fn unreadable(&self, why: impl fmt::Display) -> ConfigFailure {
        let hint = match self {
            Self::File(path) if path.extension().is_none_or(|extension| extension != "yaml") => {
                "check the path; configuration files usually end in .yaml"
            }
            _ => "check the path and its permissions",
        };
        let problem = Problem::new(Vec::new(), format!("the file cannot be read: {why}")).hint(hint);
        ConfigFailure { source: self.to_string(), text: String::new(), problems: vec![problem] }
    }

    fn read(&self) -> Result<String, ConfigFailure> {
        let Self::File(path) = self else { return Ok(QUICKSTART.to_owned()) };
        let mut bytes = Vec::new();
        let limit = yaml::LARGEST_FILE as u64 + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|why| self.unreadable(why))?;
        String::from_utf8(bytes).map_err(|why| {
            let good = why.as_bytes().get(..why.utf8_error().valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let before = String::from_utf8_lossy(good.get(start..).unwrap_or_default()).chars().count();
            let mut problem = Problem::new(Vec::new(), "not UTF-8").hint("save the file as UTF-8");
            (problem.line, problem.column, problem.length) = (Some(line), Some(before + 1), Some(1));
            ConfigFailure { source: self.to_string(), text: String::new(), problems: vec![problem] }
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Embedded => f.write_str("embedded"),
        }
    }
}

/// A checked configuration and where each part of it comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration, defaults included.
    pub config: Config,
    /// What the file, the environment and the operator say.
    pub tree: Node,
    /// The file's text.
    pub text: String,
    /// Where it came from.
    pub source: Source,
    /// BLAKE3 of the text, hexadecimal.
    pub fingerprint: String,
    /// What the operator has laid over it.
    pub edits: Vec<Edit>,
}

impl Loaded {
    /// Who sets the value at a path: `FILE:LINE`, `env NAME`, `set` by the operator, or nobody.
    pub fn mentioned<S: AsRef<str>>(&self, path: &[S]) -> Option<String> {
        let path: Vec<String> = path.iter().map(|key| key.as_ref().to_owned()).collect();
        let found = self.tree.find(&path)?;
        Some(match found.key.unwrap_or(&found.node.origin) {
            Origin::Env(name) => format!("env {name}"),
            Origin::Operator => "set".to_owned(),
            Origin::File(place) => format!("{}:{}", self.source, place.line),
        })
    }

    /// Like [`Loaded::mentioned`], and `default` where nobody sets the value.
    pub fn origin<S: AsRef<str>>(&self, path: &[S]) -> String {
        self.mentioned(path).unwrap_or_else(|| "default".to_owned())
    }
}

/// Reads and checks a configuration. `variables` is the environment: `std::env::vars_os()`.
///
/// # Errors
/// Every problem, with its place.
pub fn load<I, K, V>(source: &Source, variables: I) -> Result<Loaded, ConfigFailure>
where
    I: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    load_with(source, variables, &[])
}

/// Reads and checks a configuration with what the operator lays over it.
///
/// # Errors
/// Every problem, with its place.
pub fn load_with<I, K, V>(source: &Source, variables: I, edits: &[Edit]) -> Result<Loaded, ConfigFailure>
where
    I: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    load_text_with(source, source.read()?, variables, edits)
}

/// Checks the text of a configuration that came from `source`.
///
/// # Errors
/// Every problem, with its place.
pub fn load_text<I, K, V>(source: &Source, text: String, variables: I) -> Result<Loaded, ConfigFailure>
where
    I: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    load_text_with(source, text, variables, &[])
}

/// Checks the text of a configuration with what the operator lays over it.
///
/// # Errors
/// Every problem, with its place.
pub fn load_text_with<I, K, V>(
    source: &Source,
    text: String,
    variables: I,
    edits: &[Edit],
) -> Result<Loaded, ConfigFailure>
where
    I: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
    match evaluate(&text, variables, edits) {
        Ok((config, tree)) => {
            let fingerprint = blake3::hash(text.as_bytes()).to_hex().to_string();
            Ok(Loaded { config, tree, text, source: source.clone(), fingerprint, edits: edits.to_vec() })
        }
        Err(mut problems) => {
            problems.sort_by_key(Problem::order);
            problems.dedup();
            Err(ConfigFailure { source: source.to_string(), text, problems })
        }
    }
}

/// Checks a text that nothing else is known of. Never panics, whatever the text.
///
/// # Errors
/// Every problem, with its place.
pub fn parse(text: &str) -> Result<Loaded, ConfigFailure> {
    load_text(&Source::Embedded, text.to_owned(), std::iter::empty::<(OsString, OsString)>())
}

fn evaluate(
    text: &str,
    variables: impl Iterator<Item = (OsString, OsString)>,
    edits: &[Edit],
) -> Result<(Config, Node), Vec<Problem>> {
    let (tree, mut problems) = yaml::read(text, None);
    let Some(mut tree) = tree else { return Err(problems) };
    problems.extend(env::merge(&mut tree, variables));
    problems.extend(edits::merge(&mut tree, edits));
    let whole = tree.clone();
    problems.extend(version(&mut tree));
    let Typed { value, problems: wrong_values, wrong } = typed::<Config>(&mut tree, text);
    problems.extend(wrong_values);
    let Some(config) = value else { return Err(problems) };
    let room = MOST_PROBLEMS.saturating_sub(problems.len());
    let dropped = |error: &ConfigError| {
        // The check saw the default instead of what was written, or a list without an element.
        let token = |key: &str| wrong.contains(&["admin".to_owned(), key.to_owned()][..]);
        let keys = error.at.keys();
        let gone = wrong.iter().any(|path| path.starts_with(keys) && path.len() <= keys.len() + 1);
        gone || (keys == ["admin", "bind"] && token("token"))
    };
    let errors = check(&config).into_iter().filter(|error| !dropped(error));
    problems.extend(errors.map(|error| locate(&tree, text, error)).take(room));
    if problems.is_empty() { Ok((config, whole)) } else { Err(problems) }
}

/// Sees to the version, so that a wrong one does not hide everything else.
fn version(tree: &mut Node) -> Vec<Problem> {
    let path = || vec!["version".to_owned()];
    let right = Value::Int(i128::from(Version::NUMBER));
    let origin = tree.origin.clone();
    if tree.value == Value::Null {
        tree.value = Value::Map(Vec::new());
    }
    let Value::Map(entries) = &mut tree.value else { return Vec::new() };
    let Some(entry) = entries.iter_mut().find(|entry| entry.key == "version" && !entry.node.dropped) else {
        entries.push(Entry {
            key: "version".to_owned(),
            origin: origin.clone(),
            node: Node::new(right, origin.clone()),
        });
        let problem = Problem::new(path(), "key `version` is missing").at(&origin);
        return vec![problem.hint("begin the file with `version: 1`")];
    };
    if entry.node.value == right {
        return Vec::new();
    }
    let problem = Problem::new(path(), "not a version that this program knows")
        .at(&entry.node.origin)
        .hint("write `version: 1`");
    let seen = match &entry.node.value {
        Value::Int(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Text(text) => Some(text.chars().take(80).collect()),
        _ => None,
    };
    entry.node.value = right;
    vec![Problem { value: seen, ..problem }]
}

/// A problem at the place of a check's error; at what contains it, if the value is a default.
fn locate(tree: &Node, text: &str, error: ConfigError) -> Problem {
    let ConfigError { at, problem, hint } = error;
    let keys = at.keys();
    let found = tree.find(keys);
    let path = found.as_ref().map_or_else(|| keys.to_vec(), |found| found.path.clone());
    let nearest = (0..=keys.len()).rev().find_map(|length| tree.find(keys.get(..length)?));
    let mut located = Problem::new(path, problem);
    if let Some(nearest) = nearest {
        // A value that is there is shown itself; for what is not, or is a whole section, the key says more.
        let scalar = found.is_some() && !matches!(nearest.node.value, Value::List(_) | Value::Map(_));
        let origin = if scalar { &nearest.node.origin } else { nearest.key.unwrap_or(&nearest.node.origin) };
        located = located.at(origin);
    }
    located.value = found.and_then(|found| found.node.seen(text));
    located.hint = hint;
    located
}

/// The problems of a configuration that was read before, in its places: for what only a comparison with another one shows.
pub fn problems(loaded: &Loaded, errors: Vec<ConfigError>) -> ConfigFailure {
    let mut problems: Vec<_> =
        errors.into_iter().map(|error| locate(&loaded.tree, &loaded.text, error)).collect();
    problems.sort_by_key(Problem::order);
    ConfigFailure { source: loaded.source.to_string(), text: loaded.text.clone(), problems }
}
