use std::sync::Barrier;

use proptest::prelude::*;

use super::*;
use crate::testing::Metrics;

const MOST: usize = 1 << 20;

/// Gives what it has, all at once, and then nothing any more.
struct Bits<'a>(&'a [u8]);

impl ReadSide for Bits<'_> {
    fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

fn fill(buffer: &mut Buffer, bytes: &[u8]) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    match buffer.poll_fill(&mut cx, &mut Bits(bytes)) {
        Poll::Ready(full) => full.unwrap(),
        Poll::Pending => panic!("there is something to read"),
    }
}

/// Where a buffer's memory is.
fn at(buffer: &Buffer) -> *const u8 {
    match &buffer.0 {
        Store::Own(owned) => owned.bytes.as_ptr(),
        Store::Shared(rest) => rest.as_ptr(),
    }
}

#[test]
fn without_a_pool_buffers_are_allocated_and_freed() {
    let buffers = Buffers::default();
    let mut buffer = buffers.take(SMALL);
    assert_eq!((buffer.size(), buffer.filled()), (SMALL, &[][..]));
    assert!(fill(&mut buffer, &[1; SMALL]));
    assert!(buffer.share().is_none(), "who copies from it has to copy");
    buffer.consume(SMALL - 1);
    assert_eq!(buffer.filled(), [1]);
    buffer.consume(5);
    assert!(buffer.is_empty());
}

