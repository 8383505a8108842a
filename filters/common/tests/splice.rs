//! A client and an upstream on loopback sockets, and a splice between them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::ErrorKind;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use proptest::prelude::*;
use qudag_filter_common::{
    BufferPool, Buffers, ByteCounters, Drain, Early, SpliceEnd, SpliceOptions, Spliced, Stream, splice,
    splice_after,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";
const PATIENT: SpliceOptions =
    SpliceOptions { stall: Duration::from_secs(60), half_close: Duration::from_secs(60) };

/// Fails the test when something takes longer than it can.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("nothing happened for 20 s")
}

async fn tcp_pair(at: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(at).await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// The two ends, and the splice in the middle.
struct Path {
    client: TcpStream,
    upstream: TcpStream,
    drain: Drain,
    splice: JoinHandle<Spliced>,
}

async fn path(at: &str, options: SpliceOptions) -> Path {
    let (client, front) = tcp_pair(at).await;
    let (back, upstream) = tcp_pair(at).await;
    let drain = Drain::new();
    let splice = start(front.into(), back.into(), options, &drain);
    Path { client, upstream, drain, splice }
}

fn start(front: Stream, back: Stream, options: SpliceOptions, drain: &Drain) -> JoinHandle<Spliced> {
    let drain = drain.clone();
    tokio::spawn(async move {
        let counters = ByteCounters::new("test", "a");
        splice(front, back, options, &drain, &counters).await
    })
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Sends in pieces of at most `piece` bytes, then FIN.
async fn send(mut to: impl AsyncWrite + Unpin, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        to.write_all(piece).await.unwrap();
    }
    to.shutdown().await.unwrap();
}

async fn receive(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn assert_reset(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    let error = soon(stream.read_to_end(&mut bytes)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Writes until the receiver's windows, and everything on the way, are full.
async fn fill(stream: &mut TcpStream) -> usize {
    let bytes = vec![0; 1 << 20];
    let mut filled = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), stream.write(&bytes)).await {
        filled += written.unwrap();
    }
    filled
}

fn reset(stream: TcpStream) {
    Stream::from(stream).reset();
}

#[tokio::test]
async fn a_half_closed_echo_of_5_mb_is_exact() {
    for at in [V4, V6] {
        let mut path = path(at, PATIENT).await;
        let bytes = noise(5_000_000, 1);
        let echo = tokio::spawn(async move {
            // All of it first: the answer starts when the client has finished.
            let bytes = receive(&mut path.upstream).await;
            send(&mut path.upstream, &bytes, 100_000).await;
        });
        send(&mut path.client, &bytes, 33_333).await;
        assert!(soon(receive(&mut path.client)).await == bytes, "other bytes came back");
        soon(echo).await.unwrap();
        let spliced = soon(path.splice).await.unwrap();
        assert_eq!(spliced, Spliced { up: 5_000_000, down: 5_000_000, end: SpliceEnd::Finished });
    }
}

#[tokio::test]
async fn an_upstream_that_finishes_first_can_still_be_written_to() {
    let mut path = path(V4, PATIENT).await;
    send(&mut path.upstream, b"greeting", 8).await;
    assert_eq!(soon(receive(&mut path.client)).await, b"greeting");
    send(&mut path.client, b"late", 4).await;
    assert_eq!(soon(receive(&mut path.upstream)).await, b"late");
    assert_eq!(soon(path.splice).await.unwrap(), Spliced { up: 4, down: 8, end: SpliceEnd::Finished });
}

#[tokio::test]
async fn unix_sockets_are_spliced_too() {
    let (mut client, front) = UnixStream::pair().unwrap();
    let (back, mut upstream) = tcp_pair(V4).await;
    let splice = start(Stream::Unix(front.try_into().unwrap()), back.into(), PATIENT, &Drain::new());
    let bytes = noise(1_000_000, 2);
    let (_, received) =
        soon(async { tokio::join!(send(&mut client, &bytes, 10_000), receive(&mut upstream)) }).await;
    assert!(received == bytes);
    send(&mut upstream, b"done", 4).await;
    assert_eq!(soon(receive(&mut client)).await, b"done");
    assert_eq!(soon(splice).await.unwrap(), Spliced { up: 1_000_000, down: 4, end: SpliceEnd::Finished });
}

#[tokio::test]
async fn a_reset_of_either_side_resets_the_other() {
    for at in [V4, V6] {
        let mut broken = path(at, PATIENT).await;
        reset(broken.client);
        assert_reset(&mut broken.upstream).await;
        assert_eq!(soon(broken.splice).await.unwrap().end, SpliceEnd::Reset);

        let mut broken = path(at, PATIENT).await;
        reset(broken.upstream);
        assert_reset(&mut broken.client).await;
        assert_eq!(soon(broken.splice).await.unwrap().end, SpliceEnd::Reset);
    }
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    let mut path = path(V4, PATIENT).await;
    assert!(fill(&mut path.client).await > 0);
    reset(path.client);
    let spliced = soon(path.splice).await.unwrap();
    assert_eq!(spliced.end, SpliceEnd::Reset);
    assert_reset(&mut path.upstream).await;
}

#[tokio::test]
async fn a_reset_after_fin_is_noticed() {
    let mut path = path(V4, PATIENT).await;
    path.upstream.shutdown().await.unwrap();
    assert_eq!(soon(receive(&mut path.client)).await, b"");
    reset(path.upstream);
    assert_eq!(soon(path.splice).await.unwrap().end, SpliceEnd::Reset);
    // The client has read the end of the stream before; writing tells.
    let broken = soon(async {
        loop {
            if let Err(why) = path.client.write_all(b"x").await {
                return why.kind();
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(matches!(broken.await, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn a_receiver_that_stops_reading_is_given_up() {
    let options = SpliceOptions { stall: Duration::from_millis(200), ..PATIENT };
    let mut path = path(V4, options).await;
    let error = soon(async {
        let bytes = vec![0; 1 << 20];
        loop {
            if let Err(why) = path.client.write(&bytes).await {
                return why;
            }
        }
    });
    assert_eq!(error.await.kind(), ErrorKind::ConnectionReset);
    assert_eq!(soon(path.splice).await.unwrap().end, SpliceEnd::Stalled);
    assert_reset(&mut path.upstream).await;
}

#[tokio::test]
async fn a_side_that_never_finishes_is_given_up_after_the_other_has() {
    tokio::join!(given_up_after_fin(true), given_up_after_fin(false));
}

async fn given_up_after_fin(client_first: bool) {
    let options = SpliceOptions { half_close: Duration::from_secs(1), ..PATIENT };
    let path = path(V4, options).await;
    let (mut first, mut second) =
        if client_first { (path.client, path.upstream) } else { (path.upstream, path.client) };
    first.shutdown().await.unwrap();
    // Traffic puts it off.
    let start = tokio::time::Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        second.write_all(b"x").await.unwrap();
        soon(first.read_exact(&mut [0])).await.unwrap();
    }
    let spliced = soon(path.splice).await.unwrap();
    assert_eq!((spliced.end, spliced.up + spliced.down), (SpliceEnd::Stalled, 4));
    assert!(start.elapsed() >= Duration::from_millis(4 * 300 + 1_000));
    assert_reset(&mut first).await;
}

#[tokio::test]
async fn an_idle_splice_lasts_and_is_counted_as_it_goes() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let options = SpliceOptions { stall: Duration::from_millis(50), half_close: Duration::from_millis(50) };
    let mut path = path(V4, options).await;
    for bytes in [4, 8] {
        // Longer than both limits, and than the time for which an idle buffer is kept.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        path.client.write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        soon(path.upstream.read_exact(&mut ping)).await.unwrap();
        assert_eq!(&ping, b"ping");
        let line = format!(r#"qudag_sidecar_bytes_total{{kind="test",target="a",direction="up"}} {bytes}"#);
        assert!(metrics.render().contains(&line), "{}", metrics.render());
    }
    assert!(!path.splice.is_finished());
}

#[tokio::test]
async fn an_abort_resets_both() {
    let mut path = path(V4, PATIENT).await;
    path.client.write_all(b"x").await.unwrap();
    soon(path.upstream.read_exact(&mut [0])).await.unwrap();
    path.drain.spawn(std::future::pending());
    path.drain.stop();
    tokio::task::yield_now().await;
    assert!(!path.splice.is_finished(), "stopping is not aborting");
    assert_eq!(path.drain.finish(Duration::from_millis(10)).await, 1);
    assert_eq!(soon(path.splice).await.unwrap(), Spliced { up: 1, down: 0, end: SpliceEnd::Aborted });
    assert_reset(&mut path.client).await;
    assert_reset(&mut path.upstream).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whatever_is_sent_arrives(
        up in 0_usize..400_000,
        down in prop_oneof![Just(0), 1_usize..10_000, 10_000_usize..400_000],
        pieces in (1_usize..100_000, 200_usize..20_000),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let path = path(V4, PATIENT).await;
            let (up, down) = (noise(up, seed), noise(down, !seed));
            let (client_read, client_write) = path.client.into_split();
            let (upstream_read, upstream_write) = path.upstream.into_split();
            let traffic = async {
                tokio::join!(
                    send(client_write, &up, pieces.0.max(200)),
                    send(upstream_write, &down, pieces.1),
                    receive(upstream_read),
                    receive(client_read),
                )
            };
            let ((), (), got_up, got_down) = soon(traffic).await;
            assert!(got_up == up && got_down == down, "other bytes arrived");
            let expected =
                Spliced { up: up.len() as u64, down: down.len() as u64, end: SpliceEnd::Finished };
            assert_eq!(soon(path.splice).await.unwrap(), expected);
        });
    }
}

#[tokio::test]
async fn what_was_read_earlier_comes_first_in_both_directions() {
    let (mut client, front) = tcp_pair(V4).await;
    let (back, mut upstream) = tcp_pair(V4).await;
    let drain = Drain::new();
    let early = Early { up: noise(20_000, 1), down: b"hello ".to_vec() };
    let splice = tokio::spawn({
        let (early, drain) = (early.clone(), drain.clone());
        async move {
            let counters = ByteCounters::new("test", "a");
            splice_after(
                early,
                Stream::from(front),
                Stream::from(back),
                PATIENT,
                &Buffers::default(),
                &drain,
                &counters,
            )
            .await
        }
    });
    let rest = noise(100_000, 2);
    let (up, down) = soon(async {
        tokio::join!(
            async {
                send(&mut client, &rest, 7_000).await;
                receive(&mut client).await
            },
            async {
                upstream.write_all(b"world").await.unwrap();
                let received = receive(&mut upstream).await;
                upstream.shutdown().await.unwrap();
                received
            }
        )
    })
    .await;
    assert_eq!(up, b"hello world");
    assert!(down == [early.up, rest].concat());
    assert_eq!(soon(splice).await.unwrap(), Spliced { up: 120_000, down: 11, end: SpliceEnd::Finished });
}

/// One after the other and at the same time, over buffers that are full of what earlier ones have sent.
#[tokio::test]
async fn connections_that_share_a_pool_see_nothing_of_each_other() {
    let pool = BufferPool::new("test");
    let wanted = pool.want(1 << 20);
    let connection = async |seed: u64| {
        let (client, front) = tcp_pair(V4).await;
        let (back, upstream) = tcp_pair(V4).await;
        let (drain, buffers) = (Drain::new(), wanted.buffers());
        let splice = tokio::spawn(async move {
            let (front, back) = (Stream::from(front), Stream::from(back));
            let counters = ByteCounters::new("test", "a");
            splice_after(Early::default(), front, back, PATIENT, &buffers, &drain, &counters).await
        });
        let (up, down) =
            (noise(1 + 70_001 * seed as usize, seed), noise(123_456 / (1 + seed as usize), !seed));
        let (to_upstream, to_client) = (client.into_split(), upstream.into_split());
        let traffic = async {
            tokio::join!(
                send(to_upstream.1, &up, 10_000),
                send(to_client.1, &down, 3_000),
                receive(to_upstream.0),
                receive(to_client.0)
            )
        };
        let ((), (), got_down, got_up) = soon(traffic).await;
        assert!(got_up == up && got_down == down, "other bytes arrived");
        assert_eq!(soon(splice).await.unwrap().end, SpliceEnd::Finished);
    };
    for round in 0..4 {
        tokio::join!(connection(round), connection(round + 1), connection(7 - round));
        assert!(pool.kept() > 0, "buffers came back");
    }
    drop(wanted);
    assert_eq!(pool.kept(), 0);
}
