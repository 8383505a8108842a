//! Who decides whether a filter is on.
//!
//! Layers are asked from the highest to the lowest; the first that has an opinion decides. The layers
//! above the operator's override can only switch off.

mod kill_file;
mod operator;

use std::sync::Arc;
use std::time::SystemTime;

use qudag_filter_api::{Percent, Toggle};

pub use kill_file::KillFile;
pub use operator::Operator;

use crate::control::LayerOpinion;

/// A filter whose switch is to be decided.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The kind of traffic.
    pub kind: &'static str,
    /// The filter's name.
    pub filter: &'static str,
    /// Its slot in the configuration.
    pub configured: Toggle,
    /// Where the configuration mentions its switch; `None` where it does not.
    pub place: Option<&'a str>,
}

/// Whether `name` as people write it (`NAME` or `KIND.NAME`) means the filter of this kind.
pub fn names(name: &str, kind: &str, filter: &str) -> bool {
    match name.split_once('.') {
        Some((named_kind, named_filter)) => named_kind == kind && named_filter == filter,
        None => name == filter,
    }
}

/// What a layer says of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// On or off.
    pub enabled: bool,
    /// The percentage; the configured one where the layer does not set it.
    pub rollout: Option<Percent>,
    /// Where the opinion comes from.
    pub reason: String,
    /// When it ends.
    pub expires: Option<SystemTime>,
}

impl Opinion {
    /// Off, for good.
    pub fn off(reason: impl Into<String>) -> Self {
        Self { enabled: false, rollout: None, reason: reason.into(), expires: None }
    }
}

/// A source of opinions.
pub trait Layer: Send + Sync {
    /// Its name in `status` and `flags explain`.
    fn name(&self) -> &'static str;
    /// What it says of a filter, if it says anything.
    fn opinion(&self, question: &Question<'_>) -> Option<Opinion>;
    /// Whether it switches everything off, whatever there is.
    fn everything_off(&self) -> bool {
        false
    }
}

/// The switch of one filter and the layer that set it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The switch.
    pub toggle: Toggle,
    /// The layer.
    pub layer: &'static str,
    /// When the layer's opinion ends.
    pub expires: Option<SystemTime>,
}

/// All layers, highest first.
pub struct Flags {
    layers: Vec<Box<dyn Layer>>,
}

impl Flags {
    /// The layers from the highest to the lowest: kill file, environment, the operator's bypass, the operator's overrides, the
    /// configuration, and off. A new layer is one line here.
    pub fn new(kill_file: Arc<KillFile>, disabled: bool, operator: Arc<Operator>) -> Self {
        Self {
            layers: vec![
                Box::new(kill_file),
                Box::new(Environment { disabled }),
                Box::new(Bypass(Arc::clone(&operator))),
                Box::new(operator),
                Box::new(Configuration),
                Box::new(CompiledDefault),
            ],
        }
    }

    /// The effective switch of a filter.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let first = self.layers.iter().find_map(|layer| Some((layer.name(), layer.opinion(question)?)));
        match first {
            Some((layer, opinion)) => Decision {
                toggle: Toggle {
                    enabled: opinion.enabled,
                    rollout: opinion.rollout.unwrap_or(question.configured.rollout),
                },
                layer,
                expires: opinion.expires,
            },
            None => Decision { toggle: Toggle::OFF, layer: CompiledDefault.name(), expires: None },
        }
    }

    /// The highest layer that switches everything off, if one does: then the node serves for itself.
    pub fn everything_off(&self) -> Option<&'static str> {
        self.layers.iter().find(|layer| layer.everything_off()).map(|layer| layer.name())
    }

    /// What every layer says of a filter.
    pub fn explain(&self, question: &Question<'_>) -> Vec<LayerOpinion> {
        let mut decided = false;
        self.layers
            .iter()
            .map(|layer| {
                let opinion = layer.opinion(question);
                let decides = opinion.is_some() && !decided;
                decided |= decides;
                LayerOpinion {
                    layer: layer.name(),
                    decides,
                    enabled: opinion.as_ref().map(|opinion| opinion.enabled),
                    rollout: opinion.as_ref().and_then(|opinion| opinion.rollout),
                    reason: opinion.map_or_else(|| "nothing to say".to_owned(), |opinion| opinion.reason),
                }
            })
            .collect()
    }
}

/// The environment variable that QuDAG's operators know.
pub const DISABLE_ALL: &str = "QUDAG_DISABLE_ALL_OPTIMIZATIONS";

