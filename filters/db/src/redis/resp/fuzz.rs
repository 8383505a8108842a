//! The entry for fuzzing.

use super::{CommandScan, Reply, ReplyScan, RespError, arguments};

/// Any bytes in any pieces give the same commands and the same replies, and no panic. The first byte says how the others are cut.
///
/// # Panics
/// When an invariant of the scanners is broken.
pub fn fuzz_resp(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(cut).max(1);
    assert!(commands(bytes, piece) == commands(bytes, usize::MAX), "commands depend on their pieces");
    assert!(replies(bytes, piece) == replies(bytes, usize::MAX), "replies depend on their pieces");
}

/// Where each command ended and what it was called, and where and why that was no command any more.
type Commands = (Vec<(usize, Vec<u8>, Vec<u8>)>, Option<RespError>);

fn commands(bytes: &[u8], piece: usize) -> Commands {
    let mut scan = CommandScan::default();
    let (mut found, mut begin, mut at) = (Vec::new(), 0, 0);
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            let scanned = match scan.feed(piece) {
                Ok(scanned) => scanned,
                Err(error) => return (found, Some(error)),
            };
            assert!(scanned.taken <= piece.len() && (scanned.complete || scanned.taken == piece.len()));
            at += scanned.taken;
            piece = piece.get(scanned.taken..).unwrap_or_default();
            if scanned.complete {
                let command = bytes.get(begin..at).unwrap_or_default();
                let (name, first) = (scan.name().map(<[u8]>::to_vec), scan.first().map(<[u8]>::to_vec));
                let arguments = arguments(command);
                let first_byte = command.first();
                assert!(first_byte != Some(&b'*') || arguments.is_ok(), "a command that cannot be split");
                if let (Ok(arguments), Some(b'*')) = (arguments, first_byte)
                    && let (Some(argument), Some(name)) = (arguments.first(), &name)
                {
                    assert!(name.is_empty() || argument.eq_ignore_ascii_case(name), "another name");
                }
                found.push((at, name.unwrap_or_default(), first.unwrap_or_default()));
                begin = at;
            }
        }
    }
    (found, None)
}

fn replies(bytes: &[u8], piece: usize) -> (Vec<(usize, Reply)>, Option<RespError>) {
    let mut scan = ReplyScan::default();
    let (mut found, mut at) = (Vec::new(), 0);
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            let (taken, reply) = match scan.feed(piece) {
                Ok(scanned) => scanned,
                Err(error) => return (found, Some(error)),
            };
            assert!(taken <= piece.len() && (reply.is_some() || taken == piece.len()));
            at += taken;
            piece = piece.get(taken..).unwrap_or_default();
            found.extend(reply.map(|reply| (at, reply)));
        }
    }
    (found, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let line =
            ("[-+:_#,(]", "[a-z\r]{0,8}").prop_map(|(kind, text)| format!("{kind}{text}\r\n").into_bytes());
        let text = ("[$!=]", proptest::collection::vec(any::<u8>(), 0..20), -1_i64..=1).prop_map(
            |(kind, text, off)| {
                let length = if off == 0 { text.len() as i64 } else { text.len() as i64 + off };
                [format!("{kind}{length}\r\n").as_bytes(), &text, b"\r\n"].concat()
            },
        );
        prop_oneof![3 => line, 3 => text].prop_recursive(4, 32, 4, |inner| {
            ("[*~%|>]", proptest::collection::vec(inner, 0..4)).prop_map(|(kind, values)| {
                let count = if matches!(&kind[..], "%" | "|") { values.len() / 2 } else { values.len() };
                [format!("{kind}{count}\r\n").into_bytes(), values.concat()].concat()
            })
        })
    }

    proptest! {
        #[test]
        fn values_in_any_pieces_give_one_answer(cut: u8, values in proptest::collection::vec(value(), 0..6)) {
            super::fuzz_resp(&[vec![cut], values.concat()].concat());
        }

        #[test]
        fn commands_in_any_pieces_give_one_answer(
            cut in 1_u8..20,
            commands in proptest::collection::vec(proptest::collection::vec("[a-zA-Z\r\n\" ]{0,40}", 0..5), 0..6),
        ) {
            let mut bytes = vec![cut];
            for words in &commands {
                bytes.extend(format!("*{}\r\n", words.len()).bytes());
                for word in words {
                    bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
                }
            }
            super::fuzz_resp(&bytes);
            let (found, error) = super::commands(&bytes[1..], usize::MAX);
            prop_assert_eq!((found.len(), error), (commands.len(), None));
        }

        #[test]
        fn any_text_in_any_pieces_gives_one_answer(cut: u8, text in "[*$+:0-9a\r\n\"'\\-]{0,60}") {
            super::fuzz_resp(&[&[cut], text.as_bytes()].concat());
        }
    }
}
