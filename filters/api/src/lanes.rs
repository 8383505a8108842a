//! Threads for connections that live long.
//!
//! A runtime of many threads moves tasks about, and each message between two of them may wake another thread up: for a socket, the
//! connection above it and the streams of that, this costs more than what they do. On a lane, a runtime of one thread, they follow
//! each other without waking anybody.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;

/// The lanes of a process, started as they are needed. The default has none: what would have a lane stays on the runtime where it is
/// begun.
#[derive(Clone, Default)]
pub struct Lanes(Arc<Inner>);

#[derive(Default)]
struct Inner {
    most: usize,
    start: Option<Start>,
    state: Mutex<State>,
}

/// Starts a lane, given its number from 0; `None` when that is not possible.
type Start = Box<dyn Fn(usize) -> Option<Handle> + Send + Sync>;

#[derive(Default)]
struct State {
    running: Vec<Running>,
    named: HashMap<String, Weak<Lane>>,
}

/// A lane that was started.
struct Running {
    handle: Handle,
    /// How many [`Lane`]s are this one.
    users: usize,
}

/// A place on a lane, which counts as used until it is dropped.
pub struct Lane {
    home: Weak<Inner>,
    /// Which one, and its runtime; none where there are no lanes.
    on: Option<(usize, Handle)>,
}

impl Lanes {
    /// At most so many lanes, each of which `start` starts with its number from 0, or cannot.
    pub fn new(most: usize, start: impl Fn(usize) -> Option<Handle> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { most, start: Some(Box::new(start)), state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of what has this name: the same for all who ask, as long as one of them has it.
    pub fn named(&self, name: &str) -> Arc<Lane> {
        let mut state = self.state();
        if let Some(lane) = state.named.get(name).and_then(Weak::upgrade) {
            return lane;
        }
        state.named.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(self.take(&mut state));
        state.named.insert(name.to_owned(), Arc::downgrade(&lane));
        lane
    }

    /// A lane that is used no more than others.
    pub fn any(&self) -> Lane {
        self.take(&mut self.state())
    }

    fn take(&self, state: &mut State) -> Lane {
        let home = Arc::downgrade(&self.0);
        let running = &mut state.running;
        if running.len() < self.0.most && running.iter().all(|lane| lane.users > 0) {
            let started = self.0.start.as_ref().and_then(|start| start(running.len()));
            running.extend(started.map(|handle| Running { handle, users: 0 }));
        }
        let least = running.iter_mut().enumerate().min_by_key(|(_, lane)| lane.users);
        let on = least.map(|(index, lane)| {
            lane.users += 1;
            (index, lane.handle.clone())
        });
        Lane { home, on }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("most", &self.0.most).finish_non_exhaustive()
    }
}

impl Lane {
    /// The runtime; the current one where there are no lanes.
    ///
    /// # Panics
    /// Where there are no lanes, outside of any runtime.
    pub fn handle(&self) -> Handle {
        self.on.as_ref().map_or_else(Handle::current, |(_, handle)| handle.clone())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let (Some(home), Some((index, _))) = (self.home.upgrade(), &self.on) else { return };
        let mut state = home.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = state.running.get_mut(*index) {
            lane.users = lane.users.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtimes(number: usize) -> Vec<Runtime> {
        (0..number).map(|_| Builder::new_current_thread().build().unwrap()).collect()
    }

    #[test]
    fn lanes_are_started_when_they_are_needed_and_used_evenly() {
        let runtimes = runtimes(2);
        let handles: Vec<_> = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
        let id = |number: usize| handles[number].id();
        let lanes = Lanes::new(3, {
            let handles = handles.clone();
            move |number| handles.get(number).cloned()
        });
        assert_eq!(lanes.state().running.len(), 0);
        let first = lanes.named("a");
        assert_eq!(first.handle().id(), id(0));
        assert!(Arc::ptr_eq(&first, &lanes.named("a")));
        assert_eq!(lanes.state().running.len(), 1, "one name is one user");
        let second = lanes.any();
        assert_eq!(second.handle().id(), id(1));
        let third = lanes.any();
        assert_eq!(third.handle().id(), id(0), "there is no third one");
        drop(first);
        drop(second);
        assert_eq!(lanes.named("a").handle().id(), id(1), "lane 0 has the third");
        drop(third);
        assert!(lanes.state().running.iter().all(|lane| lane.users == 0));
    }

    #[tokio::test]
    async fn without_lanes_everything_stays_where_it_is() {
        let lane = Lanes::default().any();
        assert_eq!(lane.handle().id(), Handle::current().id());
    }
}
