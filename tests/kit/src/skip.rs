//! Tests that cannot run here say so and are counted as skipped.

use std::fs::OpenOptions;
use std::io::Write;

/// The file to which [`note`] appends a line for each skipped test; `tests/run` sets it and subtracts its lines from
/// the tests that passed.
pub const SKIPPED_FILE: &str = "QUDAG_SKIPPED_FILE";

/// Leaves the test, noting that it was skipped and why.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skip::note(&format!($($reason)*));
        return;
    }};
}

/// Leaves the test as skipped when its namespaces cannot be made.
#[macro_export]
macro_rules! needs_namespaces {
    () => {
        if let Err(reason) = $crate::Namespace::available() {
            $crate::skip!("{reason}");
        }
    };
}

/// Leaves the test as skipped when a program is not installed.
#[macro_export]
macro_rules! needs_program {
    ($($name:expr),+ $(,)?) => {
        $(
            if $crate::program::find($name).is_none() {
                $crate::skip!("{} is not installed", $name);
            }
        )+
    };
}

/// Leaves the test as skipped when the stock QuDAG program or the node host is not built.
#[macro_export]
macro_rules! needs_node {
    () => {
        if let Err(reason) = $crate::node::available() {
            $crate::skip!("{reason}");
        }
    };
}

/// Leaves the test as skipped when js-libp2p cannot run here.
#[macro_export]
macro_rules! needs_js_libp2p {
    () => {
        if let Err(reason) = $crate::js_libp2p::available() {
            $crate::skip!("{reason}");
        }
    };
}

/// Notes that the running test is skipped.
pub fn note(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    println!("SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os(SKIPPED_FILE) else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{test}: {reason}").unwrap();
}
