//! HTTP: a well-behaved front for the node's HTTP server
