//! What the clients of the model do.

use bytes::{BufMut, BytesMut};

use crate::wire::{build, frontend};

/// Decisions, taken from bytes; when they are used up, always the first.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    /// One of so many.
    pub(crate) fn of(&mut self, many: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % many.max(1)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a client sends at a time. Before each piece it waits for all replies.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) bytes: BytesMut,
    pub(super) batches: usize,
}

/// A script. With `whole_batches`, every batch is either one Query or extended messages and their Sync.
pub(super) fn script(
    choices: &mut Choices<'_>,
    client: usize,
    whole_batches: bool,
    discards: bool,
) -> Vec<Piece> {
    let mut pieces = vec![Piece::default()];
    let mut token = 0;
    for _ in 0..choices.of(12) {
        let mut piece = BytesMut::new();
        let mut alone = false;
        if choices.of(3) == 0 {
            let mut text = text(choices, client, &mut token, true, &mut alone);
            if text == b"DISCARD ALL" && !discards {
                text = b"DEALLOCATE ALL".into();
            }
            build::query(&mut piece, &text);
            if text == b"COPY t FROM STDIN" {
                copy(choices, &mut piece, false);
            }
        } else {
            for _ in 0..=choices.of(6) {
                extended(choices, client, &mut token, &mut piece, whole_batches);
            }
            if !whole_batches && choices.of(16) == 0 {
                build::query(&mut piece, b"SELECT 'in between'");
            }
            piece.put_slice(build::SYNC);
        }
        let waits = alone || choices.of(4) == 0;
        match pieces.last_mut() {
            Some(last) if !waits => {
                last.bytes.extend_from_slice(&piece);
                last.batches += 1;
            }
            _ => pieces.push(Piece { bytes: piece, batches: 1 }),
        }
        if alone {
            pieces.push(Piece::default());
        }
    }
    pieces
}

fn text(
    choices: &mut Choices<'_>,
    client: usize,
    token: &mut usize,
    simple: bool,
    alone: &mut bool,
) -> Vec<u8> {
    *token += 1;
    let fixed: &[u8] = match choices.of(if simple { 18 } else { 14 }) {
        0..=4 => return format!("SELECT '{client}:{token}'").into_bytes(),
        5 => b"SELECT 'shared'",
        6 => b"BEGIN",
        7 => b"COMMIT",
        8 => b"ROLLBACK",
        9 => b"FAIL",
        10 => b"",
        11 => b"COPY t TO STDOUT",
        12 => return format!("SET application_name = n{client}{}", choices.of(2)).into_bytes(),
        13 => b"BAD",
        14 => b"SET work_mem = 64kB",
        15 => b"LISTEN a",
        16 => {
            // What is sent behind it without waiting may rely on statements that are gone: that is not the same through a pool.
            *alone = true;
            if choices.of(2) == 0 { b"DISCARD ALL" } else { b"DEALLOCATE ALL" }
        }
        _ => b"COPY t FROM STDIN",
    };
    fixed.into()
}

fn copy(choices: &mut Choices<'_>, out: &mut BytesMut, syncs: bool) {
    for _ in 0..choices.of(4) {
        match choices.of(if syncs { 3 } else { 2 }) {
            0 => {
                build::header(out, frontend::COPY_DATA, 2);
                out.put_slice(b"x\n");
            }
            1 => out.put_slice(b"H\0\0\0\x04"),
            _ => out.put_slice(build::SYNC),
        }
    }
    if choices.of(3) == 0 {
        build::copy_fail(out, "no");
    } else {
        out.put_slice(b"c\0\0\0\x04");
    }
}

fn extended(choices: &mut Choices<'_>, client: usize, token: &mut usize, out: &mut BytesMut, whole: bool) {
    const NAMES: [&[u8]; 5] = [b"", b"", b"s1", b"s2", b"_qudag_1"];
    let name = NAMES.get(choices.of(NAMES.len())).copied().unwrap_or_default();
    let bind = |out: &mut BytesMut, name: &[u8]| {
        build::header(out, frontend::BIND, 1 + name.len() + 1 + 6);
        out.put_u8(0);
        out.put_slice(name);
        out.put_slice(&[0; 7]);
    };
    match choices.of(if whole { 8 } else { 9 }) {
        0 | 1 => {
            let rest = [&text(choices, client, token, false, &mut false), &b"\0\0\0"[..]].concat();
            build::parse(out, name, &rest);
        }
        2 | 3 => bind(out, name),
        4 => build::target(out, frontend::DESCRIBE, name),
        5 => build::target(out, frontend::CLOSE, name),
        6 => out.put_slice(b"H\0\0\0\x04"),
        7 => out.put_slice(b"E\0\0\0\x09\0\0\0\0\0"),
        _ => {
            build::parse(out, b"", b"COPY t FROM STDIN\0\0\0");
            bind(out, b"");
            out.put_slice(b"E\0\0\0\x09\0\0\0\0\0");
            copy(choices, out, true);
        }
    }
}
