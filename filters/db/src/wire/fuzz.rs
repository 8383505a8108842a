//! The entries for fuzzing.

use bytes::BytesMut;

use super::{Head, WireError, auth, backend, body, frontend};

/// Any bytes in any pieces give the same messages and no panic, read as those of a client and as those of a server.
///
/// # Panics
/// When an invariant of the framing is broken.
pub fn fuzz_wire(bytes: &[u8]) {
    walk(bytes, frontend::head, |head, body| {
        let _ = match head.kind {
            frontend::PARSE => frontend::Parse::read(body).map(drop),
            frontend::BIND => frontend::Bind::read(body).map(drop),
            frontend::DESCRIBE | frontend::CLOSE => frontend::Target::read(head.kind, body).map(drop),
            frontend::EXECUTE => frontend::Execute::read(body).map(drop),
            _ => frontend::query(body).map(drop),
        };
    });
    walk(bytes, backend::head, |head, body| {
        let _ = match head.kind {
            backend::READY => backend::Status::read(body).map(drop),
            backend::PARAMETER => backend::parameter(body).map(drop),
            backend::KEY_DATA => backend::key_data(body).map(drop),
            backend::COMMAND_COMPLETE => backend::command_tag(body).map(drop),
            backend::DATA_ROW => backend::columns(body).map(drop),
            backend::NEGOTIATE => backend::negotiate(body).map(drop),
            backend::NOTIFICATION => backend::notification(body).map(drop),
            _ => {
                backend::Report::read(body);
                Ok(())
            }
        };
    });
}

/// The same of an authentication.
///
/// # Panics
/// When an invariant of the framing is broken, or what was read is written differently.
pub fn fuzz_auth(bytes: &[u8]) {
    walk(bytes, auth::client_head, |_, body| {
        let _ = auth::password(body);
        if let Ok(initial) = auth::SaslInitial::read(body) {
            same(body, |out| initial.write(out));
        }
    });
    walk(bytes, auth::server_head, |head, body| {
        if let (auth::REQUEST, Ok(request)) = (head.kind, auth::Request::read(body)) {
            // What follows an unknown code is not kept.
            if !matches!(request, auth::Request::Other(_)) {
                same(body, |out| request.write(out));
            }
        }
    });
}

fn same(read: &[u8], write: impl FnOnce(&mut BytesMut)) {
    let mut out = BytesMut::new();
    write(&mut out);
    assert!(out.get(super::HEADER..) == Some(read), "written differently");
}

type ReadHead = fn(&[u8]) -> Result<Option<Head>, WireError>;

fn walk(mut bytes: &[u8], read: ReadHead, look: impl Fn(Head, &[u8])) {
    loop {
        let decided = read(bytes);
        for end in 0..bytes.len().min(6) {
            let Some(piece) = bytes.get(..end) else { return };
            let early = read(piece);
            assert!(matches!(early, Ok(None)) || early == decided, "more bytes change the answer");
        }
        let Ok(Some(head)) = decided else { return };
        assert!(head.len >= super::HEADER, "a message without its header");
        let Some(body) = body(bytes, head) else { return };
        look(head, body);
        bytes = bytes.get(head.len..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_messages_in_any_pieces_give_one_answer(
            messages in proptest::collection::vec(
                ("[QPBDECFHSXdcf123ACDEGHIKNSTVWZcdnstvRp]", proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..40), -1_i64..=1),
                0..6,
            ),
        ) {
            let mut bytes = Vec::new();
            for (kind, body, wrong) in messages {
                bytes.extend(kind.as_bytes());
                let length = i32::try_from(body.len() as i64 + 4 + wrong).unwrap();
                bytes.extend(length.to_be_bytes());
                bytes.extend(body);
            }
            super::fuzz_wire(&bytes);
            super::fuzz_auth(&bytes);
        }
    }
}
