//! The listener, the filters and the upstream side over real sockets on loopback.

#[cfg(test)]
mod chain;
#[cfg(test)]
mod front;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upstream;
