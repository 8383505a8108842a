//! Files that are read again when they change, with the last good contents in use in between.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use futures_util::future::select_all;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::Watch;

/// How often the files are looked at although nothing was reported, and read again while they cannot be used.
const POLL: Duration = Duration::from_secs(1);
/// How long a file must be left alone before it is read: writers write in several steps.
const SETTLE: Duration = Duration::from_millis(30);

/// Files that belong together, and what is made of them.
pub trait Source: Send + Sync + 'static {
    /// What is made of them.
    type Contents: PartialEq + Send + Sync + 'static;

    /// The files, at least one.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads them.
    ///
    /// # Errors
    /// When they cannot be used; the last contents stay in use then.
    fn read(&self) -> io::Result<Self::Contents>;

    /// Says that these contents are in use from now on.
    fn loaded(&self, contents: &Self::Contents);

    /// Says that the files cannot be used. Several files are written one after the other: that they do not fit is said when they still do
    /// not after a second.
    fn failed(&self, why: &io::Error);
}

/// Files that are followed. Dropping it ends that.
#[derive(Debug)]
pub struct Followed<T> {
    contents: Arc<ArcSwap<T>>,
    _follower: AbortOnDropHandle<()>,
}

impl<T: PartialEq + Send + Sync + 'static> Followed<T> {
    /// Reads the files and follows them from now on, in a task of the current runtime.
    ///
    /// # Errors
    /// When they cannot be used, or there is no runtime.
    pub fn open(source: impl Source<Contents = T>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        // Before the first reading, so that no change is lost between the two.
        let watches: Vec<_> = {
            let _context = runtime.enter();
            source.files().into_iter().map(|file| Watch::new(file, POLL, SETTLE)).collect()
        };
        let first = source.read()?;
        source.loaded(&first);
        let contents = Arc::new(ArcSwap::from_pointee(first));
        let follower = runtime.spawn(follow(watches, Arc::clone(&contents), Arc::new(source)));
        Ok(Self { contents, _follower: AbortOnDropHandle::new(follower) })
    }

    /// What the files said when they could last be used.
    pub fn contents(&self) -> Guard<Arc<T>> {
        self.contents.load()
    }
}

async fn follow<S: Source>(mut watches: Vec<Watch>, contents: Arc<ArcSwap<S::Contents>>, source: Arc<S>) {
    let patience = usize::from(watches.len() > 1);
    let mut failures = 0;
    loop {
        tokio::select! {
            _ = select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed()))) => {}
            // What made a file unreadable need not show in its fingerprint, nor need its end.
            () = sleep(POLL), if failures > 0 => {}
        }
        let reader = Arc::clone(&source);
        let result = tokio::task::spawn_blocking(move || reader.read()).await;
        match result.unwrap_or_else(|why| Err(io::Error::other(why))) {
            Ok(new) => {
                failures = 0;
                if **contents.load() != new {
                    source.loaded(&new);
                    contents.store(Arc::new(new));
                }
            }
            Err(why) => {
                if failures == patience {
                    source.failed(&why);
                }
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// The bytes of a file.
///
/// # Errors
/// When it cannot be read, or is larger than `most` bytes.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let why = format!("the file is larger than {} MiB", most >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::until;

    /// Two files whose contents have to be the same.
    struct Pair {
        files: [PathBuf; 2],
        failures: Arc<AtomicUsize>,
    }

    impl Source for Pair {
        type Contents = Vec<u8>;

        fn files(&self) -> Vec<PathBuf> {
            self.files.to_vec()
        }

        fn read(&self) -> io::Result<Vec<u8>> {
            let [one, other] = [read_file(&self.files[0], 8)?, read_file(&self.files[1], 8)?];
            if one == other { Ok(one) } else { Err(io::Error::other("they differ")) }
        }

        fn loaded(&self, _: &Vec<u8>) {}

        fn failed(&self, _: &io::Error) {
            self.failures.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn two_files_are_one_and_the_last_good_pair_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        let write = |place: usize, text: &str| fs::write(&files[place], text).unwrap();
        let failures = Arc::new(AtomicUsize::new(0));
        let pair = || Pair { files: files.clone(), failures: Arc::clone(&failures) };
        assert!(Followed::open(pair()).is_err());
        write(0, "one");
        write(1, "one");
        let followed = Followed::open(pair()).unwrap();
        write(1, "three");
        until("it is said", || failures.load(Ordering::SeqCst) == 1).await;
        assert_eq!(**followed.contents(), b"one");
        write(0, "three");
        until("they fit", || **followed.contents() == b"three").await;
        write(0, "too long for the limit");
        until("it is said again", || failures.load(Ordering::SeqCst) == 2).await;
        assert_eq!(**followed.contents(), b"three");
    }
}
