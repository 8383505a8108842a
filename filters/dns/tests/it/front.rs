//! The listener.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use qudag_filter_api::ConfigPath;
use qudag_filter_common::ListenerSpec;
use qudag_filter_dns::DnsListener;
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;

use crate::support::{
    Does, Server, Sidecar, TcpClient, addresses, exchange, extended_error, query, until, upstream_settings,
    with_edns,
};

#[tokio::test]
async fn udp_and_tcp_answer_alike_on_one_port_over_both_families() {
    let server = Server::start(Does::Answer(2)).await;
    for bind in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        let listener = format!(r#"{{"bind": "{bind}"}}"#);
        let sidecar = Sidecar::start(&listener, &upstream_settings(&[&server])).await;
        let ask = query("WwW.Example.", RecordType::AAAA);
        let (udp, tcp) = (sidecar.udp(&ask).await, sidecar.tcp(&ask).await);
        assert_eq!(udp, tcp);
        assert_eq!((udp.metadata.id, udp.answers.len()), (ask.metadata.id, 2));
        assert!(udp.queries[0].name().eq_case(ask.queries[0].name()));
        assert!(udp.metadata.recursion_available && udp.edns.is_none());
        let reply = sidecar.udp(&with_edns(ask, 4096)).await;
        assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    }
}

