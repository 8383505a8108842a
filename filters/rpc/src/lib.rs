//! RPC: framed JSON requests to the node
