//! The rules of the packet filter that hand the node's connections over to `listeners.peer.capture`: what they are, whether they would
//! cut somebody off, and how they come into the kernel and out of it.

mod keeper;
mod kernel;
mod plan;
mod rules;

pub use keeper::{Keeper, RulesState, RulesStatus};
pub use kernel::{Installed, KernelError, Removed, install, installed, remove, replace};
pub use plan::{check, wanted};
pub use rules::{Attempt, Ruleset};
