//! What a client knows of its transfers, a line each time that it learns something: `try ID`, `ack ID`, `not ID WHY`, `found ID`,
//! `absent ID`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// What is known of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was tried; whether it was committed was not learnt. One that was looked up in vain belongs here too: what was sent before
    /// the connection was lost may still be on its way.
    Nothing,
    /// The server said that it was committed.
    Committed,
    /// It was there when it was looked up after the connection was lost.
    Found,
    /// The server said that it was not committed, or COMMIT was never sent.
    NotCommitted,
}

/// The journal of one client, which is read while the client writes.
#[derive(Debug, Default)]
pub struct Journal {
    /// The client's number.
    pub client: u64,
    /// Where it writes.
    pub path: PathBuf,
    /// What is known so far, by id.
    pub transfers: BTreeMap<u64, Known>,
    /// How many are known to be committed.
    pub acknowledged: u64,
    read: u64,
}

impl Journal {
    /// A journal that its client has not begun.
    pub fn new(client: u64, path: PathBuf) -> Self {
        Self { client, path, ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn known(transfers: BTreeMap<u64, Known>) -> Self {
        Self { transfers, ..Self::default() }
    }

    /// Reads what was written since the last time.
    ///
    /// # Panics
    /// When it holds something else.
    pub fn catch_up(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        file.read_to_string(&mut text).unwrap();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        for line in text[..whole].lines() {
            let mut words = line.split(' ');
            let (word, id) = words.next().zip(words.next()).unwrap_or_else(|| panic!("{line:?}"));
            let known = match word {
                "try" | "absent" => Known::Nothing,
                "ack" => Known::Committed,
                "not" => Known::NotCommitted,
                "found" => Known::Found,
                _ => panic!("{line:?}"),
            };
            self.acknowledged += u64::from(known == Known::Committed);
            self.transfers.insert(id.parse().unwrap(), known);
        }
    }

    /// What it says of a transfer.
    pub fn story(&self, id: u64) -> String {
        let (text, id) = (std::fs::read_to_string(&self.path).unwrap_or_default(), id.to_string());
        let lines: Vec<_> = text.lines().filter(|line| line.split(' ').nth(1) == Some(&id)).collect();
        lines.join(", ")
    }
}
