//! Prepared statements: the texts of a pool, and which of them a server has.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::pins::Pins;

/// What the names of prepared statements at servers begin with. A client's own name that begins so is told from them by the byte
/// after it.
const PREFIX: &[u8] = b"_qudag_";

/// A text with its parameter types, once for all clients and servers of a pool.
#[derive(Debug)]
pub(super) struct Statement {
    /// Never used twice among the servers of a user and database.
    pub(super) id: u64,
    /// Text and types in the form of the wire; `None` when they were too long to be kept.
    pub(super) rest: Option<Box<[u8]>>,
    /// What executing it means for the session.
    pub(super) pins: Pins,
    /// What clients were told of it, once one has asked.
    pub(super) told: OnceLock<Shape>,
    /// It is something else now than what clients were told. Whoever prepares the text again gets another statement.
    stale: AtomicBool,
}

impl Statement {
    /// The text, where it is kept.
    pub(super) fn text(&self) -> Option<&[u8]> {
        self.rest.as_deref().and_then(|rest| rest.split(|byte| *byte == 0).next())
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Relaxed)
    }

    pub(super) fn outdate(&self) {
        self.stale.store(true, Relaxed);
    }
}

/// What a statement takes and gives: a hash of the types of its parameters, and of the names, types and type modifiers of its columns, by which
/// PostgreSQL itself tells whether a plan still gives what it gave (`RevalidateCachedQuery` in `plancache.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u64);

impl Shape {
    /// That of a description which is too long to be looked at.
    pub(super) const LONG: Self = Self(0);

    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// `parameters` is the body of ParameterDescription; it goes into [`Shape::of`].
    pub(super) fn parameters(parameters: &[u8]) -> u64 {
        xxh3_64(parameters)
    }

    /// `columns` is the body of RowDescription, or empty for NoData. For each column it has a name, a zero byte, and 18 bytes: table (4), number in
    /// it (2), type (4), its length (2), type modifier (4), format (2).
    pub(super) fn of(parameters: u64, columns: &[u8]) -> Self {
        let mut hash = Xxh3::with_seed(parameters);
        let mut rest = columns.get(2..).unwrap_or_default();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            let (name, column) = rest.split_at(end + 1);
            for part in [name, column.get(6..10).unwrap_or_default(), column.get(12..16).unwrap_or_default()]
            {
                hash.update(part);
            }
            rest = column.get(18..).unwrap_or_default();
        }
        Self(hash.digest().max(1))
    }
}

/// The texts of a pool. A text is kept as long as a client has it, and beyond that until room is needed.
#[derive(Debug)]
pub struct Texts {
    known: HashSet<Known>,
    next: u64,
    most: usize,
}

#[derive(Debug)]
struct Known(Arc<Statement>);

impl Borrow<[u8]> for Known {
    fn borrow(&self) -> &[u8] {
        self.0.rest.as_deref().unwrap_or_default()
    }
}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<[u8]>::borrow(self).hash(state);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<[u8]>::borrow(self) == Borrow::<[u8]>::borrow(other)
    }
}

impl Eq for Known {}

impl Texts {
    /// At most `most` texts are shared. A statement above that is one of its own, which costs memory of servers only.
    pub fn new(most: usize) -> Self {
        Self { known: HashSet::new(), next: 1, most }
    }

    fn fresh(&mut self) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }

    /// The statement of a text; `look` finds its pins when it is new.
    pub(super) fn statement(&mut self, rest: &[u8], look: impl FnOnce() -> Pins) -> Arc<Statement> {
        if let Some(known) = self.known.get(rest) {
            if !known.0.is_stale() {
                return Arc::clone(&known.0);
            }
            self.known.remove(rest);
        }
        let statement = self.single(rest, look());
        if self.known.len() >= self.most {
            self.known.retain(|known| Arc::strong_count(&known.0) > 1);
        }
        if self.known.len() < self.most {
            self.known.insert(Known(Arc::clone(&statement)));
        }
        statement
    }

    /// A statement that is shared with nobody.
    pub(super) fn single(&mut self, rest: &[u8], pins: Pins) -> Arc<Statement> {
        self.new_statement(Some(rest.into()), pins)
    }

    /// A statement that cannot be prepared again.
    pub(super) fn long(&mut self) -> Arc<Statement> {
        self.new_statement(None, Pins::LONG_STATEMENT)
    }

    fn new_statement(&mut self, rest: Option<Box<[u8]>>, pins: Pins) -> Arc<Statement> {
        let (told, stale) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Statement { id: self.fresh(), rest, pins, told, stale })
    }

    /// How many texts are shared.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no text is shared.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// A statement's name at servers.
pub(super) struct Name {
    bytes: [u8; 24],
    len: usize,
}

