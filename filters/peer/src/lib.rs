//! Peer traffic: byte streams between nodes
