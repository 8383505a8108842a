//! Keeps the table of a hosts file up to date.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use qudag_filter_common::{LiveGauge, Watch};
use tokio_util::task::AbortOnDropHandle;

use super::table::Table;

/// Larger files are refused.
const MAX_FILE: u64 = 32 << 20;
/// How often the file is looked at although nothing was reported, and read again while it cannot be read.
const POLL: Duration = Duration::from_secs(1);
/// How long the file must be left alone before it is read: writers write in several steps.
const SETTLE: Duration = Duration::from_millis(30);

/// A hosts file that is followed. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Watched {
    table: Arc<ArcSwap<Table>>,
    _follower: AbortOnDropHandle<()>,
}

impl Watched {
    /// Reads the file and follows it from now on, in a task of the current runtime.
    ///
    /// # Errors
    /// When the file cannot be read or is larger than 32 MiB, or there is no runtime.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        // Before the first reading, so that no change is lost between the two.
        let watch = {
            let _context = runtime.enter();
            Watch::new(path.to_owned(), POLL, SETTLE)
        };
        let first = read(path)?;
        let names = LiveGauge::new(gauge!("qudag_sidecar_dns_hosts_names"), 0.0);
        loaded(path, &first, &names);
        let table = Arc::new(ArcSwap::from_pointee(first));
        let follower = runtime.spawn(follow(watch, Arc::clone(&table), path.to_owned(), names));
        Ok(Self { table, _follower: AbortOnDropHandle::new(follower) })
    }

    /// What the file said when it could last be read.
    pub(super) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }
}

async fn follow(mut watch: Watch, table: Arc<ArcSwap<Table>>, path: PathBuf, names: LiveGauge) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = watch.changed() => {}
            // What made the file unreadable need not show in its fingerprint, nor need its end.
            () = tokio::time::sleep(POLL), if failing => {}
        }
        let file = path.clone();
        let result = tokio::task::spawn_blocking(move || read(&file)).await;
        match result.unwrap_or_else(|why| Err(io::Error::other(why))) {
            Ok(new) => {
                failing = false;
                if **table.load() != new {
                    loaded(&path, &new, &names);
                    table.store(Arc::new(new));
                }
            }
            Err(why) if !failing => {
                failing = true;
                counter!("qudag_sidecar_dns_hosts_reloads_total", "outcome" => "error").increment(1);
                tracing::warn!(
                    file = %path.display(), error = %why, "cannot read the hosts file; its last contents stay in use"
                );
            }
            Err(_) => {}
        }
    }
}

fn loaded(path: &Path, table: &Table, names: &LiveGauge) {
    counter!("qudag_sidecar_dns_hosts_reloads_total", "outcome" => "ok").increment(1);
    names.set(table.names() as f64);
    tracing::info!(file = %path.display(), names = table.names(), "hosts file read");
    if let Some((line, count)) = table.wrong() {
        tracing::warn!(
            file = %path.display(), line, count, "lines of the hosts file make no sense, the first is at this line"
        );
    }
}

/// Whether a file can be read.
pub(super) fn readable(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0]).map(drop)
}

fn read(path: &Path) -> io::Result<Table> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 32 MiB"));
    }
    Ok(Table::parse(&String::from_utf8_lossy(&bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::{query_wire, until};
    use crate::wire::{parse_query, rtype};

    fn knows(watched: &Watched, name: &str) -> bool {
        let query = parse_query(&query_wire(name, rtype::A, None)).unwrap();
        watched.table().answer(&query, 1).is_some()
    }

    #[tokio::test]
    async fn the_file_is_followed_through_writes_renames_links_and_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "192.0.2.1 one\n").unwrap();
        let watched = Watched::open(&path).unwrap();
        assert!(knows(&watched, "one"));

        fs::write(&path, "192.0.2.1 number-two\n").unwrap();
        until("written in place", || knows(&watched, "number-two") && !knows(&watched, "one")).await;

        let new = directory.path().join("new");
        fs::write(&new, "192.0.2.1 three\n").unwrap();
        fs::rename(&new, &path).unwrap();
        until("renamed over", || knows(&watched, "three")).await;

        fs::remove_file(&path).unwrap();
        tokio::time::sleep(2 * SETTLE).await;
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
        assert!(Watched::open(&directory.path().join("absent")).is_err());
        assert!(Watched::open(directory.path()).is_err());
    }

    #[tokio::test]
    async fn following_ends_with_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "").unwrap();
        let watched = Watched::open(&path).unwrap();
        let table = Arc::downgrade(&watched.table);
        drop(watched);
        until("the task is gone", || table.upgrade().is_none()).await;
    }
}
