//! The little of Protocol Buffers that libp2p's handshake needs: numbers and byte strings.

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A number in base 128, least significant group first, and the bytes behind it.
pub(super) fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..)?));
        }
    }
    None
}

pub(super) fn write_varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// All fields in order, each with its number; `None` when the bytes are no message, or have a field of fixed width, which libp2p does not use.
pub(super) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, rest) = read_varint(bytes)?;
        let (number, rest) = read_varint(rest)?;
        let value = match tag & 7 {
            0 => {
                bytes = rest;
                Value::Number(number)
            }
            2 => {
                let (value, rest) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

/// Appends a field of bytes; `number` is below 16.
pub(super) fn write_bytes(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    write_varint(out, value.len());
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(value in prop::collection::vec(any::<u8>(), 0..400), field in 1_u8..16) {
            let mut out = Vec::new();
            write_bytes(&mut out, field, &value);
            prop_assert_eq!(fields(&out), Some(vec![(u64::from(field), Value::Bytes(&value))]));
            out.pop();
            if !value.is_empty() {
                prop_assert_eq!(fields(&out), None);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(fields) = fields(&bytes) {
                prop_assert!(fields.len() <= bytes.len());
            }
        }
    }
}
