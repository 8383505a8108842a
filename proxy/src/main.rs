//! The `qudag-sidecar` program.

use std::process::ExitCode;

use qudag_sidecar::cli;

/// Returns memory to the system when load falls, and can be profiled in production.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    match cli::execute(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
