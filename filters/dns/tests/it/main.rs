//! The listener, the filters and the upstream side over real sockets on loopback.

#[cfg(test)]
mod chain;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod front;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod redis;
#[cfg(test)]
mod secure;
#[cfg(test)]
mod shared_cache;
#[cfg(test)]
mod support;
#[cfg(test)]
mod transports;
#[cfg(test)]
mod upstream;
