//! Bytes that nobody should send: every listener survives them and goes on serving.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_e2e::compare::{dns_answers, rpc_replies};
use qudag_e2e::world::Doors;
use qudag_e2e::{Filters, World};
use qudag_kit::rpc::Server;
use qudag_kit::{Postgres, http, needs_node, needs_program, peer, postgres, skip};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// A small generator of bytes, the same ones in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        let length = self.next() as usize % (longest + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Beginnings of every protocol, wrong in every way that has hurt somebody.
fn garbage() -> Vec<Vec<u8>> {
    let mut noise = Noise(0x5eed);
    let mut all: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0; 4096],
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"
            .to_vec(),
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\x16\x03\x01\xff\xff\x01".to_vec(),
        b"\xff\xff\xff\xff{}".to_vec(),
        b"\x00\x00\x00\x00".to_vec(),
        b"\x00\x00\x00\x02[]".to_vec(),
        b"\x00\x00\x00\x04null".to_vec(),
        b"\x00\x00\x00\x09{\"id\": 1}".to_vec(),
        [&b"\x00\x00\x10\x00"[..], &b"[".repeat(4096)].concat(),
        // PostgreSQL: lengths that lie, a cancel request that is cut, protocol 2, a start-up packet without an end.
        b"\x00\x00\x00\x03".to_vec(),
        b"\x7f\xff\xff\xff\x00\x03\x00\x00".to_vec(),
        b"\x00\x00\x00\x10\x04\xd2\x16\x2e\x00".to_vec(),
        b"\x00\x00\x00\x08\x00\x02\x00\x00".to_vec(),
        b"\x00\x00\x00\x10\x00\x03\x00\x00user\x00abc".to_vec(),
        // DNS over TCP: length 0, a pointer to itself, counts without records.
        b"\x00\x00".to_vec(),
        b"\x00\x12\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01".to_vec(),
        b"\x00\x0c\x00\x01\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
    ];
    all.extend((0..60).map(|_| noise.bytes(700)));
    all
}

async fn throw_at_stream(door: SocketAddr, bytes: &[u8], half_close: bool) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    let _ = stream.write_all(bytes).await;
    if half_close {
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read_to_end(&mut rest)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_survives_garbage() {
    needs_node!();
    needs_program!("unbound");
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let world = World::with_postgres().await;
    let mut sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    let db = sidecar.listener("db").await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in garbage() {
        udp.send_to(&bytes, doors.dns).await.unwrap();
        // Over TCP the first two bytes are a length.
        udp.send_to(bytes.get(2..).unwrap_or_default(), doors.dns).await.unwrap();
        let streams =
            [doors.dns, doors.rpc, doors.http, db, doors.outbound, doors.inbound, sidecar.admin_addr()];
        let mut thrown = JoinSet::new();
        for door in streams {
            let bytes = bytes.clone();
            thrown.spawn(async move {
                throw_at_stream(door, &bytes, true).await;
                throw_at_stream(door, &bytes, false).await;
            });
        }
        while thrown.join_next().await.is_some() {}
    }
    assert!(sidecar.program().ended().is_none(), "the sidecar ended");
    assert!(!sidecar.log().contains("panicked"), "the sidecar panicked");
    // Breakers may be open because garbage made the servers hang up; that ends by itself.
    assert_eq!(dns_answers(doors.dns).await, dns_answers(world.unbound.addr()).await);
    let health = async || http::get(doors.http, "/health").await.ok().filter(|reply| reply.status == 200);
    qudag_kit::eventually(Duration::from_secs(10), "HTTP serves", health).await;
    let served = async || {
        let replies = rpc_replies(&Server::Tcp(doors.rpc)).await;
        replies[0].1["error"].is_null().then_some(())
    };
    qudag_kit::eventually(Duration::from_secs(10), "RPC serves", served).await;
    let served = async || (postgres::psql(db, &["-Atc", "select 1"]).await.code == 0).then_some(());
    qudag_kit::eventually(Duration::from_secs(10), "PostgreSQL serves", served).await;
    for door in [doors.outbound, doors.inbound] {
        peer::echo(door, 10_000).await.unwrap();
    }
    sidecar.status().await;
}
