//! What two sidecars tell each other of themselves.
//!
//! After the status of a control stream ([`Header`](crate::tunnel::header::Header)) both sides send frames whenever they like:
//!
//! ```text
//!  offset  length  field
//!  0       2       length of what follows, 2 to 4096, most significant byte first
//!  2       1       version, 1
//!  3       1       kind; 1: state, 2: echo, 3: echo's answer
//!  4       …       of a state: fields; of the others: 8 bytes, which an answer repeats
//!
//!  a field of a state:
//!  0       1       tag; 1: version of the sidecar, 2: version of the tunnel's header (one byte), 3: capability,
//!                  4: peer id of its node, 5: destination that it serves
//!  1       1       length of the value
//!  2       …       value
//! ```
//!
//! A state has everything that is known; it replaces the one before. Frames of another version, frames of other kinds and fields with
//! other tags are passed over. Texts are printable ASCII of 1 to 64 bytes.

use std::time::Instant;

use qudag_core::bucket::{Bucket, Rate};

use crate::libp2p::PeerId;
use crate::tunnel::header::Destination;

/// The version of this layout.
pub const VERSION: u8 = 1;
/// The longest frame in bytes, without its length.
pub const MAX_FRAME: usize = 4096;
/// The most capabilities of a state.
pub const MAX_CAPABILITIES: usize = 16;
/// The most destinations of a state.
pub const MAX_DESTINATIONS: usize = 32;
/// The longest text.
const MAX_TEXT: usize = 64;

const STATE: u8 = 1;
const ECHO: u8 = 2;
const ANSWER: u8 = 3;

const SIDECAR: u8 = 1;
const TUNNEL: u8 = 2;
const CAPABILITY: u8 = 3;
const NODE: u8 = 4;
const DESTINATION: u8 = 5;

/// What a sidecar tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The version of the program.
    pub sidecar: String,
    /// The version of the tunnel's header.
    pub tunnel: u8,
    /// What it can do: instruction sets and cryptography.
    pub capabilities: Vec<String>,
    /// The peer id of its node, where it is known.
    pub node: Option<PeerId>,
    /// Where it lets streams lead.
    pub destinations: Vec<Destination>,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The state of the sender.
    State(State),
    /// To be answered.
    Echo(u64),
    /// The answer to an echo.
    Answer(u64),
}

/// Why a control stream is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// What came is no frame.
    #[error("what came is not as it should be")]
    Garbage,
    /// Frames come faster than anybody needs.
    #[error("too much came")]
    TooMuch,
}

impl Violation {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::TooMuch => "too_much",
        }
    }
}

impl Message {
    /// The bytes with their length. What a frame has no room for is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![VERSION];
        match self {
            Self::State(state) => {
                body.push(STATE);
                state.encode(&mut body);
            }
            Self::Echo(number) => {
                body.push(ECHO);
                body.extend(number.to_be_bytes());
            }
            Self::Answer(number) => {
                body.push(ANSWER);
                body.extend(number.to_be_bytes());
            }
        }
        // 48 texts of 66 bytes, and less than 200 bytes of the rest.
        let mut bytes = (body.len() as u16).to_be_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    /// The message of a frame; `None` for what is passed over.
    fn decode(frame: &[u8]) -> Result<Option<Self>, Violation> {
        let [version, kind, body @ ..] = frame else { return Err(Violation::Garbage) };
        if *version != VERSION {
            return Ok(None);
        }
        let number = || <[u8; 8]>::try_from(body).map(u64::from_be_bytes).map_err(|_| Violation::Garbage);
        match *kind {
            STATE => State::decode(body).map(|state| Some(Self::State(state))),
            ECHO => number().map(|number| Some(Self::Echo(number))),
            ANSWER => number().map(|number| Some(Self::Answer(number))),
            _ => Ok(None),
        }
    }
}

/// Whether a text may be sent.
fn is_text(text: &[u8]) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && text.iter().all(|byte| (b' '..=b'~').contains(byte))
}

impl State {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut field = |tag: u8, value: &[u8]| {
            // 64 bytes at most.
            out.extend([tag, value.len() as u8]);
            out.extend(value);
        };
        if is_text(self.sidecar.as_bytes()) {
            field(SIDECAR, self.sidecar.as_bytes());
        }
        field(TUNNEL, &[self.tunnel]);
        let capabilities = self.capabilities.iter().filter(|text| is_text(text.as_bytes()));
        for capability in capabilities.take(MAX_CAPABILITIES) {
            field(CAPABILITY, capability.as_bytes());
        }
        if let Some(node) = &self.node {
            field(NODE, node.as_bytes());
        }
        for destination in self.destinations.iter().take(MAX_DESTINATIONS) {
            field(DESTINATION, destination.as_str().as_bytes());
        }
    }

    fn decode(mut body: &[u8]) -> Result<Self, Violation> {
        let mut state = Self::default();
        while let [tag, length, rest @ ..] = body {
            let (value, rest) = rest.split_at_checked(usize::from(*length)).ok_or(Violation::Garbage)?;
            body = rest;
            let text = || {
                let text = is_text(value).then(|| String::from_utf8_lossy(value).into_owned());
                text.ok_or(Violation::Garbage)
            };
            match *tag {
                SIDECAR => state.sidecar = text()?,
                TUNNEL => {
                    let [version] = value else { return Err(Violation::Garbage) };
                    state.tunnel = *version;
                }
                CAPABILITY => state.capabilities.push(text()?),
                NODE => state.node = Some(PeerId::of_bytes(value).map_err(|_| Violation::Garbage)?),
                DESTINATION => {
                    state.destinations.push(text()?.parse().map_err(|_| Violation::Garbage)?);
                }
                _ => {}
            }
        }
        let many = state.capabilities.len() > MAX_CAPABILITIES || state.destinations.len() > MAX_DESTINATIONS;
        if many || !body.is_empty() { Err(Violation::Garbage) } else { Ok(state) }
    }
}

/// Reads the messages of the other side from pieces.
#[derive(Clone, Debug)]
pub struct Intake {
    come: Vec<u8>,
    frames: Bucket,
}

impl Intake {
    /// Nothing has come.
    pub fn new(now: Instant) -> Self {
        Self { come: Vec::new(), frames: Bucket::full(now) }
    }

    /// How many frames may come: a second, and at once. A side that follows the rules sends two in three seconds and one with each change.
    fn rate() -> Rate {
        Rate::new(4, 32)
    }

    /// Takes a piece, [`MAX_FRAME`] bytes at most, and returns the messages that are whole now.
    ///
    /// # Errors
    /// When the stream is to be given up.
    pub fn take(&mut self, piece: &[u8], now: Instant) -> Result<Vec<Message>, Violation> {
        self.come.extend_from_slice(piece);
        let mut messages = Vec::new();
        while let Some((length, rest)) = self.come.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if !(2..=MAX_FRAME).contains(&length) {
                return Err(Violation::Garbage);
            }
            let Some(frame) = rest.get(..length) else { break };
            self.frames.take(&Self::rate(), now).map_err(|_| Violation::TooMuch)?;
            messages.extend(Message::decode(frame)?);
            self.come.drain(..2 + length);
        }
        Ok(messages)
    }

    /// How many bytes wait for the rest of their frame.
    pub fn waiting(&self) -> usize {
        self.come.len()
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
