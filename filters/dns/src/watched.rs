//! A file that is read again when it changes, with the last good contents in use in between.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qudag_filter_common::{Followed, Source, read_file};

/// Larger files are refused.
const MAX_FILE: u64 = 32 << 20;

/// What is made of a file's text.
pub(crate) trait Contents: PartialEq + Sized + Send + Sync + 'static {
    /// What reading needs to know besides the text.
    type Terms: Clone + Send + Sync + 'static;

    /// Reads the text.
    ///
    /// # Errors
    /// When it makes no sense as a whole; the last contents stay in use then.
    fn parse(text: &str, terms: &Self::Terms) -> io::Result<Self>;

    /// Says that these contents are in use from now on.
    fn loaded(&self, path: &Path);

    /// Says that the file cannot be read.
    fn failed(path: &Path, terms: &Self::Terms, why: &io::Error);
}

/// A file that is followed. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Watched<T>(Followed<T>);

/// A file with what reading it needs.
struct Text<T: Contents> {
    path: PathBuf,
    terms: T::Terms,
}

impl<T: Contents> Source for Text<T> {
    type Contents = T;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn read(&self) -> io::Result<T> {
        read(&self.path, &self.terms)
    }

    fn loaded(&self, contents: &T) {
        contents.loaded(&self.path);
    }

    fn failed(&self, why: &io::Error) {
        T::failed(&self.path, &self.terms, why);
    }
}

impl<T: Contents> Watched<T> {
    /// Reads the file and follows it from now on, in a task of the current runtime.
    ///
    /// # Errors
    /// When the file cannot be read or is larger than 32 MiB, or there is no runtime.
    pub(crate) fn open(path: &Path, terms: T::Terms) -> io::Result<Self> {
        Followed::open(Text { path: path.to_owned(), terms }).map(Self)
    }

    /// What the file said when it could last be read.
    pub(crate) fn contents(&self) -> arc_swap::Guard<Arc<T>> {
        self.0.contents()
    }
}

/// Whether a file can be read.
pub(crate) fn readable(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0]).map(drop)
}

/// The contents of a file.
///
/// # Errors
/// When it cannot be read, is larger than 32 MiB, or makes no sense.
pub(crate) fn read<T: Contents>(path: &Path, terms: &T::Terms) -> io::Result<T> {
    let bytes = read_file(path, MAX_FILE)?;
    T::parse(&String::from_utf8_lossy(&bytes), terms)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;
    use crate::hosts::Table;
    use crate::testing::{query_wire, until};
    use crate::wire::{parse_query, rtype};

    fn knows(watched: &Watched<Table>, name: &str) -> bool {
        let query = parse_query(&query_wire(name, rtype::A, None)).unwrap();
        watched.contents().answer(&query, 1).is_some()
    }

    #[tokio::test]
    async fn the_file_is_followed_through_writes_renames_links_and_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "192.0.2.1 one\n").unwrap();
        let watched = Watched::<Table>::open(&path, ()).unwrap();
        assert!(knows(&watched, "one"));

        fs::write(&path, "192.0.2.1 number-two\n").unwrap();
        until("written in place", || knows(&watched, "number-two") && !knows(&watched, "one")).await;

        let new = directory.path().join("new");
        fs::write(&new, "192.0.2.1 three\n").unwrap();
        fs::rename(&new, &path).unwrap();
        until("renamed over", || knows(&watched, "three")).await;

        fs::remove_file(&path).unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(knows(&watched, "three"), "the last contents stay in use");
        fs::create_dir(directory.path().join("data")).unwrap();
        fs::write(directory.path().join("data/hosts"), "192.0.2.1 four\n").unwrap();
        symlink("data/hosts", &path).unwrap();
        until("linked", || knows(&watched, "four")).await;

        // Behind the link nothing is reported for this directory.
        fs::write(directory.path().join("data/hosts"), "192.0.2.1 number-five\n").unwrap();
        until("written behind the link", || knows(&watched, "number-five")).await;
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Watched::<Table>::open(&directory.path().join("absent"), ()).is_err());
        assert!(Watched::<Table>::open(directory.path(), ()).is_err());
    }

    #[tokio::test]
    async fn following_ends_with_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "").unwrap();
        let watched = Watched::<Table>::open(&path, ()).unwrap();
        let table = Arc::downgrade(&watched.contents());
        drop(watched);
        until("the task is gone", || table.upgrade().is_none()).await;
    }
}
