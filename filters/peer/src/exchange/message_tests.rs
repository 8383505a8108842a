use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn state() -> State {
    State {
        sidecar: "0.1.0".to_owned(),
        tunnel: 1,
        capabilities: vec!["avx2".to_owned()],
        node: Some(PeerId::of_key(&[1, 2, 3])),
        destinations: vec![Destination::node()],
    }
}

fn take(bytes: &[u8]) -> Result<Vec<Message>, Violation> {
    Intake::new(Instant::now()).take(bytes, Instant::now())
}

#[test]
fn the_bytes_are_as_documented() {
    let expected =
        b"\x00\x1f\x01\x01\x01\x050.1.0\x02\x01\x01\x03\x04avx2\x04\x05\x00\x03\x01\x02\x03\x05\x04node";
    assert_eq!(Message::State(state()).encode(), expected);
    assert_eq!(Message::Echo(258).encode(), b"\x00\x0a\x01\x02\0\0\0\0\0\0\x01\x02");
    assert_eq!(Message::Answer(1).encode(), b"\x00\x0a\x01\x03\0\0\0\0\0\0\0\x01");
    assert_eq!(take(expected), Ok(vec![Message::State(state())]));
}

#[test]
fn what_is_later_than_this_version_is_passed_over() {
    assert_eq!(take(b"\x00\x03\x02\x01!"), Ok(vec![]));
    assert_eq!(take(b"\x00\x03\x01\x09!"), Ok(vec![]));
    let known = b"\x00\x08\x01\x01\x09\x01!\x02\x01\x07";
    assert_eq!(take(known), Ok(vec![Message::State(State { tunnel: 7, ..State::default() })]));
}

#[test]
fn garbage_is_recognised_at_once() {
    for wrong in [
        &b"\x00\x00"[..],
        b"\x00\x01\x01",
        b"\x10\x01",
        b"GET / HTTP/1.1\r\n",
        // An echo with seven bytes.
        b"\x00\x09\x01\x02\0\0\0\0\0\0\0",
        // A field that is longer than its frame; half a field; an empty text; a control character; no peer id; no destination.
        b"\x00\x05\x01\x01\x01\x05!",
        b"\x00\x03\x01\x01\x01",
        b"\x00\x04\x01\x01\x01\x00",
        b"\x00\x05\x01\x01\x03\x01\x07",
        b"\x00\x05\x01\x01\x04\x01\x07",
        b"\x00\x05\x01\x01\x05\x01/",
        b"\x00\x06\x01\x01\x02\x02\x01\x01",
    ] {
        assert_eq!(take(wrong), Err(Violation::Garbage), "{wrong:?}");
    }
    let many = b"\x05\x01a".repeat(MAX_DESTINATIONS + 1);
    let mut frame = ((many.len() + 2) as u16).to_be_bytes().to_vec();
    frame.extend([1, 1]);
    frame.extend(many);
    assert_eq!(take(&frame), Err(Violation::Garbage));
}

#[test]
fn a_flood_is_recognised_and_a_steady_stream_is_not() {
    let start = Instant::now();
    let mut intake = Intake::new(start);
    let echo = Message::Echo(1).encode();
    for second in 0..100 {
        let now = start + Duration::from_secs(second);
        assert_eq!(intake.take(&echo.repeat(4), now).unwrap().len(), 4);
    }
    assert_eq!(intake.take(&echo.repeat(64), start + Duration::from_secs(101)), Err(Violation::TooMuch));
}

fn any_state() -> impl Strategy<Value = State> {
    let text = "[ -~]{1,64}";
    (
        text,
        any::<u8>(),
        prop::collection::vec(text, 0..MAX_CAPABILITIES),
        prop::option::of(prop::collection::vec(any::<u8>(), 1..100)),
        prop::collection::vec("[A-Za-z0-9._-]{1,64}", 0..MAX_DESTINATIONS),
    )
        .prop_map(|(sidecar, tunnel, capabilities, key, destinations)| State {
            sidecar,
            tunnel,
            capabilities,
            node: key.map(|key| PeerId::of_key(&key)),
            destinations: destinations.iter().map(|name| name.parse().unwrap()).collect(),
        })
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_state().prop_map(Message::State),
        any::<u64>().prop_map(Message::Echo),
        any::<u64>().prop_map(Message::Answer)
    ]
}

proptest! {
    #[test]
    fn messages_are_read_back_from_any_pieces(
        messages in prop::collection::vec(any_message(), 1..6), piece in 1_usize..200,
    ) {
        let now = Instant::now();
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        let (mut intake, mut read) = (Intake::new(now), Vec::new());
        for piece in bytes.chunks(piece) {
            read.extend(intake.take(piece, now).unwrap());
        }
        prop_assert_eq!(read, messages);
        prop_assert_eq!(intake.waiting(), 0);
    }

    #[test]
    fn any_bytes_are_bounded(bytes in prop::collection::vec(any::<u8>(), 0..MAX_FRAME)) {
        let now = Instant::now();
        let mut intake = Intake::new(now);
        if let Ok(messages) = intake.take(&bytes, now) {
            prop_assert!(intake.waiting() < MAX_FRAME + 2);
            for message in messages {
                prop_assert!(message.encode().len() <= MAX_FRAME + 2);
            }
        }
    }

    #[test]
    fn too_many_of_anything_are_left_out(count in 0_usize..100) {
        let state = State {
            capabilities: vec!["x".repeat(64); count],
            destinations: vec!["x".repeat(64).parse().unwrap(); count],
            node: Some(PeerId::of_key(&[0; 42])),
            sidecar: "x".repeat(count),
            tunnel: 1,
        };
        let read = take(&Message::State(state).encode()).unwrap();
        prop_assert!(matches!(&read[..], [Message::State(_)]));
    }
}
