use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::FrameError;

fn key(form: bool, byte: u8) -> Key<Bytes> {
    if form { Key::Public(vec![byte; PUBLIC_KEY_BYTES].into()) } else { Key::Id([byte; KEY_ID_BYTES]) }
}

fn some_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn signature() -> impl Strategy<Value = Signature<Bytes>> {
    let edition = select(vec![Edition::Draft, Edition::Final]);
    let message = (some_bytes(255), some_bytes(300))
        .prop_map(|(context, message)| Content::Message { context, message });
    let mu = any::<u8>().prop_map(|byte| Content::Mu(vec![byte; MU_BYTES].into()));
    (any::<bool>(), any::<u8>(), edition, prop_oneof![message, mu], some_bytes(100)).prop_map(
        |(form, byte, edition, content, signature)| Signature {
            key: key(form, byte),
            edition,
            content,
            signature,
        },
    )
}

fn fingerprint() -> impl Strategy<Value = Fingerprint<Bytes>> {
    (any::<bool>(), any::<u8>(), some_bytes(300), some_bytes(100)).prop_map(
        |(form, byte, data, signature)| {
            let fingerprint = vec![byte; FINGERPRINT_BYTES].into();
            Fingerprint { key: key(form, byte), data, fingerprint, signature }
        },
    )
}

fn hash() -> impl Strategy<Value = Digest<Bytes>> {
    (some_bytes(300), 1..=MAX_HASH_BYTES).prop_map(|(data, length)| Digest { data, length })
}

/// The operations of a request, each sort in its list.
#[derive(Debug, Default, PartialEq)]
struct Read {
    keys: Vec<NewKey<Bytes>>,
    signatures: Vec<Signature<Bytes>>,
    fingerprints: Vec<Fingerprint<Bytes>>,
    hashes: Vec<Digest<Bytes>>,
}

fn read(frame: Frame) -> Result<Read, Malformed> {
    let mut all = Read::default();
    match Request::read(frame)? {
        Request::Keys(keys) => all.keys = keys.collect::<Result<_, _>>()?,
        Request::Signatures(signatures) => all.signatures = signatures.collect::<Result<_, _>>()?,
        Request::Fingerprints(fingerprints) => all.fingerprints = fingerprints.collect::<Result<_, _>>()?,
        Request::Hashes(hashes) => all.hashes = hashes.collect::<Result<_, _>>()?,
        Request::Status => {}
    }
    Ok(all)
}

fn encoded<O: Operation>(id: u32, operations: &[O]) -> BytesMut {
    let mut bytes = BytesMut::new();
    encode_batch(id, operations, &mut bytes).unwrap();
    bytes
}

/// The only frame in these bytes.
fn frame(mut bytes: BytesMut) -> Frame {
    let frame = Decoder::new(1 << 20).decode(&mut bytes).unwrap().expect("a whole frame");
    assert!(bytes.is_empty());
    frame
}

#[test]
fn a_request_is_laid_out_as_documented() {
    let content = Content::Message { context: &b"c"[..], message: b"message" };
    let one =
        Signature { key: Key::Id([7; 32]), edition: Edition::Final, content, signature: &b"signature"[..] };
    let expected = [
        &[0, 0, 0, 61, 1, 2, 3, 4, 2, 0, 0, 1, 0, 2, 2, 1, 0, 0, 0, 7, 0, 0, 0, 9][..],
        &[7; 32],
        b"cmessagesignature",
    ]
    .concat();
    assert_eq!(encoded(0x0102_0304, &[one]), expected);

    let one = Digest { data: &b"data"[..], length: 258 };
    let expected = [&[0, 0, 0, 12, 0, 0, 0, 9, 4, 0, 0, 1, 1, 2, 0, 0, 0, 0, 0, 4][..], b"data"].concat();
    assert_eq!(encoded(9, &[one]), expected);

    let mut routed = BytesMut::new();
    encode_routed(9, &[one], &mut routed).unwrap();
    assert_eq!((routed[9], &routed[10..]), (1, &expected[10..]));
    let frame = frame(routed);
    assert!(frame.header.is_routed());
    assert_eq!(read(frame).unwrap().hashes.len(), 1);

    let mut bytes = BytesMut::new();
    encode_status(1, &mut bytes);
    assert_eq!(&bytes[..], [0, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0]);
}

