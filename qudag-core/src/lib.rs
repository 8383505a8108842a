//! Sans-io vocabulary of the sidecar: codecs and state machines without sockets, clocks or tasks
