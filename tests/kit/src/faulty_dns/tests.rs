use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use super::*;
use crate::dns::{addresses, ask, ask_tcp, exchange_tcp, exchange_udp, question};

#[tokio::test]
async fn names_say_what_they_have() {
    let server = FaultyDns::start();
    let at = server.addr();
    let answer = ask(at, "Some.Name.test.", RecordType::A).await.unwrap();
    assert_eq!(addresses(&answer), [IpAddr::from(address_of("some.name.test", 0))]);
    assert_eq!(answer.answers[0].ttl, 300);
    let answer = ask(at, "some.name.test.", RecordType::AAAA).await.unwrap();
    assert_eq!(addresses(&answer), [IpAddr::from(address_v6_of("some.name.test", 0))]);

    let answer = ask_tcp(at, "many50-x.test.", RecordType::A).await.unwrap();
    let mut all = addresses(&answer);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 50);
    let answer = ask(at, "many50-x.test.", RecordType::A).await.unwrap();
    assert!(answer.metadata.truncation && answer.answers.is_empty(), "800 bytes do not fit 512");

    let answer = ask_tcp(at, "txt60000-x.test.", RecordType::TXT).await.unwrap();
    let RData::TXT(text) = &answer.answers[0].data else { panic!("{answer}") };
    assert_eq!(text.txt_data.iter().map(|part| part.len()).sum::<usize>(), 60_000);

    let answer = ask_tcp(at, "chain9-x.test.", RecordType::A).await.unwrap();
    assert_eq!(answer.answers.len(), 10);
    assert_eq!(answer.answers[9].name.to_string(), "chain0-x.test.");
    assert_eq!(addresses(&answer), [IpAddr::from(address_of("chain0-x.test", 0))]);

    let answer = ask(at, "nx-x.test.", RecordType::A).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(answer.authorities[0].name.to_string(), "test.");
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    let answer = ask(at, "nodata-x.test.", RecordType::A).await.unwrap();
    assert_eq!((answer.metadata.response_code, answer.authorities.len()), (ResponseCode::NoError, 1));
    let answer = ask(at, ".", RecordType::NS).await.unwrap();
    assert_eq!(answer.authorities[0].name.to_string(), ".");
    let answer = ask(at, "x.test.", RecordType::Unknown(65_400)).await.unwrap();
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn queries_are_counted_and_answers_change() {
    let server = FaultyDns::start();
    server.set_ttl(5);
    server.set_epoch(7);
    let answer = ask(server.addr(), "a.test.", RecordType::A).await.unwrap();
    assert_eq!((answer.answers[0].ttl, addresses(&answer)[0]), (5, address_of("A.test.", 7).into()));
    ask_tcp(server.addr(), "A.test.", RecordType::A).await.unwrap();
    assert_eq!(server.queries("a.TEST", RecordType::A), 2);
    assert_eq!(server.queries("a.test.", RecordType::AAAA), 0);
    assert_eq!((server.udp_total(), server.tcp_total()), (1, 1));
    server.forget();
    assert_eq!(server.total() + server.queries("a.test", RecordType::A), 0);
}

#[tokio::test]
async fn it_misbehaves_as_told() {
    let server = FaultyDns::start();
    let at = server.addr();
    let query = question("a.test.", RecordType::A).to_vec().unwrap();
    for (behaviour, code) in [
        (Behaviour::ServFail, ResponseCode::ServFail),
        (Behaviour::Refused, ResponseCode::Refused),
        (Behaviour::NotImp, ResponseCode::NotImp),
    ] {
        server.behave(behaviour);
        assert_eq!(ask(at, "a.test.", RecordType::A).await.unwrap().metadata.response_code, code);
        assert_eq!(ask_tcp(at, "a.test.", RecordType::A).await.unwrap().metadata.response_code, code);
    }
    server.behave(Behaviour::FormErr);
    assert_eq!(exchange_udp(at, &query).await.unwrap().len(), 12);
    server.behave(Behaviour::WrongId);
    assert_ne!(exchange_udp(at, &query).await.unwrap()[..2], query[..2]);
    server.behave(Behaviour::WrongName);
    assert!(ask(at, "a.test.", RecordType::A).await.is_err());
    server.behave(Behaviour::Garbage);
    assert!(ask_tcp(at, "a.test.", RecordType::A).await.is_err());
    server.behave(Behaviour::Truncate);
    assert!(ask(at, "a.test.", RecordType::A).await.unwrap().metadata.truncation);
    assert!(!ask_tcp(at, "a.test.", RecordType::A).await.unwrap().metadata.truncation);
    server.behave(Behaviour::Delay(Duration::from_millis(60)));
    for tcp in [false, true] {
        let start = Instant::now();
        let reply = if tcp { exchange_tcp(at, &query).await } else { exchange_udp(at, &query).await };
        assert!(reply.is_ok() && start.elapsed() >= Duration::from_millis(60));
    }
}

/// How many of so many queries, sent at once, get an answer.
async fn answered(at: SocketAddr, queries: u16) -> u16 {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    for id in 0..queries {
        let mut query = question("a.test.", RecordType::A);
        query.metadata.id = id;
        socket.send(&query.to_vec().unwrap()).await.unwrap();
    }
    let mut answered = 0;
    let mut room = [0; 512];
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut room)).await {
        answered += 1;
    }
    answered
}

#[tokio::test]
async fn silence_comes_in_parts() {
    let server = FaultyDns::start();
    server.behave(Behaviour::BlackHole);
    assert_eq!(answered(server.addr(), 20).await, 0);
    assert_eq!(server.total(), 20);
    server.behave(Behaviour::Loss(30));
    let answered_of_400 = answered(server.addr(), 400).await;
    assert!((220..=340).contains(&answered_of_400), "{answered_of_400} of 400 are not about 280");
    server.behave(Behaviour::Flap { period: Duration::from_secs(600) });
    assert_eq!(answered(server.addr(), 20).await, 20);
    server.behave(Behaviour::Flap { period: Duration::from_nanos(1) });
    let flapping = answered(server.addr(), 400).await;
    assert!((1..400).contains(&flapping), "{flapping} of 400");
}

#[tokio::test]
async fn it_can_be_gone_and_come_back() {
    let server = FaultyDns::start();
    let at = server.addr();
    ask_tcp(at, "a.test.", RecordType::A).await.unwrap();
    let mut open = TcpStream::connect(at).unwrap();
    crate::eventually(crate::wait::PATIENCE, "a connection", async || {
        (server.connections() == 1).then_some(())
    })
    .await;
    drop(server);
    assert_eq!(std::io::Read::read(&mut open, &mut [0]).unwrap_or(0), 0, "the connection ended");
    assert!(TcpStream::connect(at).is_err());
    let server = FaultyDns::start_at(at);
    ask(at, "a.test.", RecordType::A).await.unwrap();
    assert_eq!(server.total(), 1);
}
