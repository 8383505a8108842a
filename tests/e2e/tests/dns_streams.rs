//! DNS over TCP as RFC 7766 wants it: many queries on a connection, replies as they come, and any way of writing them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use qudag_e2e::odd_names::OddNames;
use qudag_kit::dns_wire::{Ask, View, rcode, rtype};
use qudag_kit::{TestSidecar, dns, needs_program, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

fn frame(ask: &Ask) -> Vec<u8> {
    let message = ask.bytes();
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], &message].concat()
}

async fn connect(door: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(door).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn reply(stream: &mut TcpStream) -> View {
    let read = async {
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        reply
    };
    View::read(&within(dns::TIMEOUT, "a reply by TCP", read).await).unwrap()
}

/// RFC 7766 section 6.2.1.1: queries are pipelined, and every one is answered.
#[tokio::test]
async fn three_hundred_queries_in_one_write_are_all_answered() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        let mut stream = connect(door).await;
        let asks: Vec<_> =
            (0..300).map(|id| Ask { id, ..Ask::new(&format!("p{id}.wild.odd.test."), rtype::A) }).collect();
        let all: Vec<u8> = asks.iter().flat_map(frame).collect();
        // More queries than may be under way at a time: the rest is read when some are answered.
        let (mut read, mut write) = stream.split();
        let answered = async {
            let mut ids = BTreeSet::new();
            for _ in &asks {
                let mut reply = vec![0; usize::from(read.read_u16().await.unwrap())];
                read.read_exact(&mut reply).await.unwrap();
                let reply = View::read(&reply).unwrap();
                assert_eq!(reply.data(rtype::A), [[192, 0, 2, 77]]);
                assert_eq!(
                    reply.question,
                    asks[usize::from(reply.id)].question(),
                    "a reply to another query"
                );
                ids.insert(reply.id);
            }
            ids
        };
        let (ids, written) = within(Duration::from_secs(20), "all replies", async {
            tokio::join!(answered, write.write_all(&all))
        })
        .await;
        written.unwrap();
        assert_eq!(ids.len(), asks.len());
    }
}

/// RFC 7766 sections 6.2.1.1 and 7: a reply does not wait for those to earlier queries.
#[tokio::test]
async fn a_slow_query_does_not_hold_up_those_behind_it() {
    // A server that is there and says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.50 known.test\n").unwrap();
    let yaml = format!(
        "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    hosts: {{ enabled: true, file: \
         \"{}\" }}\n    dns_upstream: {{ servers: [\"{}\"] }}\n",
        hosts.display(),
        silent.local_addr().unwrap()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let mut stream = connect(sidecar.listener("dns").await).await;
    let slow = Ask { id: 1, ..Ask::new("slow.test.", rtype::A) };
    let quick = Ask { id: 2, ..Ask::new("known.test.", rtype::A) };
    stream.write_all(&[frame(&slow), frame(&quick)].concat()).await.unwrap();
    let first = reply(&mut stream).await;
    assert_eq!((first.id, first.data(rtype::A)), (2, vec![&[192, 0, 2, 50][..]]));
    let second = reply(&mut stream).await;
    assert_eq!((second.id, second.rcode()), (1, rcode::SERVFAIL));
}

/// RFC 7766 section 8: a message may come in any number of segments, and a segment may hold any number of messages.
#[tokio::test]
async fn queries_may_come_byte_by_byte_and_several_at_once() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        let mut stream = connect(door).await;
        let ask = |id| Ask { id, ..Ask::new("a.odd.test.", rtype::A) };
        for byte in frame(&ask(1)) {
            stream.write_all(&[byte]).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(reply(&mut stream).await.id, 1);
        // Two messages and a half, then the rest: cut at every place, the length included.
        for cut in 1..frame(&ask(4)).len() {
            let (two, third) = ([frame(&ask(2)), frame(&ask(3))].concat(), frame(&ask(4)));
            stream.write_all(&[&two[..], &third[..cut]].concat()).await.unwrap();
            let ids = BTreeSet::from([reply(&mut stream).await.id, reply(&mut stream).await.id]);
            assert_eq!(ids, BTreeSet::from([2, 3]), "cut at {cut}");
            stream.write_all(&third[cut..]).await.unwrap();
            assert_eq!(reply(&mut stream).await.id, 4, "cut at {cut}");
        }
    }
}

/// RFC 7766 section 6.2.4: what was asked before the client closed its side is answered.
#[tokio::test]
async fn a_client_that_has_asked_everything_may_close_its_side() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        let mut stream = connect(door).await;
        let asks: Vec<_> =
            (0..20).map(|id| Ask { id, ..Ask::new(&format!("h{id}.wild.odd.test."), rtype::A) }).collect();
        stream.write_all(&asks.iter().flat_map(frame).collect::<Vec<_>>()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut ids = BTreeSet::new();
        for _ in &asks {
            ids.insert(reply(&mut stream).await.id);
        }
        assert_eq!(ids.len(), asks.len());
        assert_eq!(within(dns::TIMEOUT, "the end", stream.read(&mut [0])).await.unwrap(), 0);
    }
}

/// RFC 7766 section 6.2.3: an idle connection is closed by us, and one on which queries come is not.
#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    let yaml = format!(
        "listeners: {{ dns: {{ bind: \"127.0.0.1:0\", tcp_idle: 1s }} }}\nfilters:\n  dns:\n    dns_upstream: {{ \
         servers: [\"{}\"] }}\n",
        odd.knot.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let mut stream = connect(sidecar.listener("dns").await).await;
    let start = std::time::Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    while start.elapsed() < Duration::from_secs(3) {
        pace.tick().await;
        stream.write_all(&frame(&Ask::new("a.odd.test.", rtype::A))).await.unwrap();
        assert_eq!(reply(&mut stream).await.rcode(), rcode::NOERROR);
    }
    let idle = std::time::Instant::now();
    let end = within(Duration::from_secs(10), "the sidecar hangs up", stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(idle.elapsed() >= Duration::from_millis(500), "after only {:?}", idle.elapsed());
}

/// RFC 1035 section 4.2.2: a message without a single byte is none.
#[tokio::test]
async fn an_empty_message_ends_the_connection_and_nothing_else() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        let mut other = connect(door).await;
        let mut stream = connect(door).await;
        stream.write_all(&[0, 0]).await.unwrap();
        let end = within(dns::TIMEOUT, "the end", stream.read(&mut [0])).await;
        assert!(!matches!(end, Ok(1..)), "{end:?}");
        other.write_all(&frame(&Ask::new("a.odd.test.", rtype::A))).await.unwrap();
        assert_eq!(reply(&mut other).await.rcode(), rcode::NOERROR);
    }
}
