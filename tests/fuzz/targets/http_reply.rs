//! A reply of the node's HTTP server, received in pieces of any size. The first byte chooses the size of the pieces and, by its
//! highest bit, whether the request was HEAD.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_filter_http::response::{Event, Head, MAX_HEADERS, ResponseParser};

#[derive(Debug, PartialEq)]
struct Outcome {
    head: Option<Box<Head>>,
    body: Vec<u8>,
    complete: bool,
}

fuzz_target!(|data: (u8, &[u8])| {
    let (choice, bytes) = data;
    let to_head = choice & 0x80 != 0;
    let whole = receive(bytes, bytes.len().max(1), to_head);
    let pieces = receive(bytes, usize::from(choice & 0x7f).max(1), to_head);
    assert_eq!(whole, pieces, "the reply depends on how it was cut");
    assert!(whole.body.len() <= bytes.len());
    if let Some(head) = &whole.head {
        assert!(head.headers.len() <= MAX_HEADERS);
        assert!(!to_head || whole.body.is_empty(), "a reply to HEAD with a body");
    }
});

fn receive(bytes: &[u8], piece: usize, to_head: bool) -> Outcome {
    let mut parser = ResponseParser::new(to_head);
    let mut outcome = Outcome { head: None, body: Vec::new(), complete: false };
    let mut pieces = bytes.chunks(piece);
    loop {
        let event = match parser.next_event() {
            Ok(Some(event)) => event,
            Ok(None) => match pieces.next() {
                Some(piece) => {
                    parser.buffer().extend_from_slice(piece);
                    continue;
                }
                None => match parser.closed() {
                    Ok(Some(event)) => event,
                    Ok(None) | Err(_) => return outcome,
                },
            },
            Err(_) => return outcome,
        };
        match event {
            Event::Head(head) => {
                assert!(outcome.head.is_none(), "two heads");
                outcome.head = Some(head);
            }
            Event::Data(data) => {
                assert!(!data.is_empty());
                outcome.body.extend_from_slice(&data);
            }
            Event::End => {
                outcome.complete = true;
                return outcome;
            }
        }
    }
}