#[test]
fn buffers_of_each_size_are_used_again() {
    let metrics = Metrics::record();
    let pool = BufferPool::new("test");
    let wanted = pool.want(MOST);
    let buffers = wanted.buffers();
    let mut held = Vec::new();
    for place in 0..SIZES {
        let size = SMALL << place;
        let (one, two) = (buffers.take(size), buffers.take(size));
        let (first, second) = (at(&one), at(&two));
        drop(two);
        drop(one);
        assert_eq!(pool.kept(), 2 * size);
        held.extend([buffers.take(size), buffers.take(size)]);
        let again: Vec<_> = held.iter().rev().take(2).map(at).collect();
        assert_eq!((again, pool.kept()), (vec![second, first], 0), "the last one first");
    }
    let taken = |result: &str| {
        metrics.get(&format!(r#"qudag_sidecar_buffers_taken_total{{kind="test",result="{result}"}}"#))
    };
    assert_eq!((taken("allocated"), taken("recycled")), (Some(10.0), Some(10.0)));
    // Other sizes are nobody's.
    drop(buffers.take(SMALL + 1));
    drop(Buffer::from(vec![0; SMALL]));
    assert_eq!(pool.kept(), 0);
}

#[test]
fn no_more_is_kept_than_wanted_and_a_lower_limit_holds_at_once() {
    let metrics = Metrics::record();
    let kept = || metrics.get(r#"qudag_sidecar_buffers_kept_bytes{kind="test"}"#);
    let pool = BufferPool::new("test");
    assert_eq!(kept(), Some(0.0));
    let wanted = pool.want(10 * LARGE);
    let buffers = wanted.buffers();
    let many = |size: usize| (0..20).map(|_| buffers.take(size)).collect::<Vec<_>>();
    drop((many(LARGE), many(SMALL)));
    assert_eq!(pool.kept(), 10 * LARGE);
    let less = pool.want(3 * LARGE + 5 * SMALL);
    assert!((2 * LARGE..=3 * LARGE + 5 * SMALL).contains(&pool.kept()), "{}", pool.kept());
    assert_eq!(kept(), Some(pool.kept() as f64));
    // A chain that was not used in the end leaves the limit of the one before.
    drop(less);
    drop(many(LARGE));
    assert_eq!(pool.kept(), 10 * LARGE);
    let out = buffers.take(LARGE);
    let (other, same) = (pool.want(MOST), buffers.take(SMALL));
    drop(wanted);
    assert!(pool.kept() > 0, "the other one wants them still");
    drop(other);
    assert_eq!((pool.kept(), kept()), (0, Some(0.0)));
    drop((out, same));
    assert_eq!(pool.kept(), 0, "nobody wants what comes back");
    assert!(buffers.take(LARGE).share().is_none());
    let _again = pool.want(MOST);
    drop(buffers.take(LARGE));
    assert_eq!(pool.kept(), LARGE, "who has it from before takes part again");
}

#[test]
fn a_shared_buffer_comes_back_when_the_last_part_of_it_goes() {
    let pool = BufferPool::new("test");
    let wanted = pool.want(MOST);
    let mut buffer = wanted.buffers().take(SMALL);
    assert!(!fill(&mut buffer, &[7; SMALL / 2 - 1]));
    assert!(buffer.share().is_none(), "most of it is empty");
    buffer.consume(SMALL);
    assert!(!fill(&mut buffer, &[7; SMALL / 2]));
    let sent = buffer.share().unwrap().split_to(100);
    assert_eq!((buffer.size(), buffer.filled().len(), sent.len()), (0, SMALL / 2 - 100, 100));
    buffer.consume(SMALL);
    assert_eq!((buffer.is_empty(), pool.kept()), (true, 0));
    drop(sent);
    assert_eq!(pool.kept(), SMALL);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_needed_any_more_goes() {
    let pool = BufferPool::new("test");
    let wanted = pool.want(MOST);
    let buffers = wanted.buffers();
    for _ in 0..2 {
        drop((0..8).map(|_| buffers.take(LARGE)).collect::<Vec<_>>());
        // Two of the eight are in use all the time.
        for _ in 0..25 {
            drop((buffers.take(LARGE), buffers.take(LARGE)));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(pool.kept(), 2 * LARGE);
        tokio::time::sleep(2 * IDLE + Duration::from_secs(1)).await;
        assert_eq!(pool.kept(), 0);
        assert!(!pool.tended.load(Ordering::SeqCst), "nobody sweeps where nothing is");
    }
}

/// Every count fits whatever threads do at once.
#[test]
fn threads_share_what_there_is() {
    let pool = BufferPool::new("test");
    let wanted = pool.want(64 * LARGE);
    let together = Barrier::new(5);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (buffers, together) = (wanted.buffers(), &together);
            scope.spawn(move || {
                together.wait();
                let mut held = Vec::new();
                for round in 0..20_000 {
                    let mut buffer = buffers.take(SMALL << ((round + thread) % SIZES));
                    let mark = [thread as u8 + 1; 64];
                    fill(&mut buffer, &mark);
                    held.push((buffer, mark));
                    if held.len() == 16 {
                        for (buffer, mark) in held.drain(..) {
                            assert_eq!(buffer.filled(), mark);
                        }
                    }
                }
            });
        }
        together.wait();
        for round in 0..1000 {
            drop(pool.want(if round % 2 == 0 { 0 } else { LARGE }));
            assert!(pool.kept() <= 64 * LARGE);
        }
    });
    let all: usize = pool
        .shares
        .iter()
        .flat_map(|share| {
            lock(share)
                .0
                .each_ref()
                .map(|stack| stack.buffers.len() * stack.buffers.first().map_or(0, Vec::len))
        })
        .sum();
    assert_eq!(pool.kept(), all);
    drop(wanted);
    assert_eq!(pool.kept(), 0);
}

proptest! {
    /// Whatever a buffer held before, only what its present owner has filled is seen of it.
    #[test]
    fn nobody_sees_what_another_one_left(steps in proptest::collection::vec((0..SIZES, 0..2_usize * LARGE, 0..LARGE, any::<bool>()), 1..60)) {
        let pool = BufferPool::new("test");
        let wanted = pool.want(MOST);
        let buffers = wanted.buffers();
        // Every buffer of the pool is full of somebody's secret.
        for place in 0..SIZES {
            let size = SMALL << place;
            let mut all: Vec<_> = (0..4).map(|_| buffers.take(size)).collect();
            all.iter_mut().for_each(|buffer| assert!(fill(buffer, &vec![0xAA; size])));
        }
        let mut kept = Vec::new();
        for (place, length, consumed, share) in steps {
            let mut buffer = buffers.take(SMALL << place);
            prop_assert!(buffer.is_empty());
            let bytes = vec![0x55; length];
            let full = fill(&mut buffer, &bytes);
            let fits = length.min(buffer.size());
            prop_assert_eq!((buffer.filled(), full), (&bytes[..fits], length >= buffer.size()));
            buffer.consume(consumed);
            let left = fits.saturating_sub(consumed);
            prop_assert_eq!(buffer.filled(), &bytes[..left]);
            if share && let Some(rest) = buffer.share() {
                prop_assert_eq!(&rest[..], &bytes[..left]);
                kept.push(rest.split_to(left / 2));
            }
            if kept.len() > 3 {
                kept.remove(0);
            }
            prop_assert!(kept.iter().all(|part| part.iter().all(|byte| *byte == 0x55)), "reused while somebody had it");
            // Full of another secret when it goes back.
            buffer.consume(usize::MAX);
            if buffer.size() > 0 {
                fill(&mut buffer, &vec![0xAA; LARGE]);
            }
        }
    }
}
