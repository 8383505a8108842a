//! Serial numbers of the zone that the sidecar serves. They grow at every change and never go back, also over restarts.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use metrics::gauge;
use qudag_filter_dns::update::not_before;
use serde::{Deserialize, Serialize};

use crate::state_dir::write_atomically;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    serial: u32,
    /// A hash of what had this number.
    contents: String,
}

/// The latest number and what had it, kept in a file.
#[derive(Debug)]
pub struct Serials {
    file: PathBuf,
    kept: Mutex<Kept>,
}

impl Serials {
    /// Reads the file. Without one the number begins with the time, which is above every number that was given before, as long as
    /// there was less than one change a second.
    pub fn open(file: PathBuf) -> Self {
        let kept = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { file, kept: Mutex::new(kept.unwrap_or_default()) }
    }

    /// The number of these contents: the latest one if they had it, else a higher one.
    pub fn of(&self, contents: &str) -> u32 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // The lower 32 bits of the time go round as serial numbers do.
        self.of_at(contents, now as u32)
    }

    fn of_at(&self, contents: &str, now: u32) -> u32 {
        let contents = blake3::hash(contents.as_bytes()).to_hex().to_string();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contents != contents {
            let first = kept.contents.is_empty();
            let next = kept.serial.wrapping_add(1);
            let serial = if first || not_before(now, next) { now } else { next };
            *kept = Kept { serial, contents };
            let bytes = serde_json::to_vec(&*kept).map_err(std::io::Error::other);
            if let Err(why) = bytes.and_then(|bytes| write_atomically(&self.file, &bytes)) {
                tracing::warn!(file = %self.file.display(), %why, "the serial number cannot be kept");
            }
        }
        gauge!("qudag_sidecar_service_zone_serial").set(f64::from(kept.serial));
        kept.serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_with_every_change_and_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serial.json");
        let serials = Serials::open(file.clone());
        assert_eq!(serials.of_at("a", 1000), 1000);
        assert_eq!(serials.of_at("a", 2000), 1000, "nothing has changed");
        assert_eq!(serials.of_at("b", 1000), 1001, "faster than the clock");
        assert_eq!(serials.of_at("a", 1000), 1002);
        let again = Serials::open(file.clone());
        assert_eq!(again.of_at("a", 5), 1002);
        assert_eq!(again.of_at("b", 5), 1003, "the clock was set back");
        assert_eq!(again.of_at("c", 3000), 3000);
        std::fs::write(&file, b"{").unwrap();
        assert_eq!(Serials::open(file).of_at("c", 4000), 4000);
        let late = Serials {
            file: dir.path().join("x"),
            kept: Mutex::new(Kept { serial: u32::MAX, contents: "x".into() }),
        };
        assert_eq!(late.of_at("y", u32::MAX), 0, "they go round");
    }
}
