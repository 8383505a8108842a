//! Where log lines go: the terminal, or a file that can be opened again after it was rotated.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A log file. It belongs to the thread that writes; others ask it to open the file again.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
}

impl LogFile {
    /// Opens the file for appending; it is made, mode 0640, when it is missing.
    pub(super) fn open(path: &Path, reopen: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append(path)?, reopen })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel) {
            match append(&self.path) {
                Ok(file) => self.file = file,
                // The old file is better than none; the next signal tries again.
                Err(why) => writeln!(self.file, "cannot open {} again: {why}", self.path.display())?,
            }
        }
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let reopen = Arc::new(AtomicBool::new(false));
        let mut log = LogFile::open(&path, Arc::clone(&reopen)).unwrap();
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.write_all(b"two\n").unwrap();
        reopen.store(true, Ordering::Release);
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("sub");
        fs::create_dir(&inner).unwrap();
        let reopen = Arc::new(AtomicBool::new(false));
        let mut log = LogFile::open(&inner.join("log"), Arc::clone(&reopen)).unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&inner, &moved).unwrap();
        reopen.store(true, Ordering::Release);
        log.write_all(b"one\n").unwrap();
        let text = fs::read_to_string(moved.join("log")).unwrap();
        assert!(text.contains("cannot open") && text.ends_with("one\n"), "{text}");
    }
}
