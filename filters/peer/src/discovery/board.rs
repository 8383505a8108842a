//! When a node is announced, and when it is told that one is gone.
//!
//! Sends nothing and reads no clock: who uses this does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::mdns::Announcement;
use crate::libp2p::PeerId;

/// Between two announcements of the same (RFC 6762 section 6).
const LEAST: Duration = Duration::from_secs(1);

/// What can be announced, on one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The node at the route's end.
    pub(super) id: PeerId,
    /// Where the local node reaches the route: the beginning of a multiaddr.
    pub(super) at: String,
}

/// What is announced, by the name of its route.
#[derive(Debug, Default)]
pub(super) struct Board(BTreeMap<String, Note>);

#[derive(Debug)]
struct Note {
    announcement: Announcement,
    since: Instant,
    /// How often it was announced, and when for the last time.
    told: u32,
    last: Option<Instant>,
}

/// What is to be sent now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) announce: Vec<Announcement>,
    pub(super) withdraw: Vec<Announcement>,
}

impl Board {
    /// What is to be sent when `wishes` are what can be announced now; `ttl` is how long an announcement holds.
    pub(super) fn work(&mut self, wishes: &BTreeMap<String, Wish>, ttl: Duration, now: Instant) -> Work {
        let mut work = Work::default();
        self.0.retain(|route, note| {
            let wish = wishes.get(route);
            let same =
                wish.is_some_and(|wish| wish.id == note.announcement.id && wish.at == note.announcement.at);
            if !same && note.told > 0 {
                work.withdraw.push(note.announcement.clone());
            }
            same
        });
        for (route, wish) in wishes {
            let note = self.0.entry(route.clone()).or_insert_with(|| Note {
                announcement: Announcement::new(wish.id.clone(), wish.at.clone()),
                since: now,
                told: 0,
                last: None,
            });
            // Twice at once, since datagrams get lost (RFC 6762 section 8.3), and again well before it is forgotten.
            let pause = if note.told < 2 { LEAST } else { (ttl / 3).max(LEAST) };
            if note.last.is_none_or(|last| now.saturating_duration_since(last) >= pause) {
                note.told = note.told.saturating_add(1);
                note.last = Some(now);
                work.announce.push(note.announcement.clone());
            }
        }
        work
    }

    /// The node has asked: everything is to be sent again, unless it was just now.
    pub(super) fn asked(&mut self) {
        for note in self.0.values_mut() {
            note.told = note.told.min(1);
        }
    }

    /// The node has forgotten everything: it is another one.
    pub(super) fn forgotten(&mut self, now: Instant) {
        for note in self.0.values_mut() {
            (note.told, note.last, note.since) = (0, None, now);
        }
    }

    /// Everything is told to be gone.
    pub(super) fn clear(&mut self) -> Vec<Announcement> {
        let told = std::mem::take(&mut self.0).into_values().filter(|note| note.told > 0);
        told.map(|note| note.announcement).collect()
    }

    /// What was announced, with its route and since when.
    pub(super) fn told(&self) -> impl Iterator<Item = (&str, &Announcement, Instant)> {
        let told = self.0.iter().filter(|(_, note)| note.told > 0);
        told.map(|(route, note)| (route.as_str(), &note.announcement, note.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(21);

    fn wishes(of: &[(&str, u8, &str)]) -> BTreeMap<String, Wish> {
        let wish = |(route, id, at): &(&str, u8, &str)| {
            ((*route).to_owned(), Wish { id: PeerId::of_key(&[*id]), at: (*at).to_owned() })
        };
        of.iter().map(wish).collect()
    }

    fn counts(work: &Work) -> (usize, usize) {
        (work.announce.len(), work.withdraw.len())
    }

    #[test]
    fn a_node_is_told_twice_and_then_at_a_third_of_its_time() {
        let (mut board, start) = (Board::default(), Instant::now());
        let wishes = wishes(&[("b", 1, "/x")]);
        let mut at = Vec::new();
        for tenth in 0..300 {
            let work = board.work(&wishes, TTL, start + Duration::from_millis(100 * tenth));
            if !work.announce.is_empty() {
                at.push(tenth);
            }
        }
        assert_eq!(at, [0, 10, 80, 150, 220, 290]);
        // The same words each time: otherwise a node would take it for another one.
        assert_eq!(board.clear().len(), 1);
        assert_eq!(board.clear().len(), 0);
    }

    #[test]
    fn a_question_is_answered_once_a_second() {
        let (mut board, start) = (Board::default(), Instant::now());
        let wishes = wishes(&[("b", 1, "/x"), ("c", 2, "/y")]);
        for seconds in [0, 1] {
            assert_eq!(counts(&board.work(&wishes, TTL, start + Duration::from_secs(seconds))), (2, 0));
        }
        let mut answered = 0;
        for tenth in 0..50 {
            board.asked();
            answered +=
                board.work(&wishes, TTL, start + Duration::from_millis(1000 + 100 * tenth)).announce.len();
        }
        assert_eq!(answered, 8);
    }

    #[test]
    fn what_goes_or_changes_is_withdrawn() {
        let (mut board, now) = (Board::default(), Instant::now());
        assert_eq!(counts(&board.work(&wishes(&[("b", 1, "/x"), ("c", 2, "/y")]), TTL, now)), (2, 0));
        let work = board.work(&wishes(&[("b", 3, "/x"), ("c", 2, "/y")]), TTL, now);
        assert_eq!(
            (work.announce[0].id.clone(), work.withdraw[0].id.clone()),
            (PeerId::of_key(&[3]), PeerId::of_key(&[1]))
        );
        assert_eq!(counts(&work), (1, 1));
        assert_eq!(counts(&board.work(&wishes(&[("b", 3, "/z")]), TTL, now)), (1, 2));
        assert_eq!(counts(&board.work(&wishes(&[]), TTL, now)), (0, 1));
        assert_eq!(counts(&board.work(&wishes(&[]), TTL, now)), (0, 0));
    }

    #[test]
    fn another_node_is_told_everything() {
        let (mut board, now) = (Board::default(), Instant::now());
        let wishes = wishes(&[("b", 1, "/x")]);
        board.work(&wishes, TTL, now);
        board.forgotten(now);
        assert_eq!(board.told().count(), 0);
        assert_eq!(counts(&board.work(&wishes, TTL, now)), (1, 0));
    }
}
