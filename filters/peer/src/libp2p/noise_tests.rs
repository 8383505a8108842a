use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

/// Reads what a node is greeted with.
async fn greeted(stream: &mut DuplexStream) {
    let mut greeting = vec![0; hello(NOISE).len()];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting, hello(NOISE));
}

/// The node's side of a handshake; `payload` is what it says of itself for its static key.
async fn node(
    mut stream: DuplexStream,
    payload: impl FnOnce(&[u8]) -> Vec<u8>,
) -> (HandshakeState, Messages<DuplexStream>) {
    greeted(&mut stream).await;
    stream.write_all(&hello(NOISE)).await.unwrap();
    let (private, public) = static_key().unwrap();
    let builder =
        Builder::with_resolver(PATTERN.parse().unwrap(), Box::new(AwsLc)).local_private_key(&private);
    let mut state = builder.unwrap().build_responder().unwrap();
    let (mut messages, mut out) = (Messages::new(stream, Vec::new()), vec![0; MOST]);
    let first = messages.receive().await.unwrap();
    assert_eq!(state.read_message(&first, &mut out).unwrap(), 0, "nothing is said in the clear");
    let length = state.write_message(&payload(&public), &mut out).unwrap();
    messages.send(&out[..length]).await.unwrap();
    (state, messages)
}

/// What asking `node` gives.
async fn asked<T>(node: impl AsyncFnOnce(DuplexStream) -> T) -> Result<PeerId, NodeFailure> {
    // Few bytes at a time, but enough for both sides to write at once.
    let (near, far) = duplex(50);
    let both = async { tokio::join!(ask(near), node(far)).0 };
    tokio::time::timeout(std::time::Duration::from_secs(20), both).await.unwrap()
}

#[tokio::test]
async fn a_node_tells_who_it_is() {
    let identity = Identity::new().unwrap();
    let told = asked(async |stream| node(stream, |key| identity.payload(key)).await).await;
    assert_eq!(told.unwrap(), identity.peer_id());
}

#[tokio::test]
async fn a_node_that_proves_nothing_is_not_believed() {
    let identity = Identity::new().unwrap();
    let other = asked(async |stream| node(stream, |_| identity.payload(&[1; 32])).await).await;
    assert!(matches!(other, Err(NodeFailure::Identity(NotAnIdentity::Signature))), "{other:?}");
    let empty = asked(async |stream| node(stream, |_| Vec::new()).await).await;
    assert!(matches!(empty, Err(NodeFailure::Identity(NotAnIdentity::Malformed))), "{empty:?}");
}

#[tokio::test]
async fn what_is_no_node_is_recognised() {
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x13/multistream/1.0.0\n\x03na\n",
        b"\x13/multistream/1.0.0\n\x05/tls\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x10not a handshake!",
    ] {
        let told = asked(async |mut stream: DuplexStream| {
            greeted(&mut stream).await;
            // Whoever asks may have left before all is written.
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        let told = told.await;
        assert!(matches!(told, Err(NodeFailure::Protocol | NodeFailure::Io(_))), "{answer:?}: {told:?}");
    }
    let gone = asked(async |stream| drop(stream)).await;
    assert!(matches!(gone, Err(NodeFailure::Io(_))), "{gone:?}");
}

#[tokio::test]
async fn a_finished_handshake_carries_bytes_both_ways() {
    let (node_identity, visitor) = (Identity::new().unwrap(), Identity::new().unwrap());
    let (near, far) = duplex(1000);
    let there = async {
        let (mut state, mut messages) = node(far, |key| node_identity.payload(key)).await;
        let (third, mut out) = (messages.receive().await.unwrap(), vec![0; MOST]);
        let length = state.read_message(&third, &mut out).unwrap();
        let from = read_identity(&out[..length], state.get_remote_static().unwrap()).unwrap();
        let mut secret = Secret { messages, state: state.into_transport_mode().unwrap() };
        let heard = secret.receive().await.unwrap();
        secret.send(&heard).await.unwrap();
        from
    };
    let here = async {
        let half = Half::begin(near).await.unwrap();
        assert_eq!(half.node, node_identity.peer_id());
        let mut secret = half.finish(&visitor).await.unwrap();
        secret.send(b"hello").await.unwrap();
        secret.receive().await.unwrap()
    };
    let (from, back) = tokio::join!(there, here);
    assert_eq!((from, back), (visitor.peer_id(), b"hello".to_vec()));
}
