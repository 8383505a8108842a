//! Makes the stock node dial a peer that it has been told of.
//!
//! The stock node notes announced peers in its Kademlia table and dials nobody. It dials by itself in one case only: when a peer that is
//! connected finds its bucket of the table full, the peer of the bucket that was silent for longest is dialled, to see
//! whether it is still there (Kademlia section 2.4; rust-libp2p `kbucket::InsertResult::Pending`). So, for the bucket of an announced peer:
//! the places behind it are filled with ids of nobody, and a visitor of that bucket comes by.
//!
//! The node's own table is the only place where those ids are: a node without a confirmed public address answers no Kademlia queries. It has
//! forgotten them after its next start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::mdns::Announcement;
use crate::libp2p::{Identity, PeerId};

/// The places of a bucket (`K_VALUE` of rust-libp2p).
const PLACES: usize = 20;
/// After an announcement: it has been read by then.
const READ: Duration = Duration::from_secs(1);
/// How much later the side with the larger id begins: one connection is enough.
const POLITE: Duration = Duration::from_secs(4);
/// Between two invitations, and how often one peer is tried.
const PAUSE: Duration = Duration::from_secs(3);
const TRIES: u32 = 3;
/// How many ids are drawn for one of the bucket. The 13 farthest buckets, in which all but one in 8,000 peers are, take fewer.
const DRAWS: u32 = 100_000;
/// The port of nobody (RFC 863).
const NOBODY: u16 = 9;

/// A peer that is announced.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: PeerId,
    /// Since when.
    pub(super) since: Instant,
    /// Whether its node and the local one have been connected since.
    pub(super) met: bool,
}

/// What is to be done for one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invitation {
    /// The local node.
    pub(super) node: PeerId,
    /// The bucket of its table.
    pub(super) bucket: u32,
    /// How many places have to be filled before.
    pub(super) fill: usize,
}

/// What was done since the node started.
#[derive(Debug, Default)]
pub(super) struct Invitations {
    node: Option<PeerId>,
    /// The peers that were in each bucket when it was filled.
    filled: BTreeMap<u32, BTreeSet<PeerId>>,
    tries: BTreeMap<PeerId, u32>,
    last: Option<Instant>,
}

impl Invitations {
    /// What is to be done now, at most one thing at a time.
    pub(super) fn next(
        &mut self,
        node: &PeerId,
        candidates: &[Candidate],
        now: Instant,
    ) -> Option<Invitation> {
        if self.node.as_ref() != Some(node) {
            *self = Self { node: Some(node.clone()), ..Self::default() };
        }
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            return None;
        }
        let (id, bucket) = candidates.iter().find_map(|candidate| {
            let patience = if *node < candidate.id { READ } else { READ + POLITE };
            let bucket = candidate.id.bucket(node)?;
            // Whoever comes to a full bucket finds no place. The other side can still make its node dial.
            let inside = self.filled.get(&bucket).is_none_or(|inside| inside.contains(&candidate.id));
            let tried = self.tries.get(&candidate.id).copied().unwrap_or_default();
            let due = now.saturating_duration_since(candidate.since) >= patience;
            (due && inside && !candidate.met && tried < TRIES).then(|| (candidate.id.clone(), bucket))
        })?;
        self.last = Some(now);
        *self.tries.entry(id).or_default() += 1;
        let mut fill = 0;
        self.filled.entry(bucket).or_insert_with(|| {
            let inside = candidates.iter().map(|candidate| &candidate.id);
            let inside: BTreeSet<_> = inside.filter(|id| id.bucket(node) == Some(bucket)).cloned().collect();
            fill = PLACES.saturating_sub(inside.len());
            inside
        });
        Some(Invitation { node: node.clone(), bucket, fill })
    }
}