#[test]
fn a_reply_is_laid_out_as_documented() {
    let encoded = |reply: Reply| {
        let mut bytes = Vec::new();
        reply.encode(3, &mut bytes);
        bytes
    };
    let limits = Limits { body: 1 << 20, operations: 1024, in_flight: 16 };
    assert_eq!(
        encoded(Reply::Welcome(limits)),
        [0, 0, 0, 12, 0, 0, 0, 3, 128, 0, 0, 0, 0, 16, 0, 0, 4, 0, 0, 0, 0, 0, 0, 16]
    );
    let verdicts = Reply::Verdicts(Verdict::ALL.to_vec());
    assert_eq!(encoded(verdicts), [0, 0, 0, 8, 0, 0, 0, 3, 130, 0, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7]);
    let hashes = Reply::Hashes(vec![Box::new([5, 6]), Box::new([])]);
    assert_eq!(encoded(hashes), [0, 0, 0, 6, 0, 0, 0, 3, 132, 0, 0, 2, 0, 2, 5, 6, 0, 0]);
    let retry_after = Some(Duration::from_micros(1500));
    let refusal = Refusal { code: Code::RateLimited, retry_after, message: "no".into() };
    assert_eq!(
        encoded(Reply::Error(refusal)),
        [0, 0, 0, 10, 0, 0, 0, 3, 255, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 2, b'n', b'o']
    );
}

#[test]
fn a_reply_that_no_frame_can_hold_is_an_error() {
    for reply in [Reply::Hashes(vec![vec![0; 65_536].into()]), Reply::Verdicts(vec![Verdict::Valid; 65_536])]
    {
        let mut bytes = Vec::new();
        reply.encode(1, &mut bytes);
        let (header, body) = bytes.split_first_chunk().unwrap();
        let read = Reply::read(&Header::read(header), body).unwrap();
        assert!(matches!(read, Reply::Error(Refusal { code: Code::Internal, .. })), "{read:?}");
    }
}

#[test]
fn what_does_not_fit_is_not_written() {
    let mut bytes = BytesMut::new();
    let short = NewKey { key: &[0; 5][..] };
    assert_eq!(
        encode_batch(1, &[short], &mut bytes).unwrap_err().to_string(),
        "operations[0]: a key of 5 bytes"
    );
    let signature =
        |content| Signature { key: Key::Id([0; 32]), edition: Edition::Final, content, signature: &[][..] };
    let long = Content::Message { context: &[0; 256][..], message: &[] };
    for (content, part) in [(long, "a context of 256 bytes"), (Content::Mu(&[0; 63][..]), "μ of 63 bytes")] {
        let fits = signature(Content::Mu(&[0; 64][..]));
        let error = encode_batch(1, &[fits, signature(content)], &mut bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("operations[1]: {part}"));
    }
    for length in [0, 1025] {
        assert!(encode_batch(1, &[Digest { data: &[][..], length }], &mut bytes).is_err());
    }
    let many = vec![Digest { data: &[][..], length: 1 }; 65_536];
    assert!(matches!(encode_batch(1, &many, &mut bytes), Err(Unencodable::Batch { operations: 65_536, .. })));
    assert!(bytes.is_empty());
}

/// A request with one byte changed.
fn changed(mut bytes: BytesMut, place: usize, to: u8) -> Result<Read, Malformed> {
    bytes[place] = to;
    read(frame(bytes))
}

