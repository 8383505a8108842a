//! SHAKE128 and SHAKE256 (FIPS 202) of one input.

use crate::keccak::{SUFFIX, State, WORDS};

/// A sponge with a rate in bytes, which is a multiple of eight. The caller brings the permutation with each call.
#[derive(Clone, Debug)]
pub(crate) struct Sponge<const RATE: usize> {
    state: State,
    used: usize,
}

impl<const RATE: usize> Sponge<RATE> {
    pub(crate) const fn new() -> Self {
        Self { state: [0; WORDS], used: 0 }
    }

    /// Absorbs more input.
    pub(crate) fn update(&mut self, mut input: &[u8], permute: impl Fn(&mut State)) {
        while let Some((now, later)) = input.split_at_checked(RATE - self.used) {
            add(&mut self.state, self.used, now);
            permute(&mut self.state);
            (self.used, input) = (0, later);
        }
        add(&mut self.state, self.used, input);
        self.used += input.len();
    }

    /// The state after all input, of which the first `RATE` bytes are output; the permutation gives more.
    pub(crate) fn finish(mut self, permute: impl Fn(&mut State)) -> State {
        add(&mut self.state, self.used, &[SUFFIX]);
        add(&mut self.state, RATE - 1, &[0x80]);
        permute(&mut self.state);
        self.state
    }
}

/// Adds bytes to the state from the place `at` on.
pub(crate) fn add(state: &mut State, at: usize, bytes: &[u8]) {
    let (mut words, offset) = (state.iter_mut().skip(at / 8), at % 8);
    let (head, rest) = bytes.split_at_checked((8 - offset) % 8).unwrap_or((bytes, &[]));
    if !head.is_empty()
        && let Some(word) = words.next()
    {
        *word ^= partial(head) << (8 * offset);
    }
    let (whole, tail) = rest.as_chunks();
    for (bytes, word) in whole.iter().zip(words.by_ref()) {
        *word ^= u64::from_le_bytes(*bytes);
    }
    if let Some(word) = words.next() {
        *word ^= partial(tail);
    }
}

/// Fewer than eight bytes as the lower ones of a word.
fn partial(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The first bytes of a state.
pub(crate) fn output<const COUNT: usize>(state: &State) -> [u8; COUNT] {
    let mut out = [0; COUNT];
    for (bytes, word) in out.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_le_bytes();
    }
    out
}