/// Whether [`DISABLE_ALL`] has a value that means yes.
pub fn disabled_by(value: Option<&str>) -> bool {
    value.is_some_and(|value| {
        let value = value.trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "false" | "no" | "off")
    })
}

struct Environment {
    disabled: bool,
}

impl Layer for Environment {
    fn name(&self) -> &'static str {
        "environment"
    }
    fn opinion(&self, _: &Question<'_>) -> Option<Opinion> {
        self.disabled.then(|| Opinion::off(DISABLE_ALL))
    }
    fn everything_off(&self) -> bool {
        self.disabled
    }
}

struct Bypass(Arc<Operator>);

impl Layer for Bypass {
    fn name(&self) -> &'static str {
        "bypass"
    }
    fn opinion(&self, _: &Question<'_>) -> Option<Opinion> {
        self.0.bypassed().then(|| Opinion::off("everything is bypassed"))
    }
    fn everything_off(&self) -> bool {
        self.0.bypassed()
    }
}

struct Configuration;

impl Layer for Configuration {
    fn name(&self) -> &'static str {
        "yaml"
    }
    fn opinion(&self, question: &Question<'_>) -> Option<Opinion> {
        let place = question.place?;
        Some(Opinion {
            enabled: question.configured.enabled,
            rollout: Some(question.configured.rollout),
            reason: place.to_owned(),
            expires: None,
        })
    }
}

struct CompiledDefault;

impl Layer for CompiledDefault {
    fn name(&self) -> &'static str {
        "default"
    }
    fn opinion(&self, _: &Question<'_>) -> Option<Opinion> {
        Some(Opinion::off("filters are off unless something switches them on"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::Override;

    fn question(enabled: bool, place: Option<&str>) -> Question<'_> {
        let rollout = Percent::new(25.0).unwrap();
        Question { kind: "dns", filter: "dns_cache", configured: Toggle { enabled, rollout }, place }
    }

    fn flags(disabled: bool) -> (Flags, Arc<KillFile>, Arc<Operator>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let kill = Arc::new(KillFile::new(Some(dir.path().join("kill"))));
        let operator = Arc::new(Operator::open(dir.path().join("operator.json")));
        (Flags::new(Arc::clone(&kill), disabled, Arc::clone(&operator)), kill, operator, dir)
    }

    #[test]
    fn the_highest_layer_with_an_opinion_decides() {
        let (flags, kill, operator, dir) = flags(false);
        let decide = |q: &Question<'_>| {
            let decision = flags.decide(q);
            (decision.toggle.enabled, decision.layer)
        };
        assert_eq!(decide(&question(true, None)), (false, "default"));
        assert_eq!(decide(&question(true, Some("a.yaml:3"))), (true, "yaml"));

        let wish = Override { enabled: false, rollout: None, ttl: Some(Duration::from_secs(60)) };
        operator.set("dns.dns_cache", wish).unwrap();
        assert_eq!(decide(&question(true, Some("a.yaml:3"))), (false, "override"));
        operator.clear("dns.dns_cache").unwrap();

        operator.bypass(true).unwrap();
        assert_eq!(decide(&question(true, Some("a.yaml:3"))), (false, "bypass"));
        operator.bypass(false).unwrap();

        std::fs::write(dir.path().join("kill"), "peer.retry # not this one\n").unwrap();
        kill.read();
        assert_eq!(decide(&question(true, Some("a.yaml:3"))), (true, "yaml"));
        std::fs::write(dir.path().join("kill"), "dns_cache\n").unwrap();
        kill.read();
        assert_eq!(decide(&question(true, Some("a.yaml:3"))), (false, "kill_file"));
    }

    #[test]
    fn the_variable_outranks_the_operator_and_exactly_one_layer_decides() {
        let (flags, _, operator, _dir) = flags(true);
        operator.set("dns.dns_cache", Override { enabled: true, rollout: None, ttl: None }).unwrap();
        let layers = flags.explain(&question(true, Some("a.yaml:3")));
        let deciding: Vec<_> = layers.iter().filter(|layer| layer.decides).map(|layer| layer.layer).collect();
        assert_eq!(deciding, ["environment"]);
        let all: Vec<_> = layers.iter().map(|layer| layer.layer).collect();
        assert_eq!(all, ["kill_file", "environment", "bypass", "override", "yaml", "default"]);
    }

    #[test]
    fn the_variable_understands_people() {
        for yes in ["1", "true", "YES", "on"] {
            assert!(disabled_by(Some(yes)), "{yes}");
        }
        for no in [None, Some(""), Some("0"), Some("false"), Some("Off")] {
            assert!(!disabled_by(no), "{no:?}");
        }
    }
}