impl Name {
    pub(super) fn of(id: u64) -> Self {
        let mut name = Self { bytes: [0; 24], len: 0 };
        let digits = (64 - id.leading_zeros()).div_ceil(4).max(1);
        let hex =
            |place: u32| b"0123456789abcdef".get((id >> (place * 4) & 15) as usize).copied().unwrap_or(b'0');
        let bytes = PREFIX.iter().copied().chain((0..digits).rev().map(hex));
        for (place, byte) in name.bytes.iter_mut().zip(bytes) {
            *place = byte;
            name.len += 1;
        }
        name
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A name of a client that no statement has, so that the server finds none under it either.
pub(super) fn foreign(name: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if name.starts_with(PREFIX) { [PREFIX, b"?", name].concat().into() } else { name.into() }
}

/// The use of a statement that stays.
const FOR_GOOD: u64 = u64::MAX;

/// A name under which no server has anything.
pub(super) fn nobodys() -> Name {
    Name::of(0)
}

/// A statement that a server has.
#[derive(Debug)]
struct Holding {
    used: u64,
    /// Where it was described.
    shape: Option<Shape>,
}

/// Which statements a server connection has, with the use of each.
#[derive(Debug)]
pub(super) struct Held {
    by_id: HashMap<u64, Holding>,
    clock: u64,
    pub(super) most: usize,
}

impl Held {
    pub(super) fn new(most: usize) -> Self {
        Self { by_id: HashMap::new(), clock: 0, most: most.max(1) }
    }

    /// Whether the server has it; if so it is used now.
    pub(super) fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.by_id.get_mut(&id) {
            Some(Holding { used: FOR_GOOD, .. }) => true,
            Some(holding) => {
                holding.used = self.clock;
                true
            }
            None => false,
        }
    }

    /// What it is at this server, where that was asked for.
    pub(super) fn shape(&self, id: u64) -> Option<Shape> {
        self.by_id.get(&id).and_then(|holding| holding.shape)
    }

    pub(super) fn describe(&mut self, id: u64, shape: Shape) {
        if let Some(holding) = self.by_id.get_mut(&id) {
            holding.shape = Some(shape);
        }
    }

    /// One that stays, since it could not be prepared again.
    pub(super) fn insert_for_good(&mut self, id: u64) {
        self.by_id.insert(id, Holding { used: FOR_GOOD, shape: None });
    }

    pub(super) fn insert(&mut self, id: u64) {
        self.clock += 1;
        self.by_id.insert(id, Holding { used: self.clock, shape: None });
    }

    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.by_id.remove(&id).is_some()
    }

    /// Takes out what was used least recently, when there is no room for one more.
    pub(super) fn evict(&mut self) -> Option<u64> {
        if self.by_id.len() < self.most {
            return None;
        }
        let can_go = self.by_id.iter().filter(|(_, holding)| holding.used != FOR_GOOD);
        let oldest = can_go.min_by_key(|(_, holding)| holding.used).map(|(id, _)| *id)?;
        self.by_id.remove(&oldest);
        Some(oldest)
    }

    /// The server has none any more, but those for which this is true.
    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.by_id.retain(|id, _| keep(*id));
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_statement_while_somebody_has_it() {
        let mut texts = Texts::new(2);
        let one = texts.statement(b"a", Pins::default);
        assert_eq!(texts.statement(b"a", || panic!("known")).id, one.id);
        let two = texts.statement(b"b", Pins::default);
        let three = texts.statement(b"c", Pins::default);
        assert_eq!(texts.len(), 2);
        assert_ne!(texts.statement(b"c", Pins::default).id, three.id, "no room: one of its own");
        drop(one);
        let four = texts.statement(b"d", Pins::default);
        assert_eq!(texts.statement(b"d", || panic!("known")).id, four.id);
        assert_eq!(texts.statement(b"b", || panic!("known")).id, two.id);
    }

    #[test]
    fn names_are_told_from_those_of_clients() {
        assert_eq!(Name::of(0).as_bytes(), b"_qudag_0");
        assert_eq!(Name::of(0x1f).as_bytes(), b"_qudag_1f");
        assert_eq!(Name::of(u64::MAX).as_bytes(), b"_qudag_ffffffffffffffff");
        assert_eq!(&*foreign(b"s1"), b"s1");
        assert_eq!(&*foreign(b"_qudag_1f"), b"_qudag_?_qudag_1f");
    }

    #[test]
    fn the_least_recently_used_goes() {
        let mut held = Held::new(2);
        held.insert(1);
        held.insert(2);
        assert!(held.touch(1) && !held.touch(3));
        assert_eq!(held.evict(), Some(2));
        assert_eq!(held.evict(), None);
        held.insert(3);
        held.retain(|id| id == 3);
        assert_eq!((held.len(), held.remove(1), held.remove(3)), (1, false, true));
    }
}
