//! Eight states of Keccak-f\[1600\] at a time.

use std::arch::x86_64::*;

use crate::backend::portable::keccak::permute_inline;
use crate::keccak::{Block, LANES, Lanes, State, WORDS, keccak_f1600};

/// One permutation of one state. Its lanes are too few to fill vectors, and spread over five registers, it is slower.
#[target_feature(enable = "bmi1,bmi2")]
pub(super) fn permute(state: &mut State) {
    permute_inline(state);
}

/// One permutation of each state.
#[target_feature(enable = "avx512f")]
pub(super) fn permute_lanes(lanes: &mut Lanes) {
    let mut a = [_mm512_setzero_si512(); WORDS];
    for (a, words) in a.iter_mut().zip(&lanes.0) {
        *a = load(words);
    }
    keccak_f1600!(a);
    for (a, words) in a.iter().zip(&mut lanes.0) {
        store(words, *a);
    }
}

/// Adds a block of SHAKE256 to each state.
#[target_feature(enable = "avx512f")]
pub(super) fn absorb(lanes: &mut Lanes, blocks: &[Block; LANES]) {
    for part in 0..2 {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, Block(bytes)) in rows.iter_mut().zip(blocks) {
            *row = load_bytes(&bytes.as_chunks::<64>().0[part]);
        }
        for (words, column) in lanes.0.as_chunks_mut::<LANES>().0[part].iter_mut().zip(transpose(rows)) {
            store(words, _mm512_xor_si512(load(words), column));
        }
    }
    for (word, Block(bytes)) in lanes.0[16].iter_mut().zip(blocks) {
        *word ^= u64::from_le_bytes(bytes.as_chunks::<8>().0[16]);
    }
}

/// The first 192 bytes of each state.
#[target_feature(enable = "avx512f")]
pub(super) fn squeeze(lanes: &Lanes, blocks: &mut [Block; LANES]) {
    for part in 0..3 {
        let mut columns = [_mm512_setzero_si512(); LANES];
        for (column, words) in columns.iter_mut().zip(&lanes.0.as_chunks::<LANES>().0[part]) {
            *column = load(words);
        }
        for (Block(bytes), row) in blocks.iter_mut().zip(transpose(columns)) {
            store_bytes(&mut bytes.as_chunks_mut::<64>().0[part], row);
        }
    }
}

/// Rows of eight words as columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 8]) -> [__m512i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs of words, then of pairs, then of halves.
    let (ab0, ab1) = (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let (cd0, cd1) = (_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d));
    let (ef0, ef1) = (_mm512_unpacklo_epi64(e, f), _mm512_unpackhi_epi64(e, f));
    let (gh0, gh1) = (_mm512_unpacklo_epi64(g, h), _mm512_unpackhi_epi64(g, h));
    let [a0, a2, a4, a6] = quarters(ab0, cd0, ef0, gh0);
    let [a1, a3, a5, a7] = quarters(ab1, cd1, ef1, gh1);
    [a0, a1, a2, a3, a4, a5, a6, a7]
}

/// The first quarters of four vectors, the second ones, and so on.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
    let (cd_low, cd_high) = (_mm512_shuffle_i64x2::<0x44>(c, d), _mm512_shuffle_i64x2::<0xee>(c, d));
    [
        _mm512_shuffle_i64x2::<0x88>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0xdd>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0x88>(ab_high, cd_high),
        _mm512_shuffle_i64x2::<0xdd>(ab_high, cd_high),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[u64; LANES]) -> __m512i {
    // SAFETY: 64 bytes can be read behind the reference, and no alignment is asked for.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(words: &mut [u64; LANES], vector: __m512i) {
    // SAFETY: 64 bytes can be written behind the reference, and no alignment is asked for.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes can be read behind the reference, and no alignment is asked for.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_bytes(bytes: &mut [u8; 64], vector: __m512i) {
    // SAFETY: 64 bytes can be written behind the reference, and no alignment is asked for.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rotate<const BITS: i32>(a: __m512i) -> __m512i {
    _mm512_rol_epi64::<BITS>(a)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn chi(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0xd2>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn iota(a: __m512i, constant: u64) -> __m512i {
    _mm512_xor_si512(a, _mm512_set1_epi64(constant.cast_signed()))
}
