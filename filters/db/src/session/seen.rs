//! What a client has been told by replies, and therefore may rely on.

use std::collections::HashMap;
use std::sync::Arc;

use super::parameters::Parameters;
use super::pins::Pins;
use super::statements::Statement;
use crate::wire::backend::Status;

/// How many named statements a client may have, and how many bytes of text and names.
const STATEMENTS: usize = 16_384;
const STATEMENT_BYTES: usize = 32 << 20;

/// The part of a client that replies change.
#[derive(Debug)]
pub struct Seen {
    /// Its named statements.
    pub(super) names: HashMap<Box<[u8]>, Arc<Statement>>,
    /// Its unnamed statement.
    pub(super) unnamed: Option<Arc<Statement>>,
    pub(super) parameters: Arc<Parameters>,
    pub(super) status: Status,
    pub(super) pins: Pins,
    /// A statement was carried out that changes something, by its tag.
    pub(super) changed: bool,
    /// A statement was refused because it would have changed something (25006).
    pub(super) refused_writing: bool,
    /// How much of a message that was begun towards the server is still to come from the client.
    pub(super) sending: usize,
    /// The bytes of names and texts.
    bytes: usize,
}

/// What a message changed in the client's names when it was sent, which is true again if the server does not carry it out.
#[derive(Debug)]
pub(super) struct Undo {
    /// Empty for the unnamed statement.
    pub(super) name: Box<[u8]>,
    pub(super) previous: Option<Arc<Statement>>,
}

impl Seen {
    pub(super) fn new(parameters: Arc<Parameters>) -> Self {
        Self {
            names: HashMap::new(),
            unnamed: None,
            parameters,
            status: Status::Idle,
            pins: Pins::default(),
            changed: false,
            refused_writing: false,
            sending: 0,
            bytes: 0,
        }
    }

    /// A statement by its name; the unnamed one by an empty name.
    pub(super) fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.names.get(name) }
    }

    /// A named statement by its number.
    pub(super) fn named(&self, id: u64) -> Option<&Arc<Statement>> {
        self.names.values().find(|statement| statement.id == id)
    }

    pub(super) fn report(&mut self, name: &[u8], value: &[u8]) {
        if self.parameters.get(name) != Some(value) {
            Arc::make_mut(&mut self.parameters).report(name, value);
        }
    }

    pub(super) fn revert(&mut self, undo: Undo) {
        if undo.name.is_empty() {
            self.unnamed = undo.previous;
        } else {
            self.put(undo.name, undo.previous);
        }
    }

    /// Gives a name to a statement, or to none; what it was the name of before.
    pub(super) fn put(
        &mut self,
        name: Box<[u8]>,
        statement: Option<Arc<Statement>>,
    ) -> Option<Arc<Statement>> {
        let of =
            |statement: &Arc<Statement>| name.len() + statement.rest.as_ref().map_or(0, |rest| rest.len());
        let new = statement.as_ref().map_or(0, of);
        let previous = match self.names.get_mut(&name) {
            Some(known) => match statement {
                Some(statement) => Some(std::mem::replace(known, statement)),
                None => self.names.remove(&name),
            },
            None => {
                if let Some(statement) = statement {
                    self.names.insert(name.clone(), statement);
                }
                None
            }
        };
        self.bytes = (self.bytes + new).saturating_sub(previous.as_ref().map_or(0, of));
        previous
    }

    /// Takes all names away but those for which this is true.
    pub(super) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        let gone: Vec<_> = self.names.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.put(name, None);
        }
    }

    pub(super) fn is_within_limits(&self) -> bool {
        self.names.len() <= STATEMENTS && self.bytes <= STATEMENT_BYTES
    }
}
