//! The loader as a whole: every way to be wrong, what is shipped, and arbitrary text.

mod broken;
mod fuzz;
mod shipped;
mod whole;

use std::ffi::OsString;

use super::{ConfigFailure, Loaded, Problem, Source, load_text};

/// Loads a text with overrides by environment variables, without their prefix.
fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigFailure> {
    let variables = variables
        .iter()
        .map(|(name, value)| (OsString::from(format!("{}{name}", super::ENV_PREFIX)), OsString::from(value)));
    load_text(&Source::File("/x/test.yaml".into()), text.to_owned(), variables)
}

fn loaded(text: &str) -> Loaded {
    load_with(text, &[]).unwrap_or_else(|why| panic!("{why}"))
}

fn problems(text: &str) -> Vec<Problem> {
    match load_with(text, &[]) {
        Ok(_) => Vec::new(),
        Err(failure) => failure.problems,
    }
}
