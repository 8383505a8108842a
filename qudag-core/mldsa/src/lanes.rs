//! SHAKE256 (FIPS 202) of several inputs at a time, which need not be equally long.

use crate::backend::Engine;
use crate::keccak::{Block, LANES, Lanes, RATE_256, SUFFIX, State, WORDS};
use crate::sponge::{add, output};

/// What is still to be absorbed: pieces one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a>([&'a [u8]; 4]);

impl<'a> Input<'a> {
    pub(crate) fn new(pieces: [&'a [u8]; 4]) -> Self {
        Self(pieces)
    }

    /// Fills a block with what comes next, and with the padding if that is all. Returns whether it is.
    fn next_block(&mut self, Block(block): &mut Block) -> bool {
        let mut room = block.first_chunk_mut::<RATE_256>().map_or(&mut [][..], |block| &mut block[..]);
        for piece in &mut self.0 {
            let length = piece.len().min(room.len());
            let ((now, later), (to, rest)) = (piece.split_at(length), room.split_at_mut(length));
            to.copy_from_slice(now);
            (*piece, room) = (later, rest);
        }
        room.fill(0);
        if let Some(first) = room.first_mut() {
            *first = SUFFIX;
        }
        let ended = !room.is_empty();
        if let Some(last) = room.last_mut() {
            *last ^= 0x80;
        }
        ended
    }

    /// Absorbs all of the input into a state.
    fn absorb_into<E: Engine>(&mut self, engine: E, state: &mut State) {
        let mut block = Block::ZERO;
        let mut ended = false;
        while !ended {
            ended = self.next_block(&mut block);
            add(state, 0, block.0.get(..RATE_256).unwrap_or_default());
            engine.permute(state);
        }
    }
}

/// H(input, 64) of every input, each to its place in `outputs`. As soon as one ends, the next one takes its lane; the last one that is left
/// goes on alone.
pub(crate) fn hash_many<'a, E: Engine>(
    engine: E,
    lanes: &mut Lanes,
    inputs: impl Iterator<Item = (usize, Input<'a>)>,
    outputs: &mut [[u8; 64]],
) {
    let mut inputs = inputs.fuse();
    let mut running = [const { None::<(usize, Input<'a>)> }; LANES];
    let mut blocks = [Block::ZERO; LANES];
    loop {
        for (lane, slot) in running.iter_mut().enumerate().take(E::LANES) {
            if slot.is_none() {
                *slot = inputs.next();
                lanes.set(lane, &[0; WORDS]);
            }
        }
        let mut left = running.iter_mut().enumerate().filter(|(_, slot)| slot.is_some());
        match (left.next(), left.next()) {
            (None, _) => return,
            (Some((lane, slot)), None) => {
                if let Some((place, mut input)) = slot.take() {
                    let mut state = lanes.get(lane);
                    input.absorb_into(engine, &mut state);
                    put(outputs, place, &state);
                }
            }
            _ => {
                let mut ended = [false; LANES];
                for ((slot, block), ended) in running.iter_mut().zip(&mut blocks).zip(&mut ended) {
                    *ended = slot.as_mut().is_some_and(|(_, input)| input.next_block(block));
                }
                engine.absorb(lanes, &blocks);
                engine.permute_lanes(lanes);
                for ((lane, slot), _) in running.iter_mut().enumerate().zip(ended).filter(|(_, ended)| *ended)
                {
                    if let Some((place, _)) = slot.take() {
                        put(outputs, place, &lanes.get(lane));
                    }
                }
            }
        }
    }
}

/// The states of H after each input, the first one in lane 0. No more inputs count than the engine has lanes, and each is shorter than a block.
pub(crate) fn absorb_short<'a, E: Engine>(
    engine: E,
    lanes: &mut Lanes,
    inputs: impl Iterator<Item = &'a [u8]>,
) {
    let mut blocks = [Block::ZERO; LANES];
    for (block, input) in blocks.iter_mut().zip(inputs) {
        Input::new([input, &[], &[], &[]]).next_block(block);
    }
    *lanes = Lanes::ZERO;
    engine.absorb(lanes, &blocks);
    engine.permute_lanes(lanes);
}

fn put(outputs: &mut [[u8; 64]], place: usize, state: &State) {
    if let Some(to) = outputs.get_mut(place) {
        *to = output(state);
    }
}
