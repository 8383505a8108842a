//! Buffers that are used again.
//!
//! A [`BufferPool`] keeps buffers of five sizes, 4 to 64 KiB, for whoever copies next. Without one ([`Buffers::default`]) they are allocated
//! and freed plainly.
//!
//! A buffer that was used before still holds what it held: nothing is cleared. That is never seen, since a [`Buffer`] shows only what its present
//! owner has filled.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use metrics::{Counter, Gauge, counter, gauge};
use tokio::io::ReadBuf;
use tokio::runtime::Handle;

use crate::halves::ReadSide;

/// The smallest size that is kept.
pub const SMALL: usize = 4 << 10;
/// The largest one.
pub const LARGE: usize = 64 << 10;
/// [`SMALL`], and its doubles up to [`LARGE`].
const SIZES: usize = 5;
/// What was not needed for this long is given back to the allocator.
const IDLE: Duration = Duration::from_secs(10);
/// The most shares, each with a lock of its own.
const SHARES: usize = 16;

/// The place of a size among the sizes; `None` of another one.
fn place(size: usize) -> Option<usize> {
    (0..SIZES).find(|place| SMALL << place == size)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buffers of one size in one share.
#[derive(Debug, Default)]
struct Stack {
    /// What was given back last is taken first: it is the most likely to be in the processor's caches.
    buffers: Vec<Vec<u8>>,
    /// The fewest there were since the last sweep: so many were not needed.
    least: usize,
}

#[derive(Debug, Default)]
struct Share([Stack; SIZES]);

impl Share {
    /// Takes out up to `bytes` and more by less than a buffer, the large ones first, and of these the ones that waited longest.
    fn drain(&mut self, bytes: usize) -> Vec<Vec<u8>> {
        let (mut out, mut left) = (Vec::new(), bytes);
        for (place, stack) in self.0.iter_mut().enumerate().rev() {
            let size = SMALL << place;
            let count = left.div_ceil(size).min(stack.buffers.len());
            out.extend(stack.buffers.drain(..count));
            stack.least = stack.least.min(stack.buffers.len());
            left = left.saturating_sub(count * size);
        }
        out
    }

    /// Takes out what was not needed since the last time.
    fn sweep(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for stack in &mut self.0 {
            out.extend(stack.buffers.drain(..stack.least.min(stack.buffers.len())));
            stack.least = stack.buffers.len();
            stack.buffers.shrink_to(2 * stack.least);
        }
        out
    }
}

#[derive(Debug)]
struct Meters {
    kept: Gauge,
    recycled: Counter,
    allocated: Counter,
}

/// Who wants buffers to be kept, and up to how many bytes; the last one counts.
#[derive(Debug, Default)]
struct Wants {
    next: u64,
    all: Vec<(u64, usize)>,
}

/// Buffers that wait for their next use. Keeps none while nobody wants that ([`BufferPool::want`]).
#[derive(Debug)]
pub struct BufferPool {
    /// Each thread has its own one, so that threads do not wait for each other; it looks into the others when that is empty.
    shares: Box<[Mutex<Share>]>,
    /// Bytes in all shares.
    kept: AtomicUsize,
    most: AtomicUsize,
    wants: Mutex<Wants>,
    /// Somebody sweeps.
    tended: AtomicBool,
    meters: Meters,
}

impl BufferPool {
    /// An empty one for a kind of traffic.
    pub fn new(kind: &'static str) -> Arc<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let took = |result: &'static str| counter!("qudag_sidecar_buffers_taken_total", "kind" => kind, "result" => result);
        let meters = Meters {
            kept: gauge!("qudag_sidecar_buffers_kept_bytes", "kind" => kind),
            recycled: took("recycled"),
            allocated: took("allocated"),
        };
        // Shown from now on; an earlier pool of the kind may have some still.
        meters.kept.increment(0.0);
        Arc::new(Self {
            shares: (0..threads.clamp(1, SHARES)).map(|_| Mutex::default()).collect(),
            kept: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            wants: Mutex::default(),
            tended: AtomicBool::new(false),
            meters,
        })
    }

    /// Keeps up to `most` bytes of buffers until the answer is dropped; what is more goes at once. The latest of several counts, so that
    /// one that is dropped before it was used leaves things as they were.
    pub fn want(self: &Arc<Self>, most: usize) -> Wanted {
        let mut wants = lock(&self.wants);
        let id = wants.next;
        wants.next += 1;
        wants.all.push((id, most));
        self.limit(&wants);
        Wanted { pool: Arc::clone(self), id }
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::SeqCst)
    }

    /// Whether buffers are kept at all.
    fn is_open(&self) -> bool {
        self.most.load(Ordering::Relaxed) >= SMALL
    }

    fn limit(&self, wants: &Wants) {
        let most = wants.all.last().map_or(0, |(_, most)| *most);
        self.most.store(most, Ordering::SeqCst);
        // A share is looked at under its lock, and whoever gives something back looks at the limit under it: nothing slips past.
        for share in &self.shares {
            let mut share = lock(share);
            let over = self.kept().saturating_sub(most);
            if over > 0 {
                let out = share.drain(over);
                self.left(&out);
                drop(share);
            }
        }
    }

    /// Buffers have left a share, whose lock is held.
    fn left(&self, buffers: &[Vec<u8>]) {
        let bytes: usize = buffers.iter().map(Vec::len).sum();
        self.kept.fetch_sub(bytes, Ordering::SeqCst);
        self.meters.kept.decrement(bytes as f64);
    }

    /// The shares, this thread's own one first.
    fn shares(&self) -> impl Iterator<Item = &Mutex<Share>> {
        let own = own() % self.shares.len().max(1);
        let (before, after) = self.shares.split_at_checked(own).unwrap_or((&[], &self.shares));
        after.iter().chain(before)
    }

    fn recycled(&self, place: usize) -> Option<Vec<u8>> {
        if self.kept() == 0 {
            return None;
        }
        let mut own = true;
        for share in self.shares() {
            // A buffer is not worth waiting for.
            let found = if std::mem::take(&mut own) { Some(lock(share)) } else { share.try_lock().ok() };
            let Some(mut share) = found else { continue };
            let Some(stack) = share.0.get_mut(place) else { continue };
            if let Some(buffer) = stack.buffers.pop() {
                stack.least = stack.least.min(stack.buffers.len());
                self.left(std::slice::from_ref(&buffer));
                return Some(buffer);
            }
        }
        None
    }

    fn give(self: &Arc<Self>, buffer: Vec<u8>) {
        let Some(place) = place(buffer.len()) else { return };
        let Some(share) = self.shares().next() else { return };
        let mut share = lock(share);
        let most = self.most.load(Ordering::SeqCst);
        let fits = |kept: usize| Some(kept + buffer.len()).filter(|kept| *kept <= most);
        if self.kept.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
            return;
        }
        self.meters.kept.increment(buffer.len() as f64);
        if let Some(stack) = share.0.get_mut(place) {
            stack.buffers.push(buffer);
        }
        drop(share);
        self.have_tended();
    }

    /// Sees to it that what is not needed goes.
    fn have_tended(self: &Arc<Self>) {
        if self.tended.load(Ordering::SeqCst) || self.tended.swap(true, Ordering::SeqCst) {
            return;
        }
        let tending = Tending(Arc::downgrade(self));
        // Without a runtime, at its end, nobody sweeps any more; the pool ends with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tend(tending));
        }
    }

    fn sweep(&self) {
        for share in &self.shares {
            let mut share = lock(share);
            let out = share.sweep();
            self.left(&out);
            drop(share);
        }
    }
}

