//! Side-by-side benchmarks: direct, through the sidecar, and the peers people use today
