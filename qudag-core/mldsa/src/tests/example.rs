//! NIST's example of a verification by the initial public draft: what each step of it comes to.

use data_encoding::HEXUPPER;

use super::{Signed, backends};
use crate::backend::{Engine, with_engine};
use crate::encoding::Signature;
use crate::keccak::RATE_256;
use crate::key::ExpandedKey;
use crate::parameters::{L, N, Q, W1_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::sample_in_ball;
use crate::sponge::Sponge;
use crate::verify::{challenge_seed, parse};
use crate::{Edition, PublicKey};

/// A line or more for each value: its name, a colon, and bytes in hexadecimal or coefficients in brackets.
const EXAMPLE: &str = include_str!("../../tests/data/nist-draft-verification.txt");

fn value(name: &str) -> &'static str {
    let (_, rest) = EXAMPLE.split_once(&format!("\n{name}: ")).expect(name);
    // Further lines of coefficients begin with brackets, the next name does not.
    let more = rest.split_inclusive('\n').skip(1).take_while(|line| line.starts_with('['));
    let length = rest.find('\n').unwrap_or(rest.len()) + more.map(str::len).sum::<usize>();
    &rest[..length]
}

fn bytes(name: &str) -> Vec<u8> {
    HEXUPPER.decode(value(name).trim().as_bytes()).expect(name)
}

fn coefficients(name: &str) -> Vec<i32> {
    let numbers = value(name).split(|letter: char| !letter.is_ascii_digit() && letter != '-');
    numbers.filter(|number| !number.is_empty()).map(|number| number.parse().unwrap()).collect()
}

/// Whether polynomials are those of the example, modulo q.
fn check(name: &str, polynomials: &[Polynomial]) {
    let own = polynomials.iter().flat_map(|polynomial| polynomial.0);
    let own: Vec<_> = own.map(|coefficient| coefficient.rem_euclid(Q)).collect();
    let right: Vec<_> = coefficients(name).into_iter().map(|coefficient| coefficient.rem_euclid(Q)).collect();
    assert!(own == right, "{name}");
}

fn example() -> Signed {
    Signed {
        key: PublicKey(bytes("pk").try_into().unwrap()),
        edition: Edition::Draft,
        message: bytes("message"),
        signature: bytes("signature"),
    }
}

fn steps<E: Engine>(engine: E, key: &ExpandedKey, signature: &Signature<'_>) {
    check("aHat", key.a.as_flattened());
    check("NTT(t1) * 2^d", &key.t1);

    let mut z = [const { Polynomial::ZERO }; L];
    assert!(engine.z_decode(signature.z, &mut z));
    check("z", &z);
    z.iter_mut().for_each(|z| engine.ntt(z));
    check("NTT(z)", &z);

    let permute = |state: &mut _| engine.permute(state);
    let mut sponge = Sponge::<RATE_256>::new();
    sponge.update(challenge_seed(Edition::Draft, signature.c_tilde), permute);
    let mut c = Polynomial::ZERO;
    sample_in_ball(engine, &mut sponge.finish(permute), &mut c);
    check("c", std::slice::from_ref(&c));
    engine.ntt(&mut c);
    check("NTT(c)", std::slice::from_ref(&c));

    let rows = key.a.iter().zip(&key.t1).zip(signature.hints.rows());
    let (w, w1): (Vec<_>, Vec<_>) = rows
        .map(|((a, t1), hints)| {
            let (mut w, mut w1) = (Polynomial::ZERO, [0; W1_BYTES]);
            engine.multiply_row(a, &z, t1, &c, &mut w);
            engine.inverse_ntt(&mut w);
            engine.w1_encode(&w, hints, &mut w1);
            (w, w1)
        })
        .unzip();
    check("wPrimeApprox", &w);
    assert!(w1.concat() == bytes("w1EncodeTemp"));
}

#[test]
fn every_step_is_that_of_the_example() {
    let example = example();
    let signature = parse(&example.signature).unwrap();
    assert_eq!(signature.c_tilde[..], bytes("cTilde"));
    let hints = signature.hints.rows().flat_map(|row| {
        let row: Vec<_> = row.iter().map(|place| usize::from(*place)).collect();
        (0..N).map(move |place| i32::from(row.contains(&place)))
    });
    assert!(hints.eq(coefficients("h")));
    for backend in backends() {
        let key = example.key.expand(backend);
        assert_eq!(key.tr()[..], bytes("trCandidate"));
        assert_eq!(example.mu(key.tr()).0[..], bytes("muCandidate"));
        with_engine!(backend, steps, &key, &signature);
    }
    assert_eq!(example.verify(), Ok(()));
}
