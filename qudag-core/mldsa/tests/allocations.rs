//! Verifying takes no memory from the heap.
#![allow(clippy::unwrap_used, reason = "tests report by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use qudag_mldsa::{
    Backend, Content, Edition, Job, Key, PublicKey, Rejected, SIGNATURE_BYTES, Scratch, verify, verify_batch,
};

thread_local! {
    /// How often this thread asked for memory.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: it passes everything on to the system's allocator, and counts in a cell that needs no memory and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the same rules.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn verifying_takes_no_memory() {
    // The first one is of an empty message.
    let (public, rest) = include_bytes!("data/qudag-crypto.signatures").split_first_chunk().unwrap();
    let (public, signature) = (PublicKey(*public), rest.get(4..4 + SIGNATURE_BYTES).unwrap());
    let mut wrong = signature.to_vec();
    wrong.reverse();
    let mut scratch = Scratch::new();
    for backend in Backend::available() {
        let before = ALLOCATIONS.get();
        let expanded = public.expand(backend);
        assert_eq!(ALLOCATIONS.get(), before + 1, "an expanded key is one piece");
        let content = Content::Message { context: b"", message: b"" };
        let job = |key, signature| Job { key, edition: Edition::Draft, content, signature };
        let good = [Key::Expanded(&expanded), Key::Fresh(&public)].map(|key| job(key, signature));
        let jobs = [good, good, good, good, good, [job(Key::Fresh(&public), &wrong); 2]];
        let mut results = [Ok(()); 12];

        let before = ALLOCATIONS.get();
        let mu = content.mu(expanded.tr(), Edition::Draft).unwrap();
        let accepted = verify(backend, &expanded, Edition::Draft, &mu, signature);
        let rejected = verify(backend, &expanded, Edition::Draft, &mu, &wrong);
        verify_batch(backend, &mut scratch, jobs.as_flattened(), &mut results);
        assert_eq!(ALLOCATIONS.get(), before, "{backend}");

        assert_eq!((accepted, rejected.is_err()), (Ok(()), true));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 10);
        assert!(results.iter().all(|result| !matches!(result, Err(Rejected::Mismatch))));
    }
}
