//! What the sidecar keeps on disk: which instances run, the operator's switches, the admin token and the last
//! configuration that worked.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Writes a file so that a reader sees the old or the new contents, never a mixture; mode 0600.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_atomically(file: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = file.with_file_name(name);
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let written = out.write_all(contents).and_then(|()| out.sync_all()).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&new);
    }
    written
}

/// The folder for everything that outlives the process.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// A sidecar that runs on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its process id.
    pub pid: u32,
    /// Where its admin API really listens: HOST:PORT or `unix:PATH`.
    pub admin: String,
    /// Its configuration file, absolute, or `embedded`.
    pub config: String,
    /// The neighbour's name.
    pub node: String,
    /// The file with the token that the command line uses, where one is needed.
    pub token_file: Option<PathBuf>,
    /// When it started, seconds since the Unix epoch.
    pub started: u64,
}

impl StateDir {
    /// The folder: `explicit`, else `$QUDAG_SIDECAR_STATE_DIR`, else systemd's `$STATE_DIRECTORY`, else `/var/lib/qudag-sidecar` for root, else
    /// `$XDG_STATE_HOME/qudag-sidecar` or `~/.local/state/qudag-sidecar`. It is made, mode 0700.
    ///
    /// # Errors
    /// When it cannot be made, or there is nowhere to put it.
    pub fn open(explicit: Option<&Path>) -> io::Result<Self> {
        let root = explicit.map(Path::to_owned).or_else(Self::usual).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no state directory: give --state-dir or set HOME")
        })?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Self { root: root.canonicalize()? })
    }

    fn usual() -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        variable("QUDAG_SIDECAR_STATE_DIR")
            .or_else(|| variable("STATE_DIRECTORY"))
            .or_else(|| rustix::process::geteuid().is_root().then(|| "/var/lib/qudag-sidecar".into()))
            .or_else(|| variable("XDG_STATE_HOME").map(|dir| dir.join("qudag-sidecar")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".local/state/qudag-sidecar")))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of one sidecar, which is known by its configuration file; made when missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn of_instance(&self, config: &str) -> io::Result<PathBuf> {
        let dir = self.root.join(instance_key(config));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(dir)
    }

    /// Says that a sidecar runs. The returned guard takes it back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn announce(&self, instance: &Instance) -> io::Result<Announced> {
        let file = self.of_instance(&instance.config)?.join("instance.json");
        write_atomically(&file, &serde_json::to_vec_pretty(instance)?)?;
        Ok(Announced { file, pid: instance.pid })
    }

    /// The sidecars that run now.
    pub fn instances(&self) -> Vec<Instance> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut found: Vec<Instance> = entries
            .filter_map(|entry| fs::read(entry.ok()?.path().join("instance.json")).ok())
            .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|instance: &Instance| Path::new("/proc").join(instance.pid.to_string()).exists())
            .collect();
        found.sort_by_key(|instance| instance.started);
        found
    }
}

fn instance_key(config: &str) -> String {
    blake3::hash(config.as_bytes()).to_hex().chars().take(16).collect()
}

/// A running instance's entry, removed when it is dropped, unless a successor has taken it over.
#[derive(Debug)]
pub struct Announced {
    file: PathBuf,
    pid: u32,
}

impl Drop for Announced {
    fn drop(&mut self) {
        let ours = fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Instance>(&bytes).ok())
            .is_some_and(|instance| instance.pid == self.pid);
        if ours {
            // A stale entry is recognised by its process id.
            let _ = fs::remove_file(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_announced_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(&dir.path().join("a/b"))).unwrap();
        let instance = |pid, config: &str| Instance {
            pid,
            admin: "127.0.0.1:1".into(),
            config: config.into(),
            node: "n".into(),
            token_file: None,
            started: 7,
        };
        let own = state.announce(&instance(std::process::id(), "/a.yaml")).unwrap();
        let _dead = state.announce(&instance(u32::MAX, "/b.yaml")).unwrap();
        assert_eq!(state.instances(), [instance(std::process::id(), "/a.yaml")]);
        drop(own);
        assert_eq!(state.instances(), []);
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        write_atomically(&file, b"one").unwrap();
        write_atomically(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomically(&dir.path().join("none/x"), b"").is_err());
    }
}
