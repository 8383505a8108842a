//! What each step takes.

use std::hint::black_box;
use std::time::Instant;

use super::{Signed, backends};
use crate::backend::{Engine, with_engine};
use crate::encoding::Signature;
use crate::keccak::{Block, LANES, Lanes};
use crate::key::{ExpandedKey, expand};
use crate::parameters::{K, L, SEED_BYTES, T1_BYTES, W1_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::{expand_a, sample_in_ball};
use crate::verify::commit;

/// Prints the shortest of many times in nanoseconds.
fn time(name: &str, mut step: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..200 {
        let begin = Instant::now();
        for _ in 0..20 {
            step();
        }
        best = best.min(begin.elapsed().as_secs_f64() * 1e9 / 20.0);
    }
    println!("    {name:20} {best:8.1} ns");
}

fn steps<E: Engine>(engine: E, signed: &Signed, key: &mut ExpandedKey) {
    let signature: &[u8; 3309] = signed.signature[..].try_into().unwrap();
    let parsed = Signature::decode(signature).unwrap();
    let mut z = [const { Polynomial::ZERO }; L];
    let mut w = Polynomial([5; 256]);
    let mut lanes = Lanes::ZERO;
    let mut blocks = [const { Block::ZERO }; LANES];
    let mut w1 = [0; K * W1_BYTES];
    let mut state = [1; 25];
    time("parse", || _ = black_box(Signature::decode(black_box(signature))));
    time("permute", || engine.permute(&mut state));
    time("permute_lanes", || engine.permute_lanes(&mut lanes));
    time("absorb", || engine.absorb(&mut lanes, black_box(&blocks)));
    time("squeeze", || engine.squeeze(black_box(&lanes), &mut blocks));
    time("lanes.get", || _ = black_box(lanes.get(3)));
    time("z_decode", || _ = black_box(engine.z_decode(black_box(parsed.z), &mut z)));
    time("sample_in_ball", || sample_in_ball(engine, &mut black_box(state), &mut w));
    time("ntt", || {
        w.0[0] = 1;
        engine.ntt(black_box(&mut w));
    });
    time("inverse_ntt", || engine.inverse_ntt(black_box(&mut w)));
    time("multiply_row", || engine.multiply_row(&key.a[0], black_box(&z), &key.t1[0], &key.t1[1], &mut w));
    engine.inverse_ntt(&mut w);
    time("w1_encode", || engine.w1_encode(black_box(&w), &[1, 2, 3, 7, 99, 200], &mut [0; W1_BYTES]));
    let mut c = Polynomial::ZERO;
    time("commit", || {
        c.0[0] = 1;
        commit(engine, key, &mut c, &mut z, &parsed, black_box(&mut w1));
    });
    let t1: [u8; K * T1_BYTES] = std::array::from_fn(|place| place as u8);
    time("reject", || _ = black_box(engine.reject(black_box(&blocks[0]), &mut w, 0)));
    time("t1_decode", || engine.t1_decode(black_box(&t1), &mut key.t1));
    time("expand_a", || {
        let a = key.a.as_flattened_mut().iter_mut().enumerate();
        expand_a(engine, a.map(|(place, a)| (&[7; SEED_BYTES], place, a)));
    });
    time("expand", || expand(engine, &[Some(&signed.key)], std::slice::from_mut(key)));
}

#[test]
#[ignore = "a measurement"]
fn of_steps() {
    let signed = Signed::draft();
    for backend in backends() {
        println!("{backend}");
        let mut key = signed.key.expand(backend);
        with_engine!(backend, steps, &signed, &mut key);
    }
}