/// Sweeps until there is nothing left.
async fn tend(tending: Tending) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(pool) = tending.0.upgrade() else { return };
        pool.sweep();
        if pool.kept() == 0 {
            drop(tending);
            // Something may have come before the next one could be told to sweep.
            if pool.kept() > 0 {
                pool.have_tended();
            }
            return;
        }
    }
}

/// A sweeper of a pool, which has none after this.
struct Tending(Weak<BufferPool>);

impl Drop for Tending {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.tended.store(false, Ordering::SeqCst);
        }
    }
}

/// The number of this thread's share.
fn own() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.get().unwrap_or_else(|| {
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        OWN.set(Some(own));
        own
    })
}

/// Keeps a pool open. When the last one is dropped, the pool lets go of all buffers, and keeps none of those that come back.
#[derive(Debug)]
#[must_use = "the pool keeps nothing when this is dropped"]
pub struct Wanted {
    pool: Arc<BufferPool>,
    id: u64,
}

impl Wanted {
    /// Buffers of the pool.
    pub fn buffers(&self) -> Buffers {
        Buffers(Some(Arc::clone(&self.pool)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut wants = lock(&self.pool.wants);
        wants.all.retain(|(id, _)| *id != self.id);
        self.pool.limit(&wants);
    }
}

/// Where buffers come from: a pool, or else the allocator.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Option<Arc<BufferPool>>);

impl Buffers {
    /// An empty buffer of `size` bytes.
    pub fn take(&self, size: usize) -> Buffer {
        let Some((pool, place)) =
            self.0.as_ref().filter(|pool| pool.is_open()).and_then(|pool| Some((pool, place(size)?)))
        else {
            return Buffer::from_bytes(vec![0; size], 0..0, None);
        };
        let recycled = pool.recycled(place);
        let took = if recycled.is_some() { &pool.meters.recycled } else { &pool.meters.allocated };
        took.increment(1);
        Buffer::from_bytes(recycled.unwrap_or_else(|| vec![0; size]), 0..0, Some(Arc::clone(pool)))
    }
}

/// Bytes on their way: filled by a reader, and consumed from the front. Given back to its pool when it is dropped.
#[derive(Debug)]
pub struct Buffer(Store);

#[derive(Debug)]
enum Store {
    Own(Owned),
    /// The rest of what was shared with somebody who may keep it.
    Shared(Bytes),
}

#[derive(Debug)]
struct Owned {
    bytes: Vec<u8>,
    filled: Range<usize>,
    home: Option<Arc<BufferPool>>,
}

impl Default for Buffer {
    /// Has no room.
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl From<Vec<u8>> for Buffer {
    /// Filled with these bytes.
    fn from(bytes: Vec<u8>) -> Self {
        let filled = 0..bytes.len();
        Self::from_bytes(bytes, filled, None)
    }
}

impl Buffer {
    fn from_bytes(bytes: Vec<u8>, filled: Range<usize>, home: Option<Arc<BufferPool>>) -> Self {
        Self(Store::Own(Owned { bytes, filled, home }))
    }

    /// How much fits into it; 0 where it was shared.
    pub fn size(&self) -> usize {
        match &self.0 {
            Store::Own(owned) => owned.bytes.len(),
            Store::Shared(_) => 0,
        }
    }

    /// What was filled and not consumed yet.
    pub fn filled(&self) -> &[u8] {
        match &self.0 {
            Store::Own(owned) => owned.as_ref(),
            Store::Shared(rest) => rest,
        }
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.filled().is_empty()
    }

    /// Takes bytes from the front of what is filled.
    pub fn consume(&mut self, count: usize) {
        match &mut self.0 {
            Store::Own(owned) => {
                owned.filled.start = owned.filled.end.min(owned.filled.start.saturating_add(count))
            }
            // An empty rest would keep the whole buffer.
            Store::Shared(rest) if count >= rest.len() => *rest = Bytes::new(),
            Store::Shared(rest) => rest.advance(count),
        }
    }

    /// Fills an empty buffer with what there is to read; nothing at the end of the stream. Returns whether it is full.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut impl ReadSide) -> Poll<io::Result<bool>> {
        let Store::Own(Owned { bytes, filled, .. }) = &mut self.0 else { return Poll::Ready(Ok(false)) };
        let mut buffer = ReadBuf::new(bytes);
        ready!(from.poll_read(cx, &mut buffer))?;
        *filled = 0..buffer.filled().len();
        Poll::Ready(Ok(buffer.remaining() == 0))
    }

    /// What is filled, for somebody who keeps it as long as it likes; what remains of it is what is not consumed. `None` when copying is better:
    /// the buffer has no pool to come back to, or most of it is empty and would be kept in vain.
    pub fn share(&mut self) -> Option<&mut Bytes> {
        if let Store::Own(owned) = &mut self.0 {
            let full = 2 * owned.filled.len() >= owned.bytes.len();
            if !full || owned.home.as_ref().is_none_or(|pool| !pool.is_open()) {
                return None;
            }
            let owned = std::mem::replace(owned, Owned { bytes: Vec::new(), filled: 0..0, home: None });
            self.0 = Store::Shared(Bytes::from_owner(owned));
        }
        match &mut self.0 {
            Store::Shared(rest) => Some(rest),
            Store::Own(_) => None,
        }
    }
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.filled.clone()).unwrap_or_default()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
#[path = "buffers_tests.rs"]
mod tests;
