//! DNS: listener, filters and upstreams
