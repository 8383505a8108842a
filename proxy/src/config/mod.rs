//! The configuration: one typed root, read from YAML and the environment, with every error at once and in its place.
//!
//! Text becomes a [tree] that knows where everything was written; variables and live settings are merged into it; it becomes the typed
//! [`Config`]; and the parts check themselves and each other. What is wrong at any step is collected.

mod bypass;
mod check;
mod de;
mod edits;
mod env;
pub mod last_good;
mod load;
mod problem;
mod root;
mod schema;
mod show;
mod suggest;
#[cfg(test)]
mod tests;
pub mod tree;
mod typed;
mod yaml;

pub use bypass::{BypassConfig, BypassName, KeyConfig, UpdateConfig, VerifyConfig, secret as bypass_secret};
pub use check::restart_only_changes;
pub use edits::Edit;
pub use env::PREFIX as ENV_PREFIX;
pub use load::{Loaded, QUICKSTART, Source, load, load_text, load_text_with, load_with, parse, problems};
pub use problem::{ConfigFailure, Problem};
pub use root::{
    AdminConfig, Config, Filters, FlagsConfig, FlowsConfig, Listeners, LogConfig, NodeConfig, RuntimeConfig,
    TelemetryConfig, Version,
};
pub use schema::schema;
pub use show::show;
