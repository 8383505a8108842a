//! Moving bytes from one side to the other with as few copies as possible.

use bytes::{Buf, BytesMut};

/// What happens to the bytes of an inbox, front to back. What is passed on untouched is copied once, in runs as long as possible; and
/// when nothing else happens, not at all: the buffers change places.
pub(super) struct Relay<'a> {
    bytes: &'a [u8],
    out: &'a mut BytesMut,
    /// The start of the run that is to be passed on and is not yet written.
    start: usize,
    at: usize,
}

/// How far a [`Relay`] came.
pub(super) struct Relayed {
    start: usize,
    at: usize,
}

impl<'a> Relay<'a> {
    pub(super) fn new(bytes: &'a [u8], out: &'a mut BytesMut) -> Self {
        Self { bytes, out, start: 0, at: 0 }
    }

    /// The bytes that nothing happened to yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Passes bytes on.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// Leaves bytes out.
    pub(super) fn skip(&mut self, bytes: usize) {
        if bytes > 0 {
            self.out();
            self.at += bytes;
            self.start = self.at;
        }
    }

    /// Where to write something that comes before what follows.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        self.out.extend_from_slice(self.bytes.get(self.start..self.at).unwrap_or_default());
        self.start = self.at;
        self.out
    }

    pub(super) fn done(self) -> Relayed {
        Relayed { start: self.start, at: self.at }
    }
}

impl Relayed {
    pub(super) fn finish(self, inbox: &mut BytesMut, out: &mut BytesMut) {
        if self.start == 0 && self.at == inbox.len() && out.is_empty() {
            std::mem::swap(inbox, out);
            return;
        }
        out.extend_from_slice(inbox.get(self.start..self.at).unwrap_or_default());
        inbox.advance(self.at);
    }
}
