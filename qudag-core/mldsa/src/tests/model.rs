//! The steps in plain Rust against the standard's definitions, in arithmetic that is slow and simple.

use proptest::prelude::*;

use super::backends;
use crate::backend::portable::field::montgomery_reduce;
use crate::backend::portable::rounding::decompose;
use crate::backend::{Engine, Portable, with_engine};
use crate::constants::ZETAS;
use crate::parameters::{GAMMA1, GAMMA2, K, L, N, Q, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

const ROOT: i128 = 1753;

fn modulo_q(a: i128) -> i128 {
    a.rem_euclid(i128::from(Q))
}

fn power(base: i128, exponent: u32) -> i128 {
    (0..exponent).fold(1, |power, _| modulo_q(power * base))
}

fn polynomial(limit: i32) -> impl Strategy<Value = Polynomial> {
    prop::collection::vec(-limit..=limit, N).prop_map(|w| Polynomial(w.try_into().unwrap()))
}

/// a · b modulo X²⁵⁶ + 1.
fn schoolbook(a: &Polynomial, b: &Polynomial) -> [i128; N] {
    let mut product = [0; N];
    for (i, a) in a.0.iter().enumerate() {
        for (j, b) in b.0.iter().enumerate() {
            let sign = if i + j < N { 1 } else { -1 };
            product[(i + j) % N] += sign * i128::from(*a) * i128::from(*b);
        }
    }
    product
}

/// Products of polynomials by way of their transforms.
fn products<E: Engine>(engine: E, [a, z]: &[[Polynomial; L]; 2], [t1, c]: &[Polynomial; 2]) {
    let mut expected = schoolbook(t1, c).map(|product| -product);
    for (a, z) in a.iter().zip(z) {
        for (sum, product) in expected.iter_mut().zip(schoolbook(a, z)) {
            *sum += product;
        }
    }
    let transform = |w: &Polynomial| {
        let mut w = w.clone();
        engine.ntt(&mut w);
        w
    };
    let mut w = Polynomial::ZERO;
    let (a, z) = (a.each_ref().map(transform), z.each_ref().map(transform));
    engine.multiply_row(&a, &z, &transform(t1), &transform(c), &mut w);
    engine.inverse_ntt(&mut w);
    for (w, expected) in w.0.iter().zip(expected) {
        assert!(w.abs() < Q);
        assert_eq!(modulo_q(i128::from(*w)), modulo_q(expected));
    }
}

/// Bits of numbers one after the other, the lowest first (algorithms 9, IntegerToBits, and 12, BitsToBytes).
fn pack(numbers: impl Iterator<Item = u32>, width: usize) -> Vec<u8> {
    let bits: Vec<bool> =
        numbers.flat_map(|number| (0..width).map(move |bit| number >> bit & 1 == 1)).collect();
    bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

fn packing<E: Engine>(engine: E, z: &[Polynomial; L], t1: &[Polynomial; K], w: &Polynomial) {
    let mut decoded = [const { Polynomial::ZERO }; L];
    let bytes = pack(z.iter().flat_map(|z| &z.0).map(|z| (GAMMA1 - z) as u32), 20);
    engine.z_decode(&<[u8; L * Z_BYTES]>::try_from(bytes).unwrap(), &mut decoded);
    assert!(decoded == *z);
    let mut decoded = [const { Polynomial::ZERO }; K];
    let bytes = pack(t1.iter().flat_map(|t1| &t1.0).map(|t1| *t1 as u32), 10);
    engine.t1_decode(&<[u8; K * T1_BYTES]>::try_from(bytes).unwrap(), &mut decoded);
    for (decoded, t1) in decoded.iter().zip(t1) {
        assert_eq!(decoded.0, t1.0.map(|t1| t1 << 13));
    }
    let mut encoded = [0; W1_BYTES];
    engine.w1_encode(w, &[], &mut encoded);
    let high = w.0.iter().map(|w| high_bits(modulo_q(i128::from(*w))) as u32);
    assert_eq!(encoded.to_vec(), pack(high, 4));
}

/// r₁ by the definition of Decompose (algorithm 36).
fn high_bits(r: i128) -> i128 {
    let alpha = 2 * i128::from(GAMMA2);
    let mut r0 = r % alpha;
    if r0 > alpha / 2 {
        r0 -= alpha;
    }
    if r - r0 == i128::from(Q) - 1 { 0 } else { (r - r0) / alpha }
}

proptest! {
    #[test]
    fn reduction(a in -(1_i64 << 31) * i64::from(Q)..=(1_i64 << 31) * i64::from(Q)) {
        let reduced = montgomery_reduce(a);
        prop_assert!(reduced.abs() <= Q);
        prop_assert_eq!(modulo_q(i128::from(reduced) << 32), modulo_q(i128::from(a)));
    }

    #[test]
    fn transforms_are_values_at_the_roots(w in polynomial(Q)) {
        let mut transform = w.clone();
        Portable.ntt(&mut transform);
        for (i, value) in transform.0.iter().enumerate() {
            let root = power(ROOT, 2 * u32::from((i as u8).reverse_bits()) + 1);
            let expected = w.0.iter().rev().fold(0, |sum, w| modulo_q(sum * root + i128::from(*w)));
            prop_assert_eq!(modulo_q(i128::from(*value)), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn transforms_multiply(
        a in prop::array::uniform2(prop::array::uniform5(polynomial(Q))),
        b in prop::array::uniform2(polynomial(Q)),
    ) {
        for backend in backends() {
            with_engine!(backend, products, &a, &b);
        }
    }

    #[test]
    fn packed_numbers(
        z in prop::array::uniform5(polynomial(GAMMA1 - 1)),
        t1 in prop::array::uniform6(polynomial(1023)),
        w in polynomial(Q - 1),
    ) {
        let t1 = t1.map(|Polynomial(t1)| Polynomial(t1.map(i32::abs)));
        for backend in backends() {
            with_engine!(backend, packing, &z, &t1, &w);
        }
    }

    #[test]
    fn hints_recover_high_bits(r in polynomial(Q - 1), added in polynomial(GAMMA2)) {
        // MakeHint (algorithm 39), and what UseHint is for (lemma 1 of the standard's reference [6]).
        let positive = r.0.map(|r| r.rem_euclid(Q));
        let sums: Vec<_> = positive.iter().zip(&added.0).map(|(r, z)| (r + z).rem_euclid(Q)).collect();
        let differs = |place: &u8| {
            let place = usize::from(*place);
            decompose(positive[place]).0 != decompose(sums[place]).0
        };
        let hints: Vec<u8> = (0..=255).filter(differs).collect();
        let mut encoded = [0; W1_BYTES];
        Portable.w1_encode(&r, &hints, &mut encoded);
        let expected = pack(sums.iter().map(|sum| decompose(*sum).0 as u32), 4);
        prop_assert_eq!(encoded.to_vec(), expected);
    }
}

#[test]
fn all_numbers_are_decomposed_as_defined() {
    for r in 0..Q {
        let (r1, r0) = decompose(r);
        assert_eq!(i128::from(r1), high_bits(i128::from(r)));
        assert!((0..16).contains(&r1) && (-GAMMA2..=GAMMA2).contains(&r0), "{r}");
        assert_eq!((r1 * 2 * GAMMA2 + r0 - r) % Q, 0, "{r}");
    }
}

#[test]
fn powers_of_zeta_are_those_of_the_standard() {
    let plain = ZETAS.each_ref().map(|zeta| montgomery_reduce(i64::from(zeta.value)).rem_euclid(Q));
    // The first row of appendix B, whose first place is not used.
    assert_eq!(plain[1..8], [4808194, 3765607, 3761513, 5178923, 5496691, 5234739, 5178987]);
    for (k, zeta) in (0..=255_u8).zip(plain) {
        assert_eq!(i128::from(zeta), power(ROOT, k.reverse_bits().into()));
    }
}