#[tokio::test]
async fn a_reply_comes_from_the_address_that_was_asked() {
    let server = Server::start(Does::Answer(1)).await;
    let ask = query("www.example.", RecordType::A).to_vec().unwrap();
    for (bind, asked) in
        [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "127.0.0.3"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.1")]
    {
        let listener = format!(r#"{{"bind": "{bind}"}}"#);
        let sidecar = Sidecar::start(&listener, &upstream_settings(&[&server])).await;
        let to = SocketAddr::new(asked.parse().unwrap(), sidecar.addr.port());
        assert!(!exchange(to, &ask).await.is_empty(), "{bind} {asked}");
    }
}

#[tokio::test]
async fn replies_fit_what_the_client_takes() {
    let server = Server::start(Does::Truncated(60)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let ask = query("www.example.", RecordType::A);
    let sizes = async |size: Option<u16>| {
        let ask = size.map_or(ask.clone(), |size| with_edns(ask.clone(), size));
        let reply = sidecar.udp(&ask).await;
        (reply.metadata.truncation, reply.answers.len(), reply.edns.is_some())
    };
    // 60 addresses are 989 bytes, and 11 of EDNS.
    assert_eq!(sizes(None).await, (true, 0, false));
    assert_eq!(sizes(Some(100)).await, (true, 0, true), "less than 512 is 512");
    assert_eq!(sizes(Some(999)).await, (true, 0, true));
    assert_eq!(sizes(Some(1000)).await, (false, 60, true));
    server.now(Does::Truncated(80));
    assert_eq!(sizes(Some(4096)).await, (true, 0, true), "ours is 1232");
    assert_eq!(sidecar.tcp(&ask).await.answers.len(), 80);
    let larger = DnsListener { max_udp_reply: 1400, ..DnsListener::default() };
    sidecar.reload(&larger, &upstream_settings(&[&server]));
    assert_eq!(sizes(Some(4096)).await, (false, 80, true), "a reload applies at once");
}

#[tokio::test]
async fn garbage_is_refused_or_dropped_and_harms_nobody() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let good = query("www.example.", RecordType::A).to_vec().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(sidecar.addr).await.unwrap();
    let mut response = good.clone();
    response[2] |= 0x80;
    for dropped in [&b""[..], b"x", &good[..11], &response] {
        client.send(dropped).await.unwrap();
    }
    client.send(&good).await.unwrap();
    let mut reply = [0; 512];
    let length = client.recv(&mut reply).await.unwrap();
    assert_eq!(reply[..2], good[..2]);
    assert!(length > good.len(), "the first reply is to the only query");

    let code = async |change: &dyn Fn(&mut Vec<u8>)| {
        let mut wire = good.clone();
        change(&mut wire);
        sidecar.udp_bytes(&wire).await[3] & 0xf
    };
    assert_eq!(code(&|wire| wire.truncate(15)).await, 1);
    assert_eq!(code(&|wire| wire[5] = 2).await, 1);
    assert_eq!(code(&|wire| wire[2] |= 5 << 3).await, 4);
    let mut newer = with_edns(query("www.example.", RecordType::A), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    let reply = sidecar.udp(&newer).await;
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    let mut notify = query("www.example.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(sidecar.udp(&notify).await.metadata.response_code, ResponseCode::NotImp);
    assert_eq!(server.asked().0, 1);

    let any = sidecar.udp(&query("www.example.", RecordType::ANY)).await;
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
    assert_eq!(server.asked().0, 1);
}

#[tokio::test]
async fn replies_on_a_connection_come_as_they_are_ready() {
    let (late, quick) =
        (Server::start(Does::Late(Duration::from_millis(150))).await, Server::start(Does::Answer(1)).await);
    let sidecar = Sidecar::to(&[&late]).await;
    let mut client = TcpClient::connect(sidecar.addr).await;
    let (first, second) = (query("a.example.", RecordType::A), query("b.example.", RecordType::A));
    client.send(&first.to_vec().unwrap()).await;
    until("the first is under way", || late.asked().0 == 1).await;
    sidecar.refilter(&upstream_settings(&[&quick]));
    client.send(&second.to_vec().unwrap()).await;
    assert_eq!(client.receive().await.unwrap()[..2], second.metadata.id.to_be_bytes());
    assert_eq!(client.receive().await.unwrap()[..2], first.metadata.id.to_be_bytes());

    // Many in one piece, then the client's end: all are answered, then the connection ends.
    let mut burst = Vec::new();
    for i in 0..500_u16 {
        let mut ask = query("www.example.", RecordType::A);
        ask.metadata.id = i;
        let wire = ask.to_vec().unwrap();
        burst.extend((wire.len() as u16).to_be_bytes());
        burst.extend(wire);
    }
    client.0.write_all(&burst).await.unwrap();
    client.0.shutdown().await.unwrap();
    let mut ids = Vec::new();
    while let Some(reply) = client.receive().await {
        ids.push(u16::from_be_bytes([reply[0], reply[1]]));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn idle_slow_and_senseless_connections_end() {
    let server = Server::start(Does::Answer(1)).await;
    let listener = r#"{"bind": "127.0.0.1:0", "tcp_idle": "100ms", "max_tcp_connections": 2}"#;
    let sidecar = Sidecar::start(listener, &upstream_settings(&[&server])).await;
    let wire = query("www.example.", RecordType::A).to_vec().unwrap();

    let mut idle = TcpClient::connect(sidecar.addr).await;
    let mut partial = TcpClient::connect(sidecar.addr).await;
    idle.send(&wire).await;
    assert!(idle.receive().await.is_some());
    partial.0.write_all(b"\0").await.unwrap();
    let mut third = TcpClient::connect(sidecar.addr).await;
    assert!(third.receive().await.is_none(), "no place");
    let start = Instant::now();
    assert!(idle.receive().await.is_none() && partial.receive().await.is_none());
    assert!(start.elapsed() < Duration::from_secs(2));

    let mut again = TcpClient::connect(sidecar.addr).await;
    again.send(b"garbage").await;
    assert!(again.receive().await.is_none());
    // Bytes trickle, but no message is ever complete.
    let mut slow = TcpClient::connect(sidecar.addr).await;
    let start = Instant::now();
    while slow.0.write_all(b"\x01").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(start.elapsed() < Duration::from_secs(5), "it is never cut off");
    }
}

#[tokio::test]
async fn too_many_queries_at_once_are_refused() {
    let server = Server::start(Does::Late(Duration::from_millis(150))).await;
    let listener = r#"{"bind": "127.0.0.1:0", "max_in_flight": 1}"#;
    let sidecar = Sidecar::start(listener, &upstream_settings(&[&server])).await;
    let ask = with_edns(query("www.example.", RecordType::A), 1232);
    let (first, second) = tokio::join!(sidecar.udp(&ask), async {
        until("the first is under way", || server.asked().0 == 1).await;
        sidecar.udp(&ask).await
    });
    assert_eq!(first.metadata.response_code, ResponseCode::NoError);
    assert_eq!((second.metadata.response_code, extended_error(&second)), (ResponseCode::ServFail, Some(0)));
}

#[tokio::test]
async fn without_dns_in_the_configuration_queries_are_refused() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    sidecar.stop_serving();
    let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let mut client = TcpClient::connect(sidecar.addr).await;
    assert!(client.receive().await.is_none());
}

#[tokio::test]
async fn a_drain_finishes_what_was_asked() {
    let server = Server::start(Does::Late(Duration::from_millis(150))).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let ask = query("www.example.", RecordType::A);
    let mut idle = TcpClient::connect(sidecar.addr).await;
    let (udp, tcp, ()) = tokio::join!(sidecar.udp(&ask), sidecar.tcp(&ask), async {
        until("both are under way", || server.asked().0 == 2).await;
        assert_eq!(sidecar.drain.finish(Duration::from_secs(5)).await, 0);
    });
    assert_eq!((addresses(&udp).len(), addresses(&tcp).len()), (1, 1));
    assert!(idle.receive().await.is_none());
    // The port is free again.
    drop(UdpSocket::bind(sidecar.addr).await.unwrap());
}

#[tokio::test]
async fn a_drain_takes_what_has_arrived() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(sidecar.addr).unwrap();
    let ask = query("www.example.", RecordType::A).to_vec().unwrap();
    for _ in 0..50 {
        client.send(&ask).unwrap();
    }
    // On this one thread the listener has not run since.
    sidecar.drain.stop();
    client.set_nonblocking(true).unwrap();
    let client = UdpSocket::from_std(client).unwrap();
    let mut reply = [0; 512];
    for _ in 0..50 {
        let received = tokio::time::timeout(Duration::from_secs(10), client.recv(&mut reply)).await;
        received.expect("no reply").unwrap();
    }
}

#[test]
fn listener_settings_out_of_range_are_refused_with_a_hint() {
    let check = |text: &str| {
        let listener: DnsListener = serde_json::from_str(text).unwrap();
        let errors = listener.check(&ConfigPath::root());
        assert!(errors.iter().all(|error| error.hint.is_some()));
        errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
    };
    assert!(check("{}").is_empty());
    assert_eq!(check(r#"{"max_udp_reply": 4096}"#), ["max_udp_reply"]);
    assert_eq!(
        check(r#"{"tcp_idle": "0s", "max_in_flight": 0, "max_tcp_connections": 0}"#),
        ["tcp_idle", "max_tcp_connections", "max_in_flight"]
    );
}
