//! Algorithms that are the same for all widths of vectors. A function that uses vectors has to name the processor's features itself, so
//! these are macros, which each backend fills with its own features, `Vector` and functions of `vector.rs`.

mod commitment;
mod engine;
mod ntt;

pub(super) use commitment::commitment_functions;
pub(super) use engine::implement_engine;
pub(super) use ntt::{LaneFactors, lane_factors, ntt_functions};
