//! The kill file: while it exists, filters are off, whatever else is broken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Layer, Opinion, Question, names};

/// What the file said when it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Killed {
    #[default]
    Nothing,
    Everything,
    Named(Vec<String>),
}

/// A file whose existence switches filters off: all of them when it is empty or says `all`, else
/// those that it names, one `NAME` or `KIND.NAME` a line.
#[derive(Debug)]
pub struct KillFile {
    path: ArcSwap<Option<PathBuf>>,
    killed: ArcSwap<Killed>,
}

impl KillFile {
    /// The file at `path`, read once.
    pub fn new(path: Option<PathBuf>) -> Self {
        let this = Self { path: ArcSwap::from_pointee(None), killed: ArcSwap::from_pointee(Killed::Nothing) };
        this.set_path(path);
        this
    }

    /// Watches another file from now on.
    pub fn set_path(&self, path: Option<PathBuf>) {
        self.path.store(Arc::new(path));
        self.read();
    }

    /// The file.
    pub fn path(&self) -> Option<PathBuf> {
        self.path.load().as_ref().clone()
    }

    /// Reads the file again. Returns whether it says something else than before.
    pub fn read(&self) -> bool {
        let killed = self.path.load().as_deref().map_or(Killed::Nothing, read);
        let before = self.killed.swap(Arc::new(killed.clone()));
        *before != killed
    }
}

fn read(path: &Path) -> Killed {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let named: Vec<String> = text
                .lines()
                .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
            if named.is_empty() || named.iter().any(|name| name == "all") {
                Killed::Everything
            } else {
                Killed::Named(named)
            }
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Killed::Nothing,
        // There but unreadable: somebody meant to pull the lever.
        Err(_) => Killed::Everything,
    }
}

impl Layer for Arc<KillFile> {
    fn name(&self) -> &'static str {
        "kill_file"
    }

    fn opinion(&self, question: &Question<'_>) -> Option<Opinion> {
        let killed = match self.killed.load().as_ref() {
            Killed::Nothing => false,
            Killed::Everything => true,
            Killed::Named(list) => list.iter().any(|name| names(name, question.kind, question.filter)),
        };
        let path = self.path.load();
        let path = path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        killed.then(|| Opinion::off(path))
    }

    fn everything_off(&self) -> bool {
        matches!(self.killed.load().as_ref(), Killed::Everything)
    }
}
