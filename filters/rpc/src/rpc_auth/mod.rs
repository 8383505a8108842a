//! `rpc_auth`: who calls is found out before the node spends anything on the call.
//!
//! The node's own format is checked: `params.auth_token`, or `params.client_id` with `params.signature`, hexadecimal, over
//! the bytes `METHOD:ID`. That signature covers neither the parameters nor a time, so an id is taken once only.

mod credentials;
mod denied;
mod fuzz;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::Guard;
use metrics::{counter, gauge};
use qudag_core::replay::{Rule, Seen};
use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Secret, Svc, service_fn,
};
use qudag_filter_common::mldsa::Algorithm;
use qudag_filter_common::{Followed, LiveGauge};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::ServiceExt;
use uuid::Uuid;

use crate::request::Method;
use crate::{Rpc, RpcCall};
use credentials::{Credentials, credentials};
use denied::Denied;
pub use fuzz::fuzz_credentials;
use keys::{KeyFiles, Keys};

/// The longest window.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// How many ids may be remembered at most.
const MAX_IDS: u32 = 10_000_000;
/// How many clients and tokens there may be.
const MAX_CLIENTS: usize = 1000;
/// The longest name of a client, in bytes.
const MAX_NAME: usize = 256;

/// `rpc_auth`: only calls with a known token, or a signature of a known client that was not seen before, reach the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RpcAuth {
    /// Clients that sign their calls: what each says as `params.client_id`, and its public key.
    pub clients: BTreeMap<String, Key>,
    /// Tokens, any of which lets a call pass as `params.auth_token`.
    pub tokens: Vec<Secret>,
    /// Which calls need one of both.
    pub methods: Protected,
    /// What clients sign by. Nodes know `ml-dsa-65-ipd` alone.
    pub alg: Algorithm,
    /// What is remembered of signed calls, so that none is sent a second time by somebody who has seen it.
    pub replay: Replay,
}

/// Where a public key stands: 1,952 bytes, or base64 or hexadecimal digits of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Key {
    /// In a file, which is read again when it changes.
    File(PathBuf),
    /// Here, as base64 or hexadecimal digits.
    Inline(String),
}

/// Which calls need a token or a signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protected {
    /// All.
    #[default]
    All,
    /// All but those that only read: `get_status`, `list_peers`, `get_peer_info`, `get_network_stats` and `test_network`.
    Changing,
}

/// What is remembered of signed calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// For how long an id is remembered, at most 24h; with `require_time` also how far the time of an id may be from now.
    pub window: Period,
    /// Whether an id has to be a UUID of version 7, which carries the time at which it was made. Then none is ever taken twice; without it, an id may
    /// come again after the window.
    pub require_time: bool,
    /// How many ids of one client are remembered. Over that its calls are refused until the first is old enough to be forgotten.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub per_client: u32,
    /// How many ids are remembered in all.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub total: u32,
}

impl Default for Replay {
    fn default() -> Self {
        Self { window: Period::secs(300), require_time: false, per_client: 50_000, total: 200_000 }
    }
}

impl Replay {
    fn rule(&self) -> Rule {
        let number = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Rule {
            window: self.window.0,
            require_time: self.require_time,
            per_client: number(self.per_client),
            total: number(self.total),
        }
    }

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.window.0.is_zero() || self.window.0 > MAX_WINDOW {
            errors.push(
                at.key("window").error("out of range").hint("longer than 0 and at most 24h, such as 5m"),
            );
        }
        for (key, number) in [("per_client", self.per_client), ("total", self.total)] {
            if !(1..=MAX_IDS).contains(&number) {
                errors.push(at.key(key).error("out of range").hint(format!("1 to {MAX_IDS}")));
            }
        }
        errors
    }
}

/// Who is known, and what was seen of them.
pub struct RpcAuthState {
    keys: Known,
    /// Outlives every change of the settings.
    seen: Arc<Memory>,
}

enum Known {
    Fixed(Arc<Keys>),
    Files(Followed<Keys>),
}

impl RpcAuthState {
    fn keys(&self) -> Guard<Arc<Keys>> {
        match &self.keys {
            Known::Fixed(keys) => Guard::from_inner(Arc::clone(keys)),
            Known::Files(files) => files.contents(),
        }
    }
}

/// The ids that were taken.
struct Memory {
    seen: Mutex<Seen>,
    shown: LiveGauge,
}

