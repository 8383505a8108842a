//! Which completion lines of flows are written, for each kind of traffic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Which flows of a kind leave a line in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowLog {
    /// Every one.
    #[default]
    All,
    /// Those whose outcome is not `ok`.
    Errors,
    /// None.
    Off,
}

/// The choice for each kind of traffic; a kind that is not named leaves every line.
pub type Flows = BTreeMap<String, FlowLog>;

/// The target of the completion lines.
const TARGET: &str = "flow";

/// Lets the chosen lines through. The table can be replaced while lines are written.
#[derive(Clone, Debug, Default)]
pub(super) struct FlowFilter(pub(super) Arc<ArcSwap<Flows>>);

impl<S: Subscriber> Layer<S> for FlowFilter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if event.metadata().target() != TARGET {
            return true;
        }
        let mut line = Line { flows: &self.0.load(), choice: FlowLog::All, ok: false };
        event.record(&mut line);
        match line.choice {
            FlowLog::All => true,
            FlowLog::Errors => !line.ok,
            FlowLog::Off => false,
        }
    }
}

struct Line<'a> {
    flows: &'a Flows,
    choice: FlowLog,
    ok: bool,
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "kind" => self.choice = self.flows.get(value).copied().unwrap_or_default(),
            "outcome" => self.ok = value == "ok",
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
