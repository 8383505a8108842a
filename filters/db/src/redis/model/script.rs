//! What the clients of the model do.

use crate::redis::credentials::command;
use crate::session::Choices;

/// What a client sends at a time.
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// For each answer, what has to be in it.
    pub(super) asks: Vec<Option<Vec<u8>>>,
    /// Not before all answers have come.
    pub(super) waits: bool,
}

const PLAIN: &[&str] = &[
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "EXEC x",
    "DISCARD",
    "WATCH k",
    "WATCH k",
    "UNWATCH",
    "NONSENSE",
    "LIST",
    "NULL",
    "NONE",
    "ATTRIBUTE",
    "SELECT 0",
    "SELECT 1",
    "SELECT 3",
    "SELECT 9",
    "SELECT",
];
const OWN: &[&str] =
    &["SUBSCRIBE c", "BLPOP k 0", "XREAD BLOCK 0 STREAMS s 0", "CLIENT NO-EVICT ON", "MONITOR"];
const END: &[&str] = &["RESET", "RESET", "QUIT", "CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT REPLY ON"];

/// A script. With refusals nothing in it says whether others are answered.
pub(super) fn script(choices: &mut Choices<'_>, client: usize, refusals: bool) -> Vec<Piece> {
    let (mut pieces, mut token) = (Vec::new(), 0);
    for _ in 0..choices.of(8) {
        let mut piece = Piece { bytes: Vec::new(), asks: Vec::new(), waits: choices.of(3) == 0 };
        for _ in 0..=choices.of(6) {
            token += 1;
            let key = format!("<{client}.{token}>").into_bytes();
            one(choices, &mut piece, key, refusals);
        }
        pieces.push(piece);
    }
    if choices.of(6) == 1 {
        let bytes = b"*1\r\n$x\r\n".to_vec();
        pieces.push(Piece { bytes, asks: vec![None], waits: false });
    }
    pieces
}

fn one(choices: &mut Choices<'_>, piece: &mut Piece, key: Vec<u8>, refusals: bool) {
    let words = |text: &str| command(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    let of = |choices: &mut Choices<'_>, some: &[&'static str]| {
        some.get(choices.of(some.len())).copied().unwrap_or_default()
    };
    match choices.of(24) {
        0..=7 => {
            piece.bytes.extend(command(&[b"get", &key]));
            piece.asks.push(Some(key));
        }
        8 => {
            piece.bytes.extend([b"get ", &key[..], b"\r\n"].concat());
            piece.asks.push(Some(key));
        }
        9 => piece.bytes.extend(if choices.of(2) == 0 { &b"*0\r\n"[..] } else { b"\r\n" }),
        10 if choices.of(4) == 0 => {
            // Sent on while it comes.
            piece.bytes.extend(command(&[b"SET", &key, &[b'x'; 200_000]]));
            piece.asks.push(Some(key));
        }
        11 if choices.of(3) == 0 => {
            piece.bytes.extend(words(of(choices, OWN)));
            piece.asks.push(None);
        }
        12 if choices.of(3) == 0 => {
            let text = of(choices, END);
            if !(refusals && text.contains("REPLY")) {
                piece.bytes.extend(words(text));
                piece.asks.push(None);
            }
        }
        _ => {
            piece.bytes.extend(words(of(choices, PLAIN)));
            piece.asks.push(None);
        }
    }
}
