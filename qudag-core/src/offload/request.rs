//! Requests.

use bytes::{BufMut, Bytes};

use super::operation::sealed::Operation as _;
use super::{
    Digest, Fingerprint, Frame, Header, Malformed, NewKey, Operation, Operations, Signature, Unencodable,
};

/// The sort of a request for the status.
const STATUS: u8 = 5;

/// What is asked for. The operations are read while they are iterated over.
pub enum Request {
    /// Registers keys.
    Keys(Operations<NewKey<Bytes>>),
    /// Verifies signatures.
    Signatures(Operations<Signature<Bytes>>),
    /// Verifies fingerprints.
    Fingerprints(Operations<Fingerprint<Bytes>>),
    /// Hashes data.
    Hashes(Operations<Digest<Bytes>>),
    /// Asks for the status.
    Status,
}

impl Request {
    /// The request in a frame.
    ///
    /// # Errors
    /// When it is none. The frames that follow can be read all the same.
    pub fn read(frame: Frame) -> Result<Self, Malformed> {
        let Frame { header, body } = frame;
        if header.flags & !Header::ROUTED != 0 {
            return Err(Malformed::Frame("unknown flags"));
        }
        match header.sort {
            NewKey::<Bytes>::SORT => Operations::new(header.count, body).map(Self::Keys),
            Signature::<Bytes>::SORT => Operations::new(header.count, body).map(Self::Signatures),
            Fingerprint::<Bytes>::SORT => Operations::new(header.count, body).map(Self::Fingerprints),
            Digest::<Bytes>::SORT => Operations::new(header.count, body).map(Self::Hashes),
            STATUS if header.count == 0 && body.is_empty() => Ok(Self::Status),
            STATUS => Err(Malformed::Frame("a request for the status has no body")),
            _ => Err(Malformed::Frame("unknown sort of request")),
        }
    }
}

/// Appends a request for operations of one sort.
///
/// # Errors
/// When it does not fit into a frame; nothing is appended then.
pub fn encode_batch<O: Operation>(
    id: u32,
    operations: &[O],
    to: &mut impl BufMut,
) -> Result<(), Unencodable> {
    encode(id, 0, operations, to)
}

/// Appends a request that a sidecar passes on ([`Header::ROUTED`]).
///
/// # Errors
/// Those of [`encode_batch`].
pub fn encode_routed<O: Operation>(
    id: u32,
    operations: &[O],
    to: &mut impl BufMut,
) -> Result<(), Unencodable> {
    encode(id, Header::ROUTED, operations, to)
}

fn encode<O: Operation>(
    id: u32,
    flags: u8,
    operations: &[O],
    to: &mut impl BufMut,
) -> Result<(), Unencodable> {
    let mut bytes = 0_usize;
    for (place, operation) in operations.iter().enumerate() {
        let length = operation.check().map_err(|(part, length)| Unencodable::Length {
            operation: place,
            part,
            length,
        })?;
        bytes = bytes.saturating_add(length);
    }
    let unfit = Unencodable::Batch { operations: operations.len(), bytes };
    let header = Header {
        length: u32::try_from(bytes).map_err(|_| unfit)?,
        id,
        sort: O::SORT,
        flags,
        count: u16::try_from(operations.len()).map_err(|_| unfit)?,
    };
    header.write(to);
    operations.iter().for_each(|operation| operation.write(to));
    Ok(())
}

/// Appends a request for the status.
pub fn encode_status(id: u32, to: &mut impl BufMut) {
    Header { length: 0, id, sort: STATUS, flags: 0, count: 0 }.write(to);
}
