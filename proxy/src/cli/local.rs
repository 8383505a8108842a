//! The commands that need no sidecar.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use super::args::{Cli, Format};
use super::exit::{CONFIG, FAILED, Failure};
use super::output;
use crate::config::{self, Loaded, QUICKSTART, Source};

/// The file that `init` writes.
const FILE_NAME: &str = "qudag-sidecar.yaml";

/// Reads and checks a configuration as `run` would.
///
/// # Errors
/// When it is wrong.
pub(super) fn load(file: Option<&Path>) -> Result<Loaded, Failure> {
    let source = Source::new(file)?;
    Ok(config::load(&source, std::env::vars_os())?)
}

/// `init`
///
/// # Errors
/// When the file is there already or cannot be written.
pub(super) fn init(dir: &Path, force: bool) -> Result<(), Failure> {
    let path = dir.join(FILE_NAME);
    let mut options = OpenOptions::new();
    if force {
        options.write(true).create(true).truncate(true)
    } else {
        options.write(true).create_new(true)
    };
    let written = options.open(&path).and_then(|mut file| file.write_all(QUICKSTART.as_bytes()));
    written.map_err(|why| match why.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(FAILED, format!("{} is there already", path.display()))
            .hint("replace it with --force"),
        _ => Failure::new(FAILED, format!("cannot write {}: {why}", path.display())),
    })?;
    let path = path.display();
    output::print(&format!(
        "wrote {path}\n\n\
         Next:\n  \
         1. look at `node:` (where your node listens) and `listeners:` (where the sidecar does)\n  \
         2. qudag-sidecar validate {path}\n  \
         3. qudag-sidecar run --config {path}\n  \
         4. qudag-sidecar check --config {path}\n"
    ))
}

/// `validate`
///
/// # Errors
/// When the file is wrong.
pub(super) fn validate(file: &Path, format: Format) -> Result<(), Failure> {
    let checked = Source::new(Some(file)).and_then(|source| config::load(&source, std::env::vars_os()));
    match (checked, format.json) {
        (Ok(loaded), true) => output::json(&json!({"valid": true, "fingerprint": loaded.fingerprint})),
        (Ok(_), false) => output::print(&format!("{} is valid\n", file.display())),
        (Err(failure), true) => {
            output::json(&json!({"valid": false, "problems": failure.problems}))?;
            Err(Failure::silent(CONFIG))
        }
        (Err(failure), false) => Err(failure.into()),
    }
}

/// `schema`
///
/// # Errors
/// When it cannot be printed.
pub(super) fn schema() -> Result<(), Failure> {
    output::json(&config::schema())
}

/// `config show --config FILE`
///
/// # Errors
/// When the file is wrong.
pub(super) fn show_config(file: &Path, origin: bool) -> Result<(), Failure> {
    output::print(&config::show(&load(Some(file))?, origin))
}

/// `completions`
///
/// # Errors
/// When they cannot be printed.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    output::print(&completion_script(shell))
}

fn completion_script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qudag-sidecar", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// `man`
///
/// # Errors
/// When it cannot be written.
pub(super) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else { return output::print(&main_page()) };
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.map_err(|why| Failure::new(FAILED, format!("cannot write to {}: {why}", dir.display())))?;
    output::print(&format!("wrote the pages to {}\n", dir.display()))
}

fn main_page() -> String {
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = clap_mangen::Man::new(Cli::command()).render(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_is_valid_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), false).unwrap();
        let path = dir.path().join(FILE_NAME);
        validate(&path, Format::default()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(init(dir.path(), false).unwrap_err().code(), FAILED);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        init(dir.path(), true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), QUICKSTART);
    }

    #[test]
    fn a_wrong_or_missing_file_is_exit_code_78() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yaml");
        for json in [false, true] {
            assert_eq!(validate(&path, Format { json }).unwrap_err().code(), CONFIG);
        }
        std::fs::write(&path, "version: 1\nlisteners: { dnss: {} }\n").unwrap();
        for json in [false, true] {
            assert_eq!(validate(&path, Format { json }).unwrap_err().code(), CONFIG);
        }
        assert_eq!(show_config(&path, true).unwrap_err().code(), CONFIG);
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion_script(shell);
            for word in ["filters", "bypass", "rollout", "token-file"] {
                assert!(script.contains(word), "{word} for {shell}");
            }
        }
    }

    #[test]
    fn there_is_a_page_for_every_command() {
        assert!(main_page().contains("qudag\\-sidecar"));
        let dir = tempfile::tempdir().unwrap();
        man(Some(&dir.path().join("man1"))).unwrap();
        for page in ["qudag-sidecar.1", "qudag-sidecar-status.1", "qudag-sidecar-filters-enable.1"] {
            assert!(dir.path().join("man1").join(page).exists(), "{page}");
        }
    }
}
