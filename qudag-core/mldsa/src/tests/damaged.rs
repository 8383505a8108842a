//! Signatures that are none.

use super::{Signed, backends};
use crate::parameters::{BETA, C_TILDE_BYTES, GAMMA1, K, L, N, OMEGA, SIGNATURE_BYTES, Z_BYTES};
use crate::{Rejected, verify};

/// Where the hints begin.
const HINTS: usize = C_TILDE_BYTES + L * Z_BYTES;

/// Sets a coefficient of z.
fn set_z(signature: &mut [u8], place: usize, value: i32) {
    let bits = (GAMMA1 - value) as u32;
    for bit in 0..20 {
        let at = 20 * place + bit;
        let byte = &mut signature[C_TILDE_BYTES + at / 8];
        *byte = *byte & !(1 << (at % 8)) | ((bits >> bit & 1) as u8) << (at % 8);
    }
}

#[test]
fn every_coefficient_of_z_must_be_in_range() {
    let limit = GAMMA1 - BETA;
    for original in [Signed::draft(), Signed::standard(b"message")] {
        for backend in backends() {
            let key = original.key.expand(backend);
            let mu = original.mu(key.tr());
            let mut signature = original.signature.clone();
            let mut check = |place, value, expected| {
                set_z(&mut signature, place, value);
                let result = verify(backend, &key, original.edition, &mu, &signature);
                // One in a million has the value already.
                let expected = if signature == original.signature { Ok(()) } else { Err(expected) };
                assert_eq!(result, expected, "{backend}: {value} at {place}");
                signature.copy_from_slice(&original.signature);
            };
            for place in 0..L * N {
                check(place, limit, Rejected::Range);
                check(place, -limit, Rejected::Range);
                check(place, GAMMA1, Rejected::Range);
                check(place, 1 - GAMMA1, Rejected::Range);
                check(place, limit - 1, Rejected::Mismatch);
                check(place, 1 - limit, Rejected::Mismatch);
            }
        }
    }
}

/// A signature with so many hints in each polynomial, in order from 3 on.
fn with_hints(signed: &Signed, counts: [u8; K]) -> Signed {
    let mut signed = signed.clone();
    let hints = &mut signed.signature[HINTS..];
    hints.fill(0);
    let mut index = 0;
    for (row, count) in counts.into_iter().enumerate() {
        for place in 0..count {
            hints[index] = 3 + place;
            index += 1;
        }
        hints[OMEGA + row] = index as u8;
    }
    signed
}

#[test]
fn hints_have_one_right_form() {
    let signed = Signed::draft();
    let judge = |counts, change: &dyn Fn(&mut [u8])| {
        let mut signed = with_hints(&signed, counts);
        change(&mut signed.signature[HINTS..]);
        signed.verify()
    };
    let (right, wrong) = (Err(Rejected::Mismatch), Err(Rejected::Hints));
    for counts in [[0; K], [1; K], [55, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 55], [10, 0, 20, 0, 25, 0]] {
        assert_eq!(judge(counts, &|_| {}), right, "{counts:?}");
    }
    assert_eq!(judge([2; K], &|hints| hints.swap(4, 5)), wrong, "descending");
    assert_eq!(judge([2; K], &|hints| hints[5] = hints[4]), wrong, "equal");
    assert_eq!(judge([2; K], &|hints| hints[2] = 0), right, "each polynomial begins again");
    assert_eq!(judge([2; K], &|hints| hints[OMEGA + 2] = 3), wrong, "an end before the one before it");
    assert_eq!(judge([9; K], &|hints| hints[OMEGA + 5] = 56), wrong, "more than there can be");
    assert_eq!(judge([9; K], &|hints| hints[OMEGA + 5] = 255), wrong, "many more than there can be");
    assert_eq!(
        judge([9; K], &|hints| hints[OMEGA] = 56),
        wrong,
        "more than there can be, and fewer after it"
    );
    assert_eq!(judge([2; K], &|hints| hints[12] = 1), wrong, "one after the last");
    assert_eq!(judge([2; K], &|hints| hints[OMEGA - 1] = 1), wrong, "one in the last place");
    assert_eq!(judge([2; K], &|hints| hints[OMEGA + 5] = 11), wrong, "one that no polynomial has");
}

#[test]
fn a_signature_has_one_length() {
    let signed = Signed::draft();
    for length in [0, 1, C_TILDE_BYTES, HINTS, SIGNATURE_BYTES - 1, SIGNATURE_BYTES + 1, 2 * SIGNATURE_BYTES]
    {
        let mut other = signed.clone();
        other.signature.resize(length, 0);
        assert_eq!(other.verify(), Err(Rejected::Length), "{length}");
    }
}

/// Flips every bit of a signature, one at a time.
fn flip_every_bit(signed: &Signed) {
    for backend in backends() {
        let key = signed.key.expand(backend);
        let mu = signed.mu(key.tr());
        let mut signature = signed.signature.clone();
        for bit in 0..8 * signature.len() {
            signature[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(backend, &key, signed.edition, &mu, &signature).is_err(), "{backend}: {bit}");
            signature[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(verify(backend, &key, signed.edition, &mu, &signature), Ok(()));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    flip_every_bit(&Signed::draft());
}

#[test]
#[ignore = "the long form: some minutes"]
fn every_flipped_bit_of_a_hundred_signatures_is_noticed() {
    Signed::drafts().iter().for_each(flip_every_bit);
    for number in 0..84 {
        flip_every_bit(&Signed::standard(&[number]));
    }
}
