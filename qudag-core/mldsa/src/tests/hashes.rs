//! SHAKE against another implementation of it.

use proptest::prelude::*;
use shake::digest::{ExtendableOutput, Update, XofReader};
use shake::{Shake128, Shake256};

use super::backends;
use crate::backend::{Engine, with_engine};
use crate::keccak::{Block, LANES, Lanes, RATE_128, RATE_256};
use crate::lanes::{Input, hash_many};
use crate::sponge::{Sponge, output};

fn model_256<const COUNT: usize>(input: &[u8]) -> [u8; COUNT] {
    let mut hash = Shake256::default();
    hash.update(input);
    let mut out = [0; COUNT];
    hash.finalize_xof().read(&mut out);
    out
}

fn one<E: Engine>(engine: E, pieces: &[Vec<u8>]) {
    let permute = |state: &mut _| engine.permute(state);
    let (mut short, mut long) = (Sponge::<RATE_256>::new(), Sponge::<RATE_128>::new());
    let mut model = Shake128::default();
    for piece in pieces {
        short.update(piece, permute);
        long.update(piece, permute);
        model.update(piece);
    }
    assert_eq!(output::<RATE_256>(&short.finish(permute)), model_256(&pieces.concat()));
    let mut expected = [[0; RATE_128]; 2];
    let mut reader = model.finalize_xof();
    expected.iter_mut().for_each(|block| reader.read(block));
    let mut state = long.finish(permute);
    assert_eq!(output::<RATE_128>(&state), expected[0]);
    permute(&mut state);
    assert_eq!(output::<RATE_128>(&state), expected[1]);
}

fn many<E: Engine>(engine: E, inputs: &[[Vec<u8>; 4]]) {
    let mut outputs = vec![[0; 64]; inputs.len()];
    let pieces = inputs.iter().map(|pieces| Input::new(pieces.each_ref().map(|piece| &piece[..])));
    let mut lanes = Lanes::ZERO;
    hash_many(engine, &mut lanes, pieces.enumerate(), &mut outputs);
    for (input, output) in inputs.iter().zip(outputs) {
        assert_eq!(output, model_256(&input.concat()));
    }
}

/// Absorbs and squeezes in all lanes of an engine.
fn lanes<E: Engine>(engine: E, words: &[[u64; LANES]; 25], bytes: &[u8; 192]) {
    let blocks: [Block; LANES] =
        std::array::from_fn(|lane| Block(bytes.map(|byte| byte.wrapping_mul(lane as u8 + 3))));
    let mut lanes = Lanes(*words);
    let before: Vec<_> = (0..E::LANES).map(|lane| lanes.get(lane)).collect();
    engine.absorb(&mut lanes, &blocks);
    let absorbed: Vec<_> = (0..E::LANES).map(|lane| lanes.get(lane)).collect();
    engine.permute_lanes(&mut lanes);
    let mut out = [const { Block::ZERO }; LANES];
    engine.squeeze(&lanes, &mut out);
    for lane in 0..E::LANES {
        let mut state = before[lane];
        for (word, bytes) in state.iter_mut().zip(blocks[lane].0[..RATE_256].as_chunks().0) {
            *word ^= u64::from_le_bytes(*bytes);
        }
        assert_eq!(absorbed[lane], state);
        engine.permute(&mut state);
        assert_eq!(lanes.get(lane), state);
        assert_eq!(out[lane].0[..RATE_128], output::<RATE_128>(&state));
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(any::<u8>(), 130..140),
        prop::collection::vec(any::<u8>(), 160..700),
    ]
}

proptest! {
    #[test]
    fn one_input_in_pieces(pieces in prop::collection::vec(piece(), 0..6)) {
        for backend in backends() {
            with_engine!(backend, one, &pieces);
        }
    }

    #[test]
    fn many_inputs(inputs in prop::collection::vec([piece(), piece(), piece(), piece()], 0..30)) {
        for backend in backends() {
            with_engine!(backend, many, &inputs);
        }
    }

    #[test]
    fn steps_in_lanes(words in prop::array::uniform25(prop::array::uniform8(any::<u64>())), bytes in prop::array::uniform32(any::<[u8; 6]>())) {
        let bytes: [u8; 192] = bytes.as_flattened().try_into().unwrap();
        for backend in backends() {
            with_engine!(backend, lanes, &words, &bytes);
        }
    }
}

#[test]
fn whole_blocks() {
    for backend in backends() {
        for length in 0..300 {
            with_engine!(backend, one, &[vec![length as u8; length]]);
        }
    }
}