#[test]
fn what_is_wrong_is_named() {
    let content = Content::Message { context: Bytes::new(), message: Bytes::from_static(b"m") };
    let signature =
        Signature { key: key(false, 1), edition: Edition::Draft, content, signature: Bytes::new() };
    let request = encoded(1, &[signature.clone(), signature]);
    let second = HEADER + 12 + 32 + 1;
    for (place, byte, error) in [
        (8, 9, "unknown sort of request"),
        (8, 5, "a request for the status has no body"),
        (9, 2, "unknown flags"),
        (9, 3, "unknown flags"),
        (10, 1, "the body is too short for so many operations"),
        (11, 0, "a batch has at least one operation"),
        (11, 1, "the body goes on after the last operation"),
        (HEADER, 2, "operations[0]: a key is given as 0 (its id) or 1 (the key itself)"),
        (HEADER, 1, "operations[0]: the body ends within the key"),
        (second + 1, 0, "operations[1]: an edition is 1 (the draft) or 2 (the final standard)"),
        (second + 2, 0, "operations[1]: a content is 1 (μ) or 2 (a message)"),
        (second + 2, 1, "operations[1]: μ has 64 bytes, and no context"),
        (second + 3, 2, "operations[1]: the body ends within the context"),
        (second + 7, 2, "operations[1]: the body ends within the message"),
        (second + 11, 1, "operations[1]: the body ends within the signature"),
    ] {
        assert_eq!(changed(request.clone(), place, byte).unwrap_err().to_string(), error);
    }
    let hash = encoded(1, &[Digest { data: &b"d"[..], length: 32 }]);
    for (place, byte, error) in [
        (HEADER, 4, "operations[0]: a hash has 1 to 1024 bytes"),
        (HEADER + 2, 1, "operations[0]: bytes that must be 0 are not"),
        (HEADER + 7, 2, "operations[0]: the body ends within the data"),
    ] {
        assert_eq!(changed(hash.clone(), place, byte).unwrap_err().to_string(), error);
    }
}

#[test]
fn too_long_is_an_error_before_the_body_comes() {
    let decoder = Decoder::new(10);
    for length in [11_u32, u32::MAX] {
        let mut bytes = BytesMut::new();
        bytes.put_u32(length);
        bytes.put_bytes(0, HEADER - 5);
        assert_eq!(decoder.decode(&mut bytes), Ok(None));
        assert_eq!(decoder.missing(&bytes), 1);
        bytes.put_u8(0);
        let error = FrameError::TooLong { length: length as usize, limit: 10 };
        assert_eq!(decoder.decode(&mut bytes), Err(error));
        assert_eq!(decoder.decode(&mut bytes), Err(error));
    }
}

