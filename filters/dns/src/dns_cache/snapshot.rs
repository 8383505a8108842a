//! The entries on disk, so that a restart does not begin with an empty cache.
//!
//! The file: a magic number and the schema version (4 bytes), when it was written (8 bytes, milliseconds since 1970), the number of entries
//! (4 bytes); for each entry the lengths of its key (2 bytes) and message (2 bytes), when its data were born (8 bytes), the key,
//! the message; at the end a keyed BLAKE3 hash of all before. Numbers are big-endian.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qudag_filter_api::{ConfigError, ConfigPath, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::rules::HARD_LIMIT;
use super::store::{CacheState, Entry, Key, SCHEMA, Snapshots, lock};

const MAGIC: &[u8; 8] = b"QDNSSNAP";
/// What the key is derived for.
const CONTEXT: &str = "qudag-sidecar 2025 dns_cache snapshot";
const HASH: usize = blake3::OUT_LEN;
/// Larger files are refused.
const MOST: u64 = 1 << 30;

/// Where the entries are kept on disk, so that a restart does not begin with an empty cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// The file, written every minute and at the end. Its directory is made when it does not exist.
    pub file: PathBuf,
    /// A secret without which nobody can write a file that is accepted. Without one the file is protected from damage only.
    #[serde(default)]
    pub key: Option<Secret>,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Key(String),
    #[error("it is not a snapshot of this program's version")]
    Foreign,
    #[error("it is damaged, or was written with another key")]
    Damaged,
    #[error("it is from the future; the clock was set back")]
    Clock,
}

impl SnapshotFile {
    pub(super) fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let above = self.file.ancestors().skip(1).find(|above| above.exists());
        if self.file.is_dir() || above.is_some_and(|above| !above.is_dir()) {
            let error = at.key("file").error("no file can be there");
            errors.push(error.hint("a path in a directory that the sidecar may write to"));
        }
        if let Some(Err(why)) = self.key.as_ref().map(Secret::read) {
            errors.push(at.key("key").error(why).hint("{ file: PATH } or { env: NAME }"));
        }
        errors
    }

    fn mac_key(&self) -> Result<[u8; 32], Refused> {
        let secret = self.key.as_ref().map(Secret::read).transpose().map_err(Refused::Key)?;
        Ok(blake3::derive_key(CONTEXT, secret.unwrap_or_default().as_bytes()))
    }

    /// Writes what the cache holds, unless there is a flush meanwhile. Failures are counted and logged.
    pub(crate) fn write(&self, cache: &CacheState, now: Instant) {
        let snapshots = &cache.lasting().snapshots;
        let _alone = lock(&snapshots.writing);
        let epoch = cache.epoch();
        match self.try_write(cache, now, || cache.epoch() == epoch) {
            Ok(()) => {
                *lock(&snapshots.written) = Some(now);
                cache.counts().snapshots_written.add();
            }
            Err(why) => {
                cache.counts().snapshots_failed.add();
                tracing::warn!(file = %self.file.display(), %why, "cannot write the snapshot of the DNS cache");
            }
        }
    }

    fn try_write(
        &self,
        cache: &CacheState,
        now: Instant,
        still: impl FnOnce() -> bool,
    ) -> Result<(), Refused> {
        let bytes = encode(&cache.entries(), &self.mac_key()?, now, SystemTime::now());
        let mut name = self.file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let new = self.file.with_file_name(name);
        fs::create_dir_all(directory(&self.file))?;
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        if written.is_err() || !still() {
            fs::remove_file(&new)?;
            return Ok(written?);
        }
        Ok(fs::rename(&new, &self.file)?)
    }

    /// Removes the file: it may hold what must not come back.
    pub(crate) fn remove(&self, snapshots: &Snapshots) {
        let _alone = lock(&snapshots.writing);
        *lock(&snapshots.written) = None;
        match fs::remove_file(&self.file) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                tracing::error!(file = %self.file.display(), %why, "cannot remove a snapshot that was flushed");
            }
            _ => {}
        }
    }

    /// Fills a new cache. A file that cannot be used is counted and logged; a missing one is neither.
    pub(super) fn restore(&self, cache: &CacheState) {
        let (now, counts) = (Instant::now(), cache.counts());
        match self.try_read(now, cache.epoch()) {
            Ok(entries) => {
                let restored =
                    entries.into_iter().filter_map(|entry| cache.insert(entry).then_some(())).count();
                counts.snapshot_restored.add_many(restored as u64);
                tracing::info!(file = %self.file.display(), restored, "the DNS cache starts with a snapshot");
            }
            Err(Refused::Io(why)) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => {
                counts.snapshots_refused.add();
                tracing::warn!(file = %self.file.display(), %why, "the snapshot of the DNS cache is not used");
            }
        }
    }

    fn try_read(&self, now: Instant, epoch: u64) -> Result<Vec<Entry>, Refused> {
        let mut bytes = Vec::new();
        File::open(&self.file)?.take(MOST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST {
            return Err(Refused::Foreign);
        }
        decode(&bytes, &self.mac_key()?, now, SystemTime::now(), epoch)
    }
}

fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn encode(entries: &[Arc<Entry>], key: &[u8; 32], now: Instant, wall: SystemTime) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(64 + entries.iter().map(|entry| entry.message().len() + 64).sum::<usize>());
    out.extend_from_slice(MAGIC);
    out.extend(SCHEMA.to_be_bytes());
    let written = millis(wall);
    out.extend(written.to_be_bytes());
    let count_at = out.len();
    out.extend([0; 4]);
    let mut count = 0_u32;
    for entry in entries {
        let (Ok(key), Ok(message)) = (u16::try_from(entry.key().len()), u16::try_from(entry.message().len()))
        else {
            continue;
        };
        // Rounded up: nothing becomes younger on disk.
        let age = u64::try_from(entry.age(now).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        out.extend(key.to_be_bytes());
        out.extend(message.to_be_bytes());
        out.extend(written.saturating_sub(age).to_be_bytes());
        out.extend_from_slice(entry.key());
        out.extend_from_slice(entry.message());
        count += 1;
    }
    crate::wire::put(&mut out, count_at, &count.to_be_bytes());
    let hash = blake3::keyed_hash(key, &out);
    out.extend_from_slice(hash.as_bytes());
    out
}

fn decode(
    bytes: &[u8],
    key: &[u8; 32],
    now: Instant,
    wall: SystemTime,
    epoch: u64,
) -> Result<Vec<Entry>, Refused> {
    if !bytes.starts_with(MAGIC) || bytes.get(8..12) != Some(&SCHEMA.to_be_bytes()) {
        return Err(Refused::Foreign);
    }
    let split = bytes.len().checked_sub(HASH).and_then(|at| bytes.split_at_checked(at));
    let (body, hash) = split.ok_or(Refused::Damaged)?;
    let hash: [u8; HASH] = hash.try_into().map_err(|_| Refused::Damaged)?;
    if blake3::keyed_hash(key, body) != blake3::Hash::from(hash) {
        return Err(Refused::Damaged);
    }
    let mut rest = Reader(body.get(12..).unwrap_or_default());
    let (written, wall) = (rest.u64().ok_or(Refused::Damaged)?, millis(wall));
    if wall < written {
        return Err(Refused::Clock);
    }
    let count = rest.take(4).and_then(|count| count.first_chunk::<4>()).ok_or(Refused::Damaged)?;
    let mut entries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (key, message) = (rest.u16().ok_or(Refused::Damaged)?, rest.u16().ok_or(Refused::Damaged)?);
        let born = rest.u64().ok_or(Refused::Damaged)?;
        let key = rest.take(key.into()).ok_or(Refused::Damaged)?;
        let message = rest.take(message.into()).ok_or(Refused::Damaged)?;
        let age = Duration::from_millis(wall.checked_sub(born).ok_or(Refused::Clock)?);
        if age >= HARD_LIMIT {
            continue;
        }
        let key = Key::from_bytes(key).ok_or(Refused::Damaged)?;
        entries.push(Entry::restored(&key, message, now, age, epoch).ok_or(Refused::Damaged)?);
    }
    if rest.0.is_empty() { Ok(entries) } else { Err(Refused::Damaged) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.take(8)?.first_chunk()?))
    }
}

#[cfg(test)]
mod tests;