/// Ids of nobody, and a visitor. Takes milliseconds of computing.
pub(super) fn company(invitation: &Invitation, source: Ipv4Addr) -> Option<(Vec<Announcement>, Identity)> {
    let here = |id: &PeerId| id.bucket(&invitation.node) == Some(invitation.bucket);
    let at = format!("/ip4/{source}/tcp/{NOBODY}");
    let mut nobody = Vec::new();
    for _ in 0..invitation.fill {
        let id = std::iter::repeat_with(|| {
            // `KeyType` Ed25519 and 32 bytes.
            let mut key = vec![8, 1, 18, 32];
            key.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(32));
            PeerId::of_key(&key)
        });
        let id = id.take(DRAWS as usize).find(here)?;
        nobody.push(Announcement::new(id, at.clone()));
    }
    let visitor = std::iter::repeat_with(Identity::new).take(DRAWS as usize).flatten();
    let visitor = visitor.into_iter().find(|visitor| here(&visitor.peer_id()))?;
    Some((nobody, visitor))
}

/// Where a visitor says that it is reached: nowhere.
pub(super) fn nowhere(source: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(source, NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> PeerId {
        PeerId::of_key(&[byte; 36])
    }

    fn candidate(byte: u8, since: Instant) -> Candidate {
        Candidate { id: id(byte), since, met: false }
    }

    #[test]
    fn a_peer_is_invited_a_few_times_until_it_is_met() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut invitations = Invitations::default();
        let (small, large) = if id(1) < id(2) { (1, 2) } else { (2, 1) };
        let mut peers = [candidate(large, start)];
        let bucket = id(1).bucket(&id(2)).unwrap();
        let mut at = Vec::new();
        for seconds in 0..60 {
            if let Some(invitation) = invitations.next(&id(small), &peers, start + seconds * second) {
                let fill = if at.is_empty() { 19 } else { 0 };
                assert_eq!(invitation, Invitation { node: id(small), bucket, fill });
                at.push(seconds);
            }
        }
        assert_eq!(at, [1, 4, 7]);
        // After a start it is tried again. The side with the larger id waits.
        let mut invitations = Invitations::default();
        assert_eq!(invitations.next(&id(large), &[candidate(small, start)], start + 4 * second), None);
        assert!(invitations.next(&id(large), &[candidate(small, start)], start + 5 * second).is_some());
        peers[0].met = true;
        assert_eq!(Invitations::default().next(&id(small), &peers, start + 50 * second), None);
    }

    #[test]
    fn who_comes_to_a_full_bucket_is_not_invited() {
        let start = Instant::now();
        let later = |seconds: u64| start + Duration::from_secs(seconds);
        let node = id(0);
        let mut same = (1..).filter(|byte| id(*byte).bucket(&node) == Some(255));
        let mut peers = vec![candidate(same.next().unwrap(), start), candidate(same.next().unwrap(), start)];
        let mut invitations = Invitations::default();
        assert_eq!(invitations.next(&node, &peers, later(10)).map(|it| it.fill), Some(18));
        peers.iter_mut().for_each(|peer| peer.met = true);
        peers.push(candidate(same.next().unwrap(), later(20)));
        assert_eq!(invitations.next(&node, &peers, later(60)), None);
        // A node that has started again has an empty table.
        let again = (1..).map(id).find(|id| *id != peers[2].id).unwrap();
        peers[2].since = later(70);
        assert!(invitations.next(&again, &peers, later(80)).is_some());
    }

    #[test]
    fn company_is_of_the_same_bucket() {
        for bucket in [255, 250, 246] {
            let invitation = Invitation { node: id(0), bucket, fill: 3 };
            let (nobody, visitor) = company(&invitation, Ipv4Addr::LOCALHOST).unwrap();
            assert_eq!(nobody.len(), 3);
            assert!(nobody.iter().all(|nobody| nobody.id.bucket(&id(0)) == Some(bucket)));
            assert_eq!(visitor.peer_id().bucket(&id(0)), Some(bucket));
        }
    }
}
