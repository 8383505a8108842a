//! Every step of every backend against the same step in plain Rust.

use proptest::array::uniform;
use proptest::collection::vec;
use proptest::prelude::*;

use super::backends;
use crate::backend::{Engine, Portable, with_engine};
use crate::keccak::Block;
use crate::parameters::{K, L, N, Q, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::{expand_a, sample_in_ball};

/// A polynomial with coefficients between −limit and limit, at the limits more often than not.
fn polynomial(limit: i32) -> impl Strategy<Value = Polynomial> {
    let coefficient = prop_oneof![-limit..=limit, Just(limit), Just(-limit)];
    let random = vec(coefficient, N).prop_map(|w| Polynomial(w.try_into().unwrap()));
    prop_oneof![8 => random, 1 => Just(Polynomial([limit; N])), 1 => Just(Polynomial([-limit; N]))]
}

fn ntt<E: Engine>(engine: E, w: &Polynomial) {
    let (mut own, mut plain) = (w.clone(), w.clone());
    engine.ntt(&mut own);
    Portable.ntt(&mut plain);
    assert!(own == plain);
    assert!(own.0.iter().all(|coefficient| coefficient.abs() <= 9 * Q));
}

fn inverse_ntt<E: Engine>(engine: E, w: &Polynomial) {
    let (mut own, mut plain) = (w.clone(), w.clone());
    engine.inverse_ntt(&mut own);
    Portable.inverse_ntt(&mut plain);
    // Multiplications are by other representatives.
    assert!(own.0.iter().zip(&plain.0).all(|(own, plain)| (own - plain) % Q == 0));
    assert!(own.0.iter().chain(&plain.0).all(|coefficient| coefficient.abs() < Q));
}

fn multiply_row<E: Engine>(
    engine: E,
    a: &[Polynomial; L],
    z: &[Polynomial; L],
    t1: &Polynomial,
    c: &Polynomial,
) {
    let (mut own, mut plain) = (Polynomial([7; N]), Polynomial([8; N]));
    engine.multiply_row(a, z, t1, c, &mut own);
    Portable.multiply_row(a, z, t1, c, &mut plain);
    assert!(own == plain);
    assert!(own.0.iter().all(|coefficient| 4 * i64::from(coefficient.abs()) <= 3 * i64::from(Q)));
}

fn w1_encode<E: Engine>(engine: E, w: &Polynomial, hints: &[u8]) {
    let (mut own, mut plain) = ([7; W1_BYTES], [8; W1_BYTES]);
    engine.w1_encode(w, hints, &mut own);
    Portable.w1_encode(w, hints, &mut plain);
    assert!(own == plain, "{w:?}");
}

fn decode<E: Engine>(engine: E, bytes: &[u8; L * Z_BYTES], t1_bytes: &[u8; K * T1_BYTES]) {
    let mut own = [const { Polynomial::ZERO }; L];
    let mut plain = own.clone();
    assert_eq!(engine.z_decode(bytes, &mut own), Portable.z_decode(bytes, &mut plain));
    assert!(own == plain);
    let mut own = [const { Polynomial::ZERO }; K];
    let mut plain = own.clone();
    engine.t1_decode(t1_bytes, &mut own);
    Portable.t1_decode(t1_bytes, &mut plain);
    assert!(own == plain);
}

fn reject<E: Engine>(engine: E, block: &Block, filled: usize) {
    let (mut own, mut plain) = (Polynomial([7; N]), Polynomial([7; N]));
    let count = engine.reject(block, &mut own, filled);
    assert_eq!(count, Portable.reject(block, &mut plain, filled));
    assert_eq!(own.0[..count], plain.0[..count]);
}

fn sample<E: Engine>(engine: E, rho: &[u8; 32], state: &[u64; 25]) {
    let mut own = [const { [const { Polynomial::ZERO }; L] }; K];
    let mut plain = own.clone();
    expand_a(engine, own.as_flattened_mut().iter_mut().enumerate().map(|(place, a)| (rho, place, a)));
    expand_a(Portable, plain.as_flattened_mut().iter_mut().enumerate().map(|(place, a)| (rho, place, a)));
    assert!(own == plain);
    let (mut own, mut plain) = (Polynomial([7; N]), Polynomial([8; N]));
    sample_in_ball(engine, &mut state.clone(), &mut own);
    sample_in_ball(Portable, &mut state.clone(), &mut plain);
    assert!(own == plain);
    assert_eq!(own.0.iter().map(|coefficient| coefficient.abs()).sum::<i32>(), 49);
}

/// A block of candidates, of which few or many are q or more, and how many coefficients there are before.
fn candidates() -> impl Strategy<Value = (Block, usize)> {
    let three = |bad| {
        prop_oneof![
            8 => any::<[u8; 3]>(),
            bad => (any::<u8>(), 0xe0..=0xff_u8).prop_map(|(low, middle)| [low, middle, 0xff]),
            1 => Just([0, 0xe0, 0x7f]),
            1 => Just([1, 0xe0, 0x7f]),
        ]
    };
    let block = prop_oneof![vec(three(1), 64), vec(three(40), 64), vec(any::<[u8; 3]>(), 64)];
    let block = block.prop_map(|bytes| Block(bytes.as_flattened().try_into().unwrap()));
    (block, prop_oneof![Just(0), 0..=N, 200..=N])
}

proptest! {
    #[test]
    fn transforms(w in polynomial(Q), scaled in polynomial(Q / 4 * 3)) {
        for backend in backends() {
            with_engine!(backend, ntt, &w);
            with_engine!(backend, inverse_ntt, &scaled);
        }
    }

    #[test]
    fn commitments(w in polynomial(Q - 1), hints in vec(any::<u8>(), 0..60)) {
        for backend in backends() {
            with_engine!(backend, w1_encode, &w, &hints);
        }
    }

    #[test]
    fn encodings(z in vec(any::<u8>(), L * Z_BYTES), t1 in vec(any::<u8>(), K * T1_BYTES)) {
        let (z, t1) = (z.try_into().unwrap(), t1.try_into().unwrap());
        for backend in backends() {
            with_engine!(backend, decode, &z, &t1);
        }
    }

    #[test]
    fn candidates_are_taken_or_not((block, filled) in candidates()) {
        for backend in backends() {
            with_engine!(backend, reject, &block, filled);
        }
    }

    #[test]
    fn samples(rho in any::<[u8; 32]>(), state in uniform::<_, 25>(any::<u64>())) {
        for backend in backends() {
            with_engine!(backend, sample, &rho, &state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rows(a in uniform::<_, L>(polynomial(Q)), z in uniform::<_, L>(polynomial(9 * Q)), t1 in polynomial(9 * Q), c in polynomial(9 * Q)) {
        for backend in backends() {
            with_engine!(backend, multiply_row, &a, &z, &t1, &c);
        }
    }
}

#[test]
fn all_numbers_modulo_q_are_rounded_alike() {
    let all: Vec<u8> = (0..=255).collect();
    for backend in backends() {
        for first in (0..Q).step_by(N) {
            let w = Polynomial(std::array::from_fn(|place| (first + place as i32).min(Q - 1)));
            with_engine!(backend, w1_encode, &w, &[]);
            with_engine!(backend, w1_encode, &w, &all);
        }
    }
}

#[test]
fn all_coefficients_are_decoded_alike() {
    for backend in backends() {
        for first in (0..1_u64 << 20).step_by(1024) {
            let mut z = [0; L * Z_BYTES];
            for (five, value) in z.as_chunks_mut::<5>().0.iter_mut().zip((first..first + 1024).step_by(2)) {
                let bits = (value | (value + 1) << 20).to_le_bytes();
                five.copy_from_slice(&bits[..5]);
            }
            let t1 = std::array::from_fn(|place| (first >> (place % 7)) as u8 ^ place as u8);
            with_engine!(backend, decode, &z, &t1);
        }
    }
}
