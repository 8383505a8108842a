//! End-to-end tests on real programs
