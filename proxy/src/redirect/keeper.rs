//! Keeps the rules in the kernel as they should be, where the configuration says so (`manage_rules`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;

use super::rules::Ruleset;
use super::{KernelError, install, installed, remove, replace, wanted};
use crate::config::Config;

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is made sure that the rules are still there: other programs flush all rules of a host.
const REFRESH: Duration = Duration::from_secs(5);

/// How often it is looked whether captured connections are open still, after the rules have gone.
const LOOK: Duration = Duration::from_millis(200);

/// What the kernel should have.
#[derive(Clone, Debug, Default, PartialEq)]
enum Wish {
    /// Whatever it has.
    #[default]
    Anything,
    Nothing,
    Rules(Arc<Ruleset>),
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    /// Counts the wishes.
    number: u64,
    wish: Wish,
}

/// Whether the rules are in the kernel, as far as the sidecar knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesState {
    /// The sidecar neither installs nor removes them.
    #[default]
    Unmanaged,
    /// It installed them.
    Installed,
    /// It removed them, because everything is bypassed or it ends.
    Removed,
    /// It could not do what it should, and tries again.
    Failed,
}

/// What became of the rules.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RulesStatus {
    /// How they stand.
    pub state: RulesState,
    /// How long the last change took, from the wish to the kernel, in milliseconds.
    pub took_ms: f64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    number: u64,
}

/// Installs and removes the rules.
#[derive(Default)]
pub struct Keeper {
    wanted: watch::Sender<Wanted>,
    done: watch::Sender<RulesStatus>,
    /// When the current wish came.
    since: Mutex<Option<Instant>>,
    /// The rules that were installed last and of which a part may be left for open connections.
    last: Mutex<Option<Arc<Ruleset>>>,
}

impl Keeper {
    /// From now on the kernel should have the rules of this configuration, or none while everything goes `direct`. Where the
    /// configuration leaves them to others, they are not touched; those that the sidecar has installed go with `capture`.
    pub fn want(&self, config: &Config, direct: bool) {
        let capture = config.listeners.peer.as_ref().and_then(|peer| peer.capture.as_ref());
        let rules = match wanted(config) {
            Ok(rules) => rules.map(Arc::new),
            Err(why) => {
                tracing::error!(%why, "capture rules are not installed");
                None
            }
        };
        let ours = matches!(self.wanted.borrow().wish, Wish::Rules(_) | Wish::Nothing);
        let wish = match (capture, rules) {
            (Some(capture), _) if !capture.manage_rules => Wish::Anything,
            (Some(_), Some(rules)) if !direct => Wish::Rules(rules),
            (Some(_), _) => Wish::Nothing,
            (None, _) if ours => Wish::Nothing,
            (None, _) => Wish::Anything,
        };
        self.wanted.send_if_modified(|wanted| {
            if wanted.wish == wish {
                return false;
            }
            *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            *wanted = Wanted { number: wanted.number + 1, wish };
            true
        });
    }

    /// How the rules stand.
    pub fn status(&self) -> RulesStatus {
        self.done.borrow().clone()
    }

    /// What became of the current wish, if that is known in time; `None` where the rules are left to others.
    pub async fn settled(&self, limit: Duration) -> Option<Result<RulesStatus, String>> {
        let now = self.wanted.borrow().clone();
        if now.wish == Wish::Anything {
            return None;
        }
        let mut done = self.done.subscribe();
        let result = async {
            let done = done.wait_for(|done| done.number >= now.number && done.state != RulesState::Failed);
            done.await.ok().map(|done| done.clone())
        };
        match tokio::time::timeout(limit, result).await {
            Ok(Some(done)) => Some(Ok(done)),
            _ => Some(Err(self.status().error.unwrap_or_else(|| format!("nothing within {limit:?}")))),
        }
    }

    /// Takes away what was left for open connections, because there are none any more.
    ///
    /// # Errors
    /// When the kernel, or a program, refuses.
    pub async fn clear(&self) -> Result<(), KernelError> {
        if self.take_last().is_none() {
            return Ok(());
        }
        remove().await.map(|_| ())
    }

