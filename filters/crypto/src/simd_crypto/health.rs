//! Which implementations are sound, as far as is known.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};
use qudag_mldsa::Backend;

use super::self_test::Failure;
use crate::{BackendStatus, SimdStatus};

/// What is known of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// The processor cannot run it.
    Unavailable,
    /// Not yet known.
    Untested,
    /// It passed its test.
    Passed,
    /// It did not.
    Failed(String),
    /// A verdict of it was wrong, although it had passed. Only a new process trusts it again.
    Demoted(String),
}

/// The conditions of all, and the best one.
pub(super) struct Health {
    conditions: Mutex<[(Backend, Condition); Backend::ALL.len()]>,
    /// The only one that may be chosen besides `portable`; all where `None`.
    forced: Option<Backend>,
    /// The place of the best one in [`Backend::ALL`].
    best: AtomicU8,
}

impl Health {
    pub(super) fn new(forced: Option<Backend>) -> Self {
        let condition = |backend: Backend| {
            if backend.is_available() { Condition::Untested } else { Condition::Unavailable }
        };
        let conditions = Backend::ALL.map(|backend| (backend, condition(backend)));
        let health = Self { conditions: Mutex::new(conditions), forced, best: AtomicU8::new(0) };
        health.choose(&*health.conditions());
        health
    }

    /// As on a processor that can run all of them.
    #[cfg(test)]
    pub(super) fn of_any_processor(forced: Option<Backend>) -> Self {
        let health = Self::new(forced);
        health.conditions().iter_mut().for_each(|(_, condition)| *condition = Condition::Untested);
        health
    }

    /// The best one that passed its test; `portable`, which all others are compared with, if there is none.
    pub(super) fn best(&self) -> Backend {
        Backend::ALL.get(usize::from(self.best.load(Relaxed))).copied().unwrap_or(Backend::Portable)
    }

    /// Those that can be tested.
    pub(super) fn testable(&self) -> Vec<Backend> {
        let conditions = self.conditions();
        let available = conditions.iter().filter(|(_, condition)| *condition != Condition::Unavailable);
        available.map(|(backend, _)| *backend).collect()
    }

    /// Notes the result of a test.
    pub(super) fn tested(&self, backend: Backend, result: &Result<(), Failure>) {
        let mut conditions = self.conditions();
        for (_, condition) in conditions.iter_mut().filter(|(which, _)| *which == backend) {
            match (&condition, result) {
                (Condition::Demoted(_), _) => {}
                (_, Ok(())) => *condition = Condition::Passed,
                (_, Err(failure)) => {
                    let why = failure.to_string();
                    tracing::error!(%backend, why, "an implementation of cryptography did not pass its test");
                    count(backend, failure.label());
                    *condition = Condition::Failed(why);
                }
            }
        }
        self.choose(&*conditions);
    }

    /// One has given a wrong verdict.
    pub(super) fn demote(&self, backend: Backend, why: &str) {
        let mut conditions = self.conditions();
        for (_, condition) in conditions.iter_mut().filter(|(which, _)| *which == backend) {
            if !matches!(condition, Condition::Demoted(_)) {
                tracing::error!(%backend, why, "an implementation of cryptography is not used any more");
                count(backend, "shadow");
                *condition = Condition::Demoted(why.to_owned());
            }
        }
        self.choose(&*conditions);
    }

    pub(super) fn status(&self) -> SimdStatus {
        let one = |(backend, condition): &(Backend, Condition)| {
            let (state, why) = match condition {
                Condition::Unavailable => ("unavailable", None),
                Condition::Untested => ("untested", None),
                Condition::Passed => ("passed", None),
                Condition::Failed(why) => ("failed", Some(why.clone())),
                Condition::Demoted(why) => ("demoted", Some(why.clone())),
            };
            BackendStatus { name: backend.name(), state, why }
        };
        SimdStatus { best: self.best().name(), backends: self.conditions().iter().map(one).collect() }
    }

    fn choose(&self, conditions: &[(Backend, Condition)]) {
        let may = |backend: Backend| self.forced.is_none_or(|forced| forced == backend);
        let sound = |place: &u8| {
            conditions
                .get(usize::from(*place))
                .is_some_and(|(backend, condition)| *condition == Condition::Passed && may(*backend))
        };
        // The slowest comes first.
        self.best.store((0..Backend::ALL.len() as u8).rev().find(sound).unwrap_or(0), Relaxed);
        for backend in Backend::ALL {
            let used = if backend == self.best() { 1.0 } else { 0.0 };
            gauge!("qudag_sidecar_crypto_backend", "backend" => backend.name()).set(used);
        }
    }

    fn conditions(&self) -> MutexGuard<'_, [(Backend, Condition); Backend::ALL.len()]> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(backend: Backend, reason: &'static str) {
    counter!("qudag_sidecar_crypto_demotions_total", "backend" => backend.name(), "reason" => reason)
        .increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_passed_is_used_and_portable_until_then() {
        let health = Health::of_any_processor(None);
        assert_eq!(health.best(), Backend::Portable);
        assert_eq!(health.testable(), Backend::ALL);
        health.tested(Backend::Avx512, &Ok(()));
        health.tested(Backend::Avx2, &Ok(()));
        assert_eq!(health.best(), Backend::Avx512);
        health.tested(Backend::Avx512, &Err(Failure::Signal(4)));
        assert_eq!(health.best(), Backend::Avx2);
        health.tested(Backend::Avx512, &Ok(()));
        assert_eq!(health.best(), Backend::Avx512, "a test can be repeated");
        health.demote(Backend::Avx512, "judged wrong");
        health.tested(Backend::Avx512, &Ok(()));
        assert_eq!(health.best(), Backend::Avx2, "it had passed before as well");
        health.tested(Backend::Avx2, &Err(Failure::Signal(4)));
        assert_eq!(health.best(), Backend::Portable);
        let status = health.status();
        let states: Vec<_> =
            status.backends.iter().map(|one| (one.name, one.state, one.why.is_some())).collect();
        assert_eq!(
            states,
            [("portable", "untested", false), ("avx2", "failed", true), ("avx512", "demoted", true)]
        );
    }

    #[test]
    fn a_forced_one_is_used_when_it_is_sound() {
        let health = Health::of_any_processor(Some(Backend::Avx2));
        health.tested(Backend::Avx512, &Ok(()));
        assert_eq!(health.best(), Backend::Portable);
        health.tested(Backend::Avx2, &Ok(()));
        assert_eq!(health.best(), Backend::Avx2);
    }
}
