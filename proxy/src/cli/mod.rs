//! The command line: what was asked for, done and printed.

pub mod args;
mod banner;
mod bypass;
mod check;
mod crypto;
mod exit;
mod find;
mod local;
mod output;
mod pki;
mod rebuild;
mod redirect;
mod remote;
mod tap;
mod top;
mod view;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::{CacheCommand, Command, ConfigCommand, CryptoCommand};
pub use exit::Failure;
use remote::Ask;

use crate::app::{self, RunOptions};

/// Reads the command line.
///
/// # Errors
/// With the exit code, after help or a complaint was printed.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|message| {
        // There is nowhere to complain to.
        let _ = message.print();
        u8::try_from(message.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
    })
}

/// Does what the command line asks for.
///
/// # Errors
/// With an exit code and what to tell the user.
pub fn execute(cli: Cli) -> Result<(), Failure> {
    let Cli { common, command } = cli;
    match command.unwrap_or(Command::Run) {
        Command::Run => Ok(app::run(RunOptions {
            on_ready: banner::for_run(&common),
            config: common.config,
            state_dir: common.state_dir,
        })?),
        Command::Init { dir, force } => local::init(&dir, force),
        Command::Validate { file, format } => local::validate(&file, format),
        Command::Schema => local::schema(),
        Command::Config { command: ConfigCommand::Show { origin, target } } => match &common.config {
            Some(file) if target.admin.is_none() => local::show_config(file, origin),
            _ => remote::show_config(&common, &target, origin),
        },
        Command::Status { target, format } => Ask::status().run(&common, &target, format),
        Command::Check { target, format } => check::run(&common, &target, format),
        Command::Filters { command, target, format } => Ask::filters(command)?.run(&common, &target, format),
        Command::Flags { command, target, format } => Ask::flags(command)?.run(&common, &target, format),
        Command::Cache { command, target, format } => match command {
            CacheCommand::Stats => Ask::cache_stats().run(&common, &target, format),
            CacheCommand::Rebuild => rebuild::run(&common, &target, format),
            CacheCommand::Flush(flush) => Ask::cache_flush(flush).run(&common, &target, format),
        },
        Command::Peers { target, format } => Ask::peers().run(&common, &target, format),
        Command::Db { command, target, format } => Ask::db(command).run(&common, &target, format),
        Command::Crypto {
            command: CryptoCommand::Selftest { in_process: true, backend }, format, ..
        } => crypto::selftest(backend, format),
        Command::Crypto { command: CryptoCommand::Bench { backend, time }, format, .. } => {
            crypto::bench(backend, time.0, format)
        }
        Command::Crypto { command, target, format } => Ask::crypto(command).run(&common, &target, format),
        Command::Dns { command, target, format } => Ask::dns(command).run(&common, &target, format),
        Command::Tap { tap: wish, target, format } => tap::run(&wish, &common, &target, format),
        Command::Top { top: wish, target, format } => top::run(&wish, &common, &target, format),
        Command::Bypass { state, target, format } => bypass::run(state, &common, &target, format),
        Command::Redirect { command, format } => redirect::run(command, &common, format),
        Command::Pki { command, format } => pki::run(command, format),
        Command::Set { assignment, duration, target, format } => {
            Ask::set(assignment, duration).run(&common, &target, format)
        }
        Command::Unset { key, all: _, target, format } => Ask::unset(key).run(&common, &target, format),
        Command::Drain { target, format } => Ask::drain().run(&common, &target, format),
        Command::Reload { target, format } => Ask::reload().run(&common, &target, format),
        Command::Completions { shell } => local::completions(shell),
        Command::Man { dir } => local::man(dir.as_deref()),
    }
}