    fn take_last(&self) -> Option<Arc<Ruleset>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn last(&self) -> Option<Arc<Ruleset>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what is wanted. `open` says how many captured connections are open. Never returns.
    pub async fn follow(&self, open: impl Fn() -> u64) {
        let mut wanted = self.wanted.subscribe();
        let (mut pause, mut last) = (FIRST_PAUSE, 0);
        loop {
            let now = wanted.borrow_and_update().clone();
            if now.number != last {
                (pause, last) = (FIRST_PAUSE, now.number);
            }
            // Not given up when the wish changes: what was begun in the kernel is known when it is over.
            let done = self.attain(&now, &open).await;
            let wait = match done {
                RulesState::Failed => {
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
                RulesState::Removed if self.last().is_some() => LOOK,
                _ => REFRESH,
            };
            if now.wish == Wish::Anything {
                // The sender lives as long as `self`.
                let _ = wanted.changed().await;
                continue;
            }
            tokio::select! {
                () = sleep(wait) => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// Makes the kernel have what is wanted, and tells.
    async fn attain(&self, wanted: &Wanted, open: &impl Fn() -> u64) -> RulesState {
        let before = self.status();
        let again = before.number == wanted.number && before.state != RulesState::Failed;
        let attained = match &wanted.wish {
            Wish::Anything => {
                // They are somebody else's from now on, also when the sidecar ends.
                let _ = self.take_last();
                Ok((RulesState::Unmanaged, false))
            }
            Wish::Nothing => self.take_away(again, open).await.map(|changed| (RulesState::Removed, changed)),
            Wish::Rules(rules) => {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(rules));
                put(rules, again).await.map(|changed| (RulesState::Installed, changed))
            }
        };
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, changed, error) = match attained {
            Ok((state, changed)) => (state, changed, None),
            Err(why) => (RulesState::Failed, true, Some(why.to_string())),
        };
        gauge!("qudag_sidecar_capture_rules").set(f64::from(u8::from(state == RulesState::Installed)));
        if changed {
            let outcome = match state {
                RulesState::Unmanaged => "unmanaged",
                RulesState::Installed => "installed",
                RulesState::Removed => "removed",
                RulesState::Failed => "failed",
            };
            counter!("qudag_sidecar_capture_rule_changes_total", "outcome" => outcome).increment(1);
            match &error {
                Some(why) if before.error != error => {
                    tracing::error!(%why, "capture rules cannot be changed")
                }
                Some(_) => {}
                None if again && state == RulesState::Removed => {
                    tracing::info!("no captured connection is open any more");
                }
                None if again => {
                    tracing::warn!("capture rules were changed by somebody else and are installed again")
                }
                None => tracing::info!(outcome, "capture rules"),
            }
        }
        if !again || error.is_some() {
            let took_ms = since.map_or(0.0, |since| since.elapsed().as_secs_f64() * 1e3);
            self.done.send_replace(RulesStatus { state, took_ms, error, number: wanted.number });
        }
        state
    }
}

impl Keeper {
    /// Takes the rules away: first what captures, and the rest when no connection needs it any more. Returns whether the kernel was changed.
    async fn take_away(&self, again: bool, open: &impl Fn() -> u64) -> Result<bool, KernelError> {
        match self.last() {
            // Also where nobody seems to have one: the last ones may not be counted yet.
            Some(rules) if !again => replace(&rules.for_open_connections()).await.map(|()| true),
            Some(_) if open() > 0 => Ok(false),
            // What others install later is theirs.
            None if again => Ok(false),
            _ => {
                let removed = remove().await?;
                let _ = self.take_last();
                Ok(removed.any())
            }
        }
    }
}

/// Installs rules; `again` only when those in the kernel differ. Returns whether the kernel was changed.
async fn put(rules: &Ruleset, again: bool) -> Result<bool, KernelError> {
    if again && installed().await?.differences(Some(rules)).is_empty() {
        return Ok(false);
    }
    install(rules).await.map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(capture: &str) -> Config {
        let yaml = format!("version: 1\nlisteners:\n  peer: {capture}\n");
        crate::config::parse(&yaml).unwrap_or_else(|why| panic!("{:?}", why.lines())).config
    }

    #[test]
    fn rules_of_others_are_left_alone_and_own_ones_are_taken_back() {
        let capture = |manage: bool| {
            config(&format!(
                "{{ capture: {{ bind: [\"127.0.0.1:4180\"], ports: [4001], manage_rules: {manage} }} }}"
            ))
        };
        let (keeper, none) = (Keeper::default(), config("{}"));
        let wish = |keeper: &Keeper| keeper.wanted.borrow().wish.clone();
        for (config, direct) in
            [(&none, false), (&none, true), (&capture(false), false), (&capture(false), true)]
        {
            keeper.want(config, direct);
            assert_eq!(wish(&keeper), Wish::Anything);
        }
        keeper.want(&capture(true), false);
        assert!(matches!(wish(&keeper), Wish::Rules(_)));
        keeper.want(&capture(true), true);
        assert_eq!(wish(&keeper), Wish::Nothing);
        keeper.want(&capture(true), false);
        keeper.want(&none, false);
        assert_eq!(wish(&keeper), Wish::Nothing, "its listeners go, so the rules have to");
        let number = keeper.wanted.borrow().number;
        keeper.want(&none, true);
        assert_eq!(keeper.wanted.borrow().number, number, "the same wish again is none");
    }
}
