//! A sidecar that makes an unmodified QuDAG node faster, smaller and safer
