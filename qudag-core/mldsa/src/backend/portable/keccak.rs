//! Keccak-f\[1600\] on whole numbers.

use crate::keccak::{State, keccak_f1600};

/// One permutation.
pub(crate) fn permute(state: &mut State) {
    permute_inline(state);
}

/// The same for callers with features of their own, which the compiler can then use.
#[inline(always)]
pub(in crate::backend) fn permute_inline(state: &mut State) {
    let mut a = *state;
    keccak_f1600!(a);
    *state = a;
}

#[inline(always)]
fn xor3(a: u64, b: u64, c: u64) -> u64 {
    a ^ (b ^ c)
}

#[inline(always)]
fn rotate<const BITS: u32>(a: u64) -> u64 {
    a.rotate_left(BITS)
}

#[inline(always)]
fn chi(a: u64, b: u64, c: u64) -> u64 {
    a ^ (!b & c)
}

#[inline(always)]
fn iota(a: u64, constant: u64) -> u64 {
    a ^ constant
}