#[test]
fn parts_of_a_request_are_not_copied() {
    let bytes = encoded(1, &[Digest { data: &b"data"[..], length: 32 }]);
    let (begin, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    let read = read(frame(bytes)).unwrap();
    let data = read.hashes[0].data.as_ptr() as usize;
    assert!((begin..end).contains(&data));
}

/// Every stump of a request is either waited for or an error, whatever length its header says.
fn assert_stumps_are_seen<O: Operation>(operations: &[O]) {
    let whole = encoded(1, operations);
    let decoder = Decoder::new(1 << 20);
    for length in 0..whole.len() {
        let mut stump = BytesMut::from(&whole[..length]);
        assert_eq!(decoder.decode(&mut stump), Ok(None));
        assert!(decoder.missing(&stump) > 0);
        assert_eq!(decoder.end(&stump).is_err(), length > 0);
        if length >= HEADER {
            let said = u32::try_from(length - HEADER).unwrap().to_be_bytes();
            stump[..4].copy_from_slice(&said);
            assert!(read(frame(stump)).is_err(), "{length} of {}", whole.len());
        }
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    let limits = (any::<u32>(), any::<u16>(), any::<u32>())
        .prop_map(|(body, operations, in_flight)| Limits { body, operations, in_flight });
    let hashes = vec(vec(any::<u8>(), 0..100).prop_map(Vec::into_boxed_slice), 0..10);
    let code = (select(Code::ALL.to_vec()), any::<u32>(), "\\PC{0,20}").prop_map(|(code, after, message)| {
        let retry_after = (after > 0).then(|| Duration::from_millis(after.into()));
        Refusal { code, retry_after, message }
    });
    prop_oneof![
        limits.prop_map(Reply::Welcome),
        vec(any::<[u8; KEY_ID_BYTES]>(), 0..10).prop_map(Reply::Keys),
        vec(select(Verdict::ALL.to_vec()), 0..100).prop_map(Reply::Verdicts),
        hashes.prop_map(Reply::Hashes),
        "\\PC{0,40}".prop_map(Reply::Status),
        code.prop_map(Reply::Error),
    ]
}

proptest! {
    #[test]
    fn requests_come_back(
        id: u32,
        signatures in vec(signature(), 1..5),
        fingerprints in vec(fingerprint(), 1..5),
        hashes in vec(hash(), 1..5),
        keys in vec(any::<u8>(), 1..4),
    ) {
        let keys: Vec<_> =
            keys.iter().map(|byte| NewKey { key: Bytes::from(vec![*byte; PUBLIC_KEY_BYTES]) }).collect();
        let frames = [encoded(id, &signatures), encoded(id, &fingerprints), encoded(id, &hashes), encoded(id, &keys)];
        let mut all = Read::default();
        for bytes in frames {
            let frame = frame(bytes);
            prop_assert_eq!(frame.header.id, id);
            let one = read(frame).unwrap();
            all.keys.extend(one.keys);
            all.signatures.extend(one.signatures);
            all.fingerprints.extend(one.fingerprints);
            all.hashes.extend(one.hashes);
        }
        prop_assert_eq!(all, Read { keys, signatures, fingerprints, hashes });
    }

    #[test]
    fn stumps_are_seen(signature in signature(), fingerprint in fingerprint(), hash in hash()) {
        assert_stumps_are_seen(&[signature.clone(), signature]);
        assert_stumps_are_seen(&[fingerprint]);
        assert_stumps_are_seen(&[hash.clone(), hash]);
    }

    #[test]
    fn replies_come_back_and_their_stumps_are_errors(id: u32, reply in reply()) {
        let mut bytes = Vec::new();
        reply.encode(id, &mut bytes);
        let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
        let header = Header::read(header);
        prop_assert_eq!((header.id, header.body()), (id, body.len()));
        prop_assert_eq!(&Reply::read(&header, body).unwrap(), &reply);
        for length in 0..body.len() {
            // Texts go to the end, whatever that is.
            if let Ok(stump) = Reply::read(&header, &body[..length]) {
                prop_assert!(matches!(stump, Reply::Status(_) | Reply::Error(_)), "{:?}", stump);
            }
        }
    }

    #[test]
    fn chunks_do_not_matter(
        batches in vec(vec(signature(), 1..3), 1..5),
        cuts in vec(1_usize..3000, 1..20),
    ) {
        let decoder = Decoder::new(1 << 20);
        let mut stream = BytesMut::new();
        for (id, batch) in batches.iter().enumerate() {
            encode_batch(id as u32, batch, &mut stream).unwrap();
        }
        let (mut received, mut decoded) = (BytesMut::new(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        while !stream.is_empty() {
            let cut = (*cuts.next().unwrap()).min(stream.len());
            received.extend_from_slice(&stream.split_to(cut));
            while let Some(frame) = decoder.decode(&mut received).unwrap() {
                prop_assert_eq!(frame.header.id as usize, decoded.len());
                decoded.push(read(frame).unwrap().signatures);
            }
        }
        prop_assert_eq!(decoded, batches);
        prop_assert_eq!(decoder.end(&received), Ok(()));
    }

    #[test]
    fn garbage_never_panics(
        sort in 0_u8..8,
        count in 0_u16..5,
        body in vec(prop_oneof![4 => 0_u8..3, 1 => any::<u8>()], 0..200),
    ) {
        let header = Header { length: body.len() as u32, id: 1, sort, flags: 0, count };
        let _ = Reply::read(&Header { sort: sort | 0x80, ..header }, &body);
        let frame = Frame { header, body: Bytes::from(body) };
        if let Ok(all) = read(frame.clone()) {
            // What was read is written as the same bytes.
            let mut again = BytesMut::new();
            match header.sort {
                1 => encode_batch(1, &all.keys, &mut again).unwrap(),
                2 => encode_batch(1, &all.signatures, &mut again).unwrap(),
                3 => encode_batch(1, &all.fingerprints, &mut again).unwrap(),
                4 => encode_batch(1, &all.hashes, &mut again).unwrap(),
                _ => encode_status(1, &mut again),
            }
            prop_assert_eq!(&again[HEADER..], &frame.body[..]);
        }
    }
}