impl Memory {
    fn new() -> Self {
        let shown = LiveGauge::new(gauge!("qudag_sidecar_rpc_auth_ids"), 0.0);
        Self { seen: Mutex::default(), shown }
    }

    fn take(&self, rule: &Rule, client: &Arc<str>, id: Uuid) -> Result<(), Denied> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seen.take(rule, client, id.as_u128(), Instant::now().into_std(), since_1970());
        self.shown.set(seen.len() as f64);
        taken.map_err(Denied::from)
    }

    /// Nobody knows what was taken before now.
    fn begin(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).begin(since_1970());
    }
}

/// A clock before 1970 is as good as none: ids that carry a time are refused then.
fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

impl FilterSpec for RpcAuth {
    type Kind = Rpc;
    type State = RpcAuthState;
    const NAME: &'static str = "rpc_auth";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = keys::check(self, at);
        errors.extend(self.replay.check(&at.key("replay")));
        errors
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<RpcAuthState>)>,
    ) -> Result<Arc<RpcAuthState>, BuildError> {
        if self.clients.is_empty() && self.tokens.is_empty() {
            let why = "nobody could call: name `clients` or `tokens`";
            return Err(BuildError::new("filters.rpc.rpc_auth", why));
        }
        let failed = |why: io::Error| BuildError::new("filters.rpc.rpc_auth", why);
        let keys = if self.files().is_empty() {
            Known::Fixed(Arc::new(Keys::read(self).map_err(failed)?))
        } else {
            Known::Files(Followed::open(KeyFiles(self.clone())).map_err(failed)?)
        };
        let (had_time, seen) = match previous {
            Some((settings, state)) => (settings.replay.require_time, Arc::clone(&state.seen)),
            None => (false, Arc::new(Memory::new())),
        };
        if self.replay.require_time && !had_time {
            seen.begin();
        }
        Ok(Arc::new(RpcAuthState { keys, seen }))
    }

    fn wrap(&self, state: Arc<RpcAuthState>, inner: Svc<Rpc>) -> Svc<Rpc> {
        let gate = Arc::new(Gate { methods: self.methods, alg: self.alg, rule: self.replay.rule(), state });
        service_fn::<Rpc, _, _>(move |call: RpcCall| {
            let admitted = gate.admit(&call);
            let inner = inner.clone();
            async move {
                admitted?;
                inner.oneshot(call).await
            }
        })
    }
}

/// The settings of one generation over the state of all.
struct Gate {
    methods: Protected,
    alg: Algorithm,
    rule: Rule,
    state: Arc<RpcAuthState>,
}

impl Gate {
    fn admit(&self, call: &RpcCall) -> Result<(), FilterError> {
        let admitted = self.verify(call);
        let verdict = match &admitted {
            Ok(by) => by,
            Err(denied) => denied.label(),
        };
        counter!("qudag_sidecar_rpc_auth_total", "verdict" => verdict).increment(1);
        admitted.map(drop).map_err(|denied| {
            tracing::debug!(method = %call.method, verdict, "a call was refused: {denied}");
            denied.into()
        })
    }

    /// What lets the call pass, as a label.
    fn verify(&self, call: &RpcCall) -> Result<&'static str, Denied> {
        if self.methods == Protected::Changing && Method::of(&call.method).is_read_only() {
            return Ok("not_needed");
        }
        let Credentials { token, client, signature } = credentials(&call.body).ok_or(Denied::Ambiguous)?;
        let keys = self.state.keys();
        if token.as_deref().is_some_and(|token| keys.has_token(token)) {
            return Ok("token");
        }
        let (Some(client), Some(signature)) = (client, signature) else {
            return Err(if token.is_some() { Denied::Token } else { Denied::Missing });
        };
        let (client, key) = keys.client(&client).ok_or(Denied::Client)?;
        let signature = data_encoding::HEXLOWER_PERMISSIVE.decode(signature.as_bytes());
        let signature = signature.map_err(|_| Denied::Form)?;
        let id = uuid(&call.id).ok_or(Denied::Ambiguous)?;
        // As the node writes an id, however it was sent.
        let message = format!("{}:{}", call.method, id.hyphenated());
        key.verify(self.alg, message.as_bytes(), &signature)?;
        // What is not signed costs nobody an id.
        self.state.seen.take(&self.rule, client, id)?;
        Ok("signature")
    }
}

/// The id of a request, which is JSON text.
fn uuid(id: &str) -> Option<Uuid> {
    let id: String = serde_json::from_str(id).ok()?;
    Uuid::try_parse(&id).ok()
}
