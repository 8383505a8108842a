//! Notices that a file has changed, however it was changed: written in place, renamed over, or behind a
//! symbolic link that was swapped.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::sleep;

/// What tells two states of a file apart: device, inode, size and modification time; `None` where there is no file.
type Fingerprint = Option<(u64, u64, u64, i64, i64)>;

/// A watched file.
pub struct Watch {
    path: PathBuf,
    poll: Duration,
    settle: Duration,
    seen: Fingerprint,
    events: mpsc::Receiver<()>,
    /// The parent folder's; `None` where the kernel refuses one, and polling alone has to do.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches the folder of `path`, and looks at the file itself every `poll` as well. A change is reported when the
    /// file has been left alone for `settle`.
    pub fn new(path: PathBuf, poll: Duration, settle: Duration) -> Self {
        let (told, events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |_| {
            // Full means that a look is due anyway.
            let _ = told.try_send(());
        })
        .ok();
        if let Some(watching) = &mut watcher {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if watching.watch(folder.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive).is_err() {
                watcher = None;
            }
        }
        Self { seen: fingerprint(&path), path, poll, settle, events, _watcher: watcher }
    }

    /// Resolves when the file has changed, appeared or gone since the last call.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                Some(()) = self.events.recv(), if self._watcher.is_some() => {}
                () = sleep(self.poll) => {}
            }
            let mut now = fingerprint(&self.path);
            if now == self.seen {
                continue;
            }
            loop {
                sleep(self.settle).await;
                let later = fingerprint(&self.path);
                if later == now {
                    break;
                }
                now = later;
            }
            self.seen = now;
            return;
        }
    }
}

fn fingerprint(path: &Path) -> Fingerprint {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn notices(path: &Path, change: impl FnOnce()) {
        let mut watch = Watch::new(path.to_owned(), Duration::from_millis(20), Duration::from_millis(5));
        change();
        let noticed = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
        noticed.expect("the change was not noticed");
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "1").unwrap();
        notices(&file, || fs::write(&file, "22").unwrap()).await;
        notices(&file, || {
            fs::write(dir.path().join("new"), "33").unwrap();
            fs::rename(dir.path().join("new"), &file).unwrap();
        })
        .await;
        notices(&file, || fs::remove_file(&file).unwrap()).await;
        notices(&file, || fs::write(&file, "4").unwrap()).await;
    }

    #[tokio::test]
    async fn a_swapped_link_is_noticed() {
        // As Kubernetes projects a ConfigMap: file → ..data/file, ..data → a dated folder.
        let dir = tempfile::tempdir().unwrap();
        for version in ["one", "two"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("a.yaml"), "same size").unwrap();
        }
        symlink("one", dir.path().join("..data")).unwrap();
        let file = dir.path().join("a.yaml");
        symlink("..data/a.yaml", &file).unwrap();
        notices(&file, || {
            symlink("two", dir.path().join("..tmp")).unwrap();
            fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        })
        .await;
    }
}
