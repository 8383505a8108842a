//! What is asked, and whether an answer is right.

use std::ops::Range;

use qudag_kit::faulty_dns::zone::address_of_wire;

/// Bytes of a query: header, the name `h00000000.bench.node.`, type A, class IN. All queries are equally long.
pub const SIZE: usize = 12 + NAME + 4;

/// Bytes of the name.
const NAME: usize = 22;

const HEADER: [u8; 12] = [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// Names for which addresses are asked.
#[derive(Clone, Debug)]
pub struct Questions {
    queries: Vec<[u8; SIZE]>,
    addresses: Vec<[u8; 4]>,
}

/// What a datagram is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The right address, in the version of the zone that is told.
    Right {
        /// [`qudag_kit::FaultyDns::set_epoch`] at the time when the upstream server answered.
        epoch: u8,
        /// The TTL in seconds.
        ttl: u32,
    },
    /// A reply to the question that is no success; its code.
    Code(u8),
    /// A success without the right address.
    Wrong,
    /// Not a reply to this question.
    Foreign,
}

/// The text of a name. It is not in `test.`, for which Unbound never asks anybody (RFC 6761).
pub fn name(number: u32) -> String {
    format!("h{number:08}.bench.node.")
}

impl Questions {
    /// The names with these numbers, which are below 100,000,000.
    pub fn new(numbers: Range<u32>) -> Self {
        let mut questions = Self { queries: Vec::new(), addresses: Vec::new() };
        for number in numbers {
            let text = name(number);
            let mut query = [0; SIZE];
            let mut bytes = HEADER.to_vec();
            for label in text.split('.') {
                bytes.push(label.len().min(63) as u8);
                bytes.extend(label.as_bytes());
            }
            bytes.extend([0, 1, 0, 1]);
            for (to, from) in query.iter_mut().zip(bytes) {
                *to = from;
            }
            let wire = query.get(12..12 + NAME).unwrap_or_default();
            questions.addresses.push(address_of_wire(wire, 0).octets());
            questions.queries.push(query);
        }
        questions
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// Question `index` with an id.
    pub fn query(&self, index: usize, id: u16) -> [u8; SIZE] {
        let mut query = self.queries.get(index).copied().unwrap_or([0; SIZE]);
        let [high, low, ..] = &mut query;
        [*high, *low] = id.to_be_bytes();
        query
    }

    /// What a reply is to question `index`; its id has been looked at.
    pub fn judge(&self, index: usize, reply: &[u8]) -> Verdict {
        let (Some(query), Some(address)) = (self.queries.get(index), self.addresses.get(index)) else {
            return Verdict::Foreign;
        };
        let Some([_, _, flags, code, _, _, answers_high, answers_low, ..]) = reply.get(..12) else {
            return Verdict::Foreign;
        };
        if flags & 0x80 == 0 {
            return Verdict::Foreign;
        }
        let question = query.get(12..).unwrap_or_default();
        if reply.get(12..SIZE) != Some(question) {
            // Some refusals come without the question.
            return if reply.len() == 12 { Verdict::Code(code & 15) } else { Verdict::Foreign };
        }
        if code & 15 != 0 {
            return Verdict::Code(code & 15);
        }
        if [*answers_high, *answers_low] == [0, 0] {
            return Verdict::Wrong;
        }
        let answer = reply.get(SIZE..).unwrap_or_default();
        // The owner is a pointer to the question, or, from hickory-dns, the name once more.
        let name = question.get(..NAME).unwrap_or_default();
        let record = answer.strip_prefix(&[0xc0, 12]).or_else(|| answer.strip_prefix(name));
        match record {
            Some(&[0, 1, 0, 1, t0, t1, t2, t3, 0, 4, net, epoch, high, low, ..])
                if [net, high, low] == [address[0], address[2], address[3]] =>
            {
                Verdict::Right { epoch, ttl: u32::from_be_bytes([t0, t1, t2, t3]) }
            }
            _ => Verdict::Wrong,
        }
    }
}

/// Makes the right reply of a query of this benchmark, as cheaply as that can be done: nothing is looked up.
pub fn instant_reply(query: &[u8], room: &mut [u8]) -> Option<usize> {
    const RECORD: [u8; 12] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4];
    let end = SIZE + 16;
    let query = query.get(..SIZE)?;
    let address = address_of_wire(query.get(12..12 + NAME)?, 0);
    let reply = room.get_mut(..end)?;
    let (question, record) = reply.split_at_mut(SIZE);
    question.copy_from_slice(query);
    if let [_, _, flags, code, _, _, _, answers, ..] = question {
        (*flags, *code, *answers) = (0x81, 0x80, 1);
    }
    let (fixed, data) = record.split_at_mut(RECORD.len());
    fixed.copy_from_slice(&RECORD);
    data.copy_from_slice(&address.octets());
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answer_is_right() {
        let questions = Questions::new(7..9);
        assert_eq!(questions.len(), 2);
        let query = questions.query(1, 0x1234);
        assert_eq!(query[..2], [0x12, 0x34]);
        assert_eq!(&query[12..22], b"\x09h00000008");
        assert_eq!(&query[SIZE - 5..], [0, 0, 1, 0, 1]);
        let mut room = [0; 512];
        let length = instant_reply(&query, &mut room).unwrap();
        let reply = &mut room[..length];
        assert_eq!(questions.judge(1, reply), Verdict::Right { epoch: 0, ttl: 300 });
        assert_eq!(questions.judge(0, reply), Verdict::Foreign, "another name");
        assert_eq!(questions.judge(1, &query), Verdict::Foreign, "a query");
        reply[length - 1] ^= 1;
        assert_eq!(questions.judge(1, reply), Verdict::Wrong);
        reply[3] = 2;
        assert_eq!(questions.judge(1, reply), Verdict::Code(2));
        reply[3] = 5;
        assert_eq!(questions.judge(1, &reply[..12]), Verdict::Code(5));
        assert_eq!(questions.judge(1, &reply[..11]), Verdict::Foreign);
    }
}
