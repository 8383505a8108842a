//! Starts real sidecars, nodes, databases and resolvers for tests
