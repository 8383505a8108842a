//! The copy of the last configuration that worked, for a start with a broken file.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;

use super::load::{Loaded, Source, load_text};
use super::yaml::LARGEST_FILE;
use crate::state_dir::write_atomically;

/// The file's name in the folder of a sidecar instance.
const NAME: &str = "last-known-good.yaml";
/// Its first line, before the checksum of everything after that line.
const HEADER: &str = "# qudag-sidecar last-known-good, blake3 ";

/// Keeps a text, mode 0600; a reader sees the earlier one or this one whole.
///
/// # Errors
/// When the folder cannot be written to.
pub fn save(instance_dir: &Path, text: &str) -> io::Result<()> {
    let contents = format!("{HEADER}{}\n{text}", blake3::hash(text.as_bytes()).to_hex());
    let file = instance_dir.join(NAME);
    if std::fs::read(&file).is_ok_and(|kept| kept == contents.as_bytes()) {
        return Ok(());
    }
    write_atomically(&file, contents.as_bytes())
}

/// The text that was kept; `None` if none was.
///
/// # Errors
/// When it cannot be read or is not what was kept.
pub fn text(instance_dir: &Path) -> Result<Option<String>, String> {
    let file = instance_dir.join(NAME);
    let mut contents = String::new();
    let limit = (LARGEST_FILE + 1024) as u64;
    match std::fs::File::open(&file).and_then(|open| open.take(limit).read_to_string(&mut contents)) {
        Ok(_) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(format!("{} cannot be read: {why}", file.display())),
    }
    let damaged = || format!("{} is damaged: its checksum does not fit", file.display());
    let (sum, text) =
        contents.strip_prefix(HEADER).and_then(|rest| rest.split_once('\n')).ok_or_else(damaged)?;
    if blake3::hash(text.as_bytes()).to_hex().as_str() != sum {
        return Err(damaged());
    }
    Ok(Some(text.to_owned()))
}

/// The configuration that was kept, checked anew with the environment of now; `None` if none was.
///
/// # Errors
/// When it cannot be read, is damaged, or is not right any more.
pub fn load<I, K, V>(instance_dir: &Path, source: &Source, variables: I) -> Result<Option<Loaded>, String>
where
    I: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let Some(text) = text(instance_dir)? else { return Ok(None) };
    load_text(source, text, variables).map(Some).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOTHING: [(&str, &str); 0] = [];
    const GOOD: &str = "version: 1\nnode: { name: kept }\n";

    #[test]
    fn what_was_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(text(dir.path()), Ok(None));
        assert!(load(dir.path(), &Source::Embedded, NOTHING).unwrap().is_none());
        save(dir.path(), "version: 1\n").unwrap();
        save(dir.path(), GOOD).unwrap();
        save(dir.path(), GOOD).unwrap();
        assert_eq!(text(dir.path()).unwrap().as_deref(), Some(GOOD));
        let loaded = load(dir.path(), &Source::Embedded, NOTHING).unwrap().unwrap();
        assert_eq!(loaded.config.node.name, "kept");
        let mode = std::fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_copy_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NAME);
        save(dir.path(), GOOD).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
            assert!(text(dir.path()).is_err(), "byte {at}");
            std::fs::write(&file, &whole[..at]).unwrap();
            assert!(text(dir.path()).is_err(), "cut at {at}");
        }
        std::fs::write(&file, b"").unwrap();
        assert!(text(dir.path()).is_err());
    }

    #[test]
    fn a_copy_that_is_not_right_any_more_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), "version: 1\nnode: { nam: x }\n").unwrap();
        assert!(load(dir.path(), &Source::Embedded, NOTHING).unwrap_err().contains("unknown key"));
        save(dir.path(), GOOD).unwrap();
        let wrong = [("QUDAG_SIDECAR__NODE__NAME", "")];
        assert!(load(dir.path(), &Source::Embedded, wrong).is_err());
        assert!(save(&dir.path().join("none"), GOOD).is_err());
    }
}
