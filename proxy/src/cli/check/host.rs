//! What the host gives: files, limits, buffers.

use std::path::Path;

use super::Check;
use crate::state_dir::{StateDir, write_atomically};

const GROUP: &str = "host";
/// Two descriptors a stream, and room for pools and listeners.
const ENOUGH_FILES: u64 = 4096;
/// What a burst of queries needs until it is read.
const ENOUGH_BUFFER: u64 = 1 << 20;

pub(super) fn checks(state_dir: Option<&Path>) -> Vec<Check> {
    let mut checks = vec![state_folder(state_dir), file_limit()];
    checks.extend(buffer("net.core.rmem_max", "UDP receive buffer"));
    checks.extend(buffer("net.core.wmem_max", "UDP send buffer"));
    checks
}

fn state_folder(explicit: Option<&Path>) -> Check {
    const NAME: &str = "state folder";
    let writable = StateDir::open(explicit).and_then(|state| {
        let probe = state.root().join("check");
        write_atomically(&probe, b"")?;
        std::fs::remove_file(probe)?;
        Ok(state)
    });
    match writable {
        Ok(state) => Check::ok(GROUP, NAME, format!("{} is writable", state.root().display())),
        Err(why) => Check::failed(GROUP, NAME, format!("cannot be written to: {why}"))
            .hint("choose another with --state-dir or QUDAG_SIDECAR_STATE_DIR"),
    }
}

fn file_limit() -> Check {
    const NAME: &str = "open files";
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(limit) if limit < ENOUGH_FILES => Check::advice(GROUP, NAME, format!("at most {limit}"))
            .hint(format!("`ulimit -n {ENOUGH_FILES}`, or LimitNOFILE= in the systemd unit")),
        Some(limit) => Check::ok(GROUP, NAME, format!("at most {limit}")),
        None => Check::ok(GROUP, NAME, "no limit"),
    }
}

fn buffer(key: &str, name: &str) -> Option<Check> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    // In a container's network namespace the host's value may not be visible.
    let bytes: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let detail = format!("at most {} KiB", bytes / 1024);
    Some(if bytes < ENOUGH_BUFFER {
        Check::advice(GROUP, name, detail)
            .hint(format!("`sysctl -w {key}={ENOUGH_BUFFER}` loses fewer queries in a burst"))
    } else {
        Check::ok(GROUP, name, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_state_folder_that_cannot_be_made_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(state_folder(Some(&file.join("below"))).outcome, Outcome::Failed);
        assert_eq!(state_folder(Some(&dir.path().join("new"))).outcome, Outcome::Ok);
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
    }
}
