//! What each peer has of the tunnel's listener: one that takes too much costs only itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use crate::identity::PeerName;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// QUIC connections.
    Tunnels,
    /// Those that are told that there are too many.
    TurnedAway,
    /// Streams that lead to a destination.
    Streams,
}

/// The counts of all peers. The limit is given at each [`Shares::take`], so that a change of it holds at once; who has a share
/// keeps it when the limit falls. Peers that have nothing are not in it, and those that come are on the list `allow`.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<(PeerName, What), usize>>);

impl Shares {
    /// One more for a peer, unless it has `most` of it.
    pub(super) fn take(self: &Arc<Self>, name: &PeerName, what: What, most: usize) -> Option<Share> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.clone(), what);
        let count = all.get(&key).copied().unwrap_or_default();
        if count >= most {
            return None;
        }
        all.insert(key.clone(), count + 1);
        drop(all);
        Some(Share { of: Arc::clone(self), key })
    }
}

/// One of a peer's, given back when it is dropped.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub(super) struct Share {
    of: Arc<Shares>,
    key: (PeerName, What),
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = all.entry(self.key.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_limits_which_change_at_once() {
        let shares = Arc::new(Shares::default());
        let (a, b): (PeerName, PeerName) = ("spiffe://t/a".parse().unwrap(), "spiffe://t/b".parse().unwrap());
        let held: Vec<_> = (0..3).map(|_| shares.take(&a, What::Streams, 3).unwrap()).collect();
        assert!(shares.take(&a, What::Streams, 3).is_none());
        let (others, tunnel) = (shares.take(&b, What::Streams, 1), shares.take(&a, What::Tunnels, 1));
        assert!(others.is_some() && tunnel.is_some(), "what others have, and of what, does not matter");
        let more = shares.take(&a, What::Streams, 4).unwrap();
        drop(more);
        assert!(shares.take(&a, What::Streams, 2).is_none(), "three are there still");
        drop((held, others, tunnel));
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is left of who has gone");
        assert!(shares.take(&a, What::Streams, 1).is_some());
    }
}
