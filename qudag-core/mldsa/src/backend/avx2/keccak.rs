//! Four states of Keccak-f\[1600\] at a time.

use std::arch::x86_64::*;

use crate::backend::portable::keccak::permute_inline;
use crate::keccak::{Block, LANES, Lanes, State, WORDS, keccak_f1600};

/// Words of a vector.
const HALF: usize = 4;

/// One permutation of one state.
#[target_feature(enable = "bmi1,bmi2")]
pub(super) fn permute(state: &mut State) {
    permute_inline(state);
}

/// One permutation of each of the first four states.
#[target_feature(enable = "avx2")]
pub(super) fn permute_lanes(lanes: &mut Lanes) {
    let mut a = [_mm256_setzero_si256(); WORDS];
    for (a, words) in a.iter_mut().zip(&lanes.0) {
        *a = load(&words.as_chunks().0[0]);
    }
    keccak_f1600!(a);
    for (a, words) in a.iter().zip(&mut lanes.0) {
        store(&mut words.as_chunks_mut().0[0], *a);
    }
}

/// Adds a block of SHAKE256 to each of the first four states.
#[target_feature(enable = "avx2")]
pub(super) fn absorb(lanes: &mut Lanes, blocks: &[Block; LANES]) {
    for part in 0..4 {
        let mut rows = [_mm256_setzero_si256(); HALF];
        for (row, Block(bytes)) in rows.iter_mut().zip(blocks) {
            *row = load_bytes(&bytes.as_chunks::<32>().0[part]);
        }
        for (words, column) in lanes.0.as_chunks_mut::<HALF>().0[part].iter_mut().zip(transpose(rows)) {
            let words = &mut words.as_chunks_mut().0[0];
            store(words, _mm256_xor_si256(load(words), column));
        }
    }
    for (word, Block(bytes)) in lanes.0[16].iter_mut().zip(blocks).take(HALF) {
        *word ^= u64::from_le_bytes(bytes.as_chunks::<8>().0[16]);
    }
}

/// The first 192 bytes of each of the first four states.
#[target_feature(enable = "avx2")]
pub(super) fn squeeze(lanes: &Lanes, blocks: &mut [Block; LANES]) {
    for part in 0..6 {
        let mut columns = [_mm256_setzero_si256(); HALF];
        for (column, words) in columns.iter_mut().zip(&lanes.0.as_chunks::<HALF>().0[part]) {
            *column = load(&words.as_chunks().0[0]);
        }
        for (Block(bytes), row) in blocks.iter_mut().zip(transpose(columns)) {
            store_bytes(&mut bytes.as_chunks_mut::<32>().0[part], row);
        }
    }
}

/// Rows of four words as columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 4]) -> [__m256i; 4] {
    let [a, b, c, d] = rows;
    let (ab0, ab1) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (cd0, cd1) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
    [
        _mm256_permute2x128_si256::<0x20>(ab0, cd0),
        _mm256_permute2x128_si256::<0x20>(ab1, cd1),
        _mm256_permute2x128_si256::<0x31>(ab0, cd0),
        _mm256_permute2x128_si256::<0x31>(ab1, cd1),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[u64; HALF]) -> __m256i {
    // SAFETY: 32 bytes can be read behind the reference, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(words: &mut [u64; HALF], vector: __m256i) {
    // SAFETY: 32 bytes can be written behind the reference, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes can be read behind the reference, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_bytes(bytes: &mut [u8; 32], vector: __m256i) {
    // SAFETY: 32 bytes can be written behind the reference, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(a, _mm256_xor_si256(b, c))
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const BITS: i32>(a: __m256i) -> __m256i {
    // By a count in a register, since the other way would need one more constant parameter; the compiler makes the same instructions.
    let left = _mm256_sll_epi64(a, _mm_cvtsi32_si128(BITS));
    _mm256_or_si256(left, _mm256_srl_epi64(a, _mm_cvtsi32_si128(64 - BITS)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn chi(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(a, _mm256_andnot_si256(b, c))
}

#[inline]
#[target_feature(enable = "avx2")]
fn iota(a: __m256i, constant: u64) -> __m256i {
    _mm256_xor_si256(a, _mm256_set1_epi64x(constant.cast_signed()))
}
