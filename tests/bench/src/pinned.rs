//! One processor for several programs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::Failure;

/// Keeps this thread, and what it starts, on the processor that it is on.
pub struct Pinned(CpuSet);

impl Pinned {
    /// Until it is dropped.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn here() -> Result<Self, Failure> {
        let before = sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Where it fails the thread stays where it is, which harms nothing but speed.
        let _ = sched_setaffinity(None, &self.0);
    }
}
