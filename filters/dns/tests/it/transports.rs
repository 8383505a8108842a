//! The ways to a server: TCP, TLS, HTTPS and QUIC.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::secure::Secure;
use crate::support::{Does, Server, Sidecar, addresses, patient_key, query, until};

const ENCRYPTED: [&str; 3] = ["tls", "https", "quic"];

/// Settings for servers as the configuration names them, with an authority.
fn settings(servers: &[String], authority: Option<&Secure>) -> String {
    let key = patient_key(servers);
    let file = authority.map(|server| format!(r#", "ca_file": {:?}}}"#, server.ca_file()));
    format!("{{{}}}", file.map_or(key.clone(), |file| format!("{}{file}", key.strip_suffix('}').unwrap())))
}

async fn code(sidecar: &Sidecar, name: &str) -> ResponseCode {
    sidecar.udp(&query(name, RecordType::A)).await.metadata.response_code
}

async fn works(sidecar: &Sidecar, name: &str) {
    let reply = sidecar.udp(&query(name, RecordType::A)).await;
    assert_eq!(addresses(&reply).len(), 1, "{reply}");
}

#[tokio::test]
async fn every_encrypted_transport_carries_many_queries_on_one_connection() {
    for scheme in ENCRYPTED {
        let server = Secure::start(scheme, Does::Answer(1)).await;
        let sidecar = Sidecar::with(&settings(&[server.named()], Some(&server))).await;
        works(&sidecar, "first.example.").await;
        let names: Vec<_> = (0..50).map(|i| format!("n{i}.example.")).collect();
        join_all(names.iter().map(|name| works(&sidecar, name))).await;
        assert_eq!((server.connections(), server.asked()), (1, 51), "{scheme}");
        let status = sidecar.servers().remove(0);
        assert_eq!((status.protocol, status.connections, status.healthy), (scheme, 1, true));
        assert_eq!((status.answers, status.server), (51, server.named()));
        // The padding of RFC 8467, and the id of RFC 8484 and RFC 9250.
        for message in server.messages() {
            assert_eq!(message.len() % 128, 0, "{scheme}");
            assert_eq!(message[..2], [0, 0], "{scheme}");
        }
        assert_eq!(server.last().edns.unwrap().max_payload(), 1232);
    }
}

#[tokio::test]
async fn the_bytes_of_a_reply_are_what_the_server_sent() {
    let mut replies = Vec::new();
    let udp = Server::start(Does::Answer(3)).await;
    let plain = [udp.addr.to_string(), format!("tcp://{}", udp.addr)];
    for server in plain {
        let sidecar = Sidecar::with(&settings(&[server], None)).await;
        replies.push(sidecar.udp_bytes(&wire()).await);
    }
    for scheme in ENCRYPTED {
        let server = Secure::start(scheme, Does::Answer(3)).await;
        let sidecar = Sidecar::with(&settings(&[server.named()], Some(&server))).await;
        replies.push(sidecar.udp_bytes(&wire()).await);
    }
    assert!(replies.iter().all(|reply| *reply == replies[0]));
}

fn wire() -> Vec<u8> {
    let mut ask = query("www.example.", RecordType::AAAA);
    ask.metadata.id = 7;
    ask.to_vec().unwrap()
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_is_not_believed() {
    for scheme in ENCRYPTED {
        let server = Secure::start(scheme, Does::Answer(1)).await;
        let stranger = Secure::start(scheme, Does::Answer(1)).await;
        let refused = Sidecar::with(&settings(&[stranger.named()], Some(&server))).await;
        assert_eq!(code(&refused, "www.example.").await, ResponseCode::ServFail, "{scheme}");
        assert!(
            refused.servers()[0].last_failure.as_ref().unwrap().starts_with("TLS: "),
            "{:?}",
            refused.servers()
        );
        let other_name = server.named().replace("dns.test", "other.test");
        let refused = Sidecar::with(&settings(&[other_name], Some(&server))).await;
        assert_eq!(code(&refused, "www.example.").await, ResponseCode::ServFail, "{scheme}");
        assert_eq!(server.asked() + stranger.asked(), 0, "not one query was sent");
        // With one that is who it should be, nobody notices.
        let sidecar = Sidecar::with(&settings(&[stranger.named(), server.named()], Some(&server))).await;
        works(&sidecar, "www.example.").await;
    }
}

#[tokio::test]
async fn what_is_no_dns_over_https_is_passed_over() {
    let broken = Secure::with("https", Does::Answer(1), "dns.test", 503).await;
    let good = Server::start(Does::Answer(1)).await;
    let servers = [broken.named(), good.addr.to_string()];
    let sidecar = Sidecar::with(&settings(&servers, Some(&broken))).await;
    works(&sidecar, "www.example.").await;
    assert_eq!((broken.asked(), good.asked().0), (1, 1));
    let why = sidecar.servers().remove(0).last_failure.unwrap();
    assert_eq!(why, "HTTP: status 503 Service Unavailable");
}

#[tokio::test]
async fn tcp_is_pooled_pipelined_and_out_of_order() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&settings(&[format!("tcp://{}", server.addr)], None)).await;
    works(&sidecar, "first.example.").await;
    server.now(Does::Late(Duration::from_millis(300)));
    let slow = join_all((0..20).map(|_| works(&sidecar, "slow.example.")));
    let quick = async {
        until("all the slow ones are asked", || server.asked().1 == 21).await;
        server.now(Does::Answer(1));
        works(&sidecar, "quick.example.").await;
    };
    tokio::join!(slow, quick);
    assert_eq!((server.connections(), server.asked()), (1, (0, 22)));
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_at_once() {
    let server = Server::start(Does::Answer(1)).await;
    let silent = Server::start(Does::Answer(1)).await;
    let servers = [format!("tcp://{}", server.addr), silent.addr.to_string()];
    let sidecar = Sidecar::with(&settings(&servers, None)).await;
    works(&sidecar, "first.example.").await;
    // In the middle of a reply: the query is asked again on a new connection, and only when that breaks off as well of another server.
    server.now(Does::HalfReply);
    works(&sidecar, "second.example.").await;
    assert_eq!((server.connections(), server.asked().1, silent.asked().0), (2, 3, 1));
    server.now(Does::Answer(1));
    silent.now(Does::Nothing);
    works(&sidecar, "third.example.").await;
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn queries_in_a_pipeline_survive_the_server() {
    let (dying, good) = (Server::start(Does::Answer(1)).await, Server::start(Does::Answer(1)).await);
    let servers = [format!("tcp://{}", dying.addr), good.addr.to_string()];
    let sidecar = Sidecar::with(&settings(&servers, None)).await;
    works(&sidecar, "first.example.").await;
    dying.now(Does::Nothing);
    let start = Instant::now();
    let asks = join_all((0..60).map(|_| works(&sidecar, "www.example.")));
    let death = async {
        until("all are asked", || dying.asked().1 == 61).await;
        drop(dying);
    };
    tokio::join!(asks, death);
    assert_eq!(good.asked().0, 60);
    assert!(start.elapsed() < Duration::from_secs(1), "nobody waits for the dead one: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_connection_that_says_nothing_more_is_replaced() {
    for scheme in ["tcp", "tls", "https", "quic"] {
        let secure = Secure::start(if scheme == "tcp" { "tls" } else { scheme }, Does::Answer(1)).await;
        let plain = Server::start(Does::Answer(1)).await;
        let name = if scheme == "tcp" { format!("tcp://{}", plain.addr) } else { secure.named() };
        // Asked again after 100 ms, long before the query's time is over.
        let settings = settings(&[name], Some(&secure)).replace("1s", "50ms");
        let sidecar = Sidecar::with(&settings).await;
        works(&sidecar, "first.example.").await;
        plain.now(Does::NothingOnce);
        secure.now(Does::Nothing);
        let asked = (plain.asked().1, secure.asked());
        let back = async {
            until("it is asked", || (plain.asked().1, secure.asked()) != asked).await;
            secure.now(Does::Answer(1));
        };
        tokio::join!(works(&sidecar, "second.example."), back);
        let connections = if scheme == "tcp" { plain.connections() } else { secure.connections() };
        assert_eq!(connections, 2, "{scheme}");
    }
}

#[tokio::test]
async fn a_reload_keeps_the_connections_of_those_that_stay_and_closes_the_others() {
    let (stays, goes) = (Server::start(Does::Answer(1)).await, Server::start(Does::Answer(1)).await);
    let (stays_name, goes_name) = (format!("tcp://{}", stays.addr), format!("tcp://{}", goes.addr));
    let both = settings(&[goes_name.clone(), stays_name.clone()], None);
    let sidecar = Sidecar::with(&both).await;
    works(&sidecar, "www.example.").await;
    sidecar.refilter(&settings(&[stays_name.clone(), goes_name.clone()], None));
    works(&sidecar, "www.example.").await;
    assert_eq!((stays.connections(), goes.connections()), (1, 1));
    sidecar.refilter(&settings(std::slice::from_ref(&stays_name), None));
    until("the connection of the one that goes is closed", || goes.open() == 0).await;
    works(&sidecar, "www.example.").await;
    assert_eq!((stays.connections(), stays.open()), (1, 1));
    let status = sidecar.servers();
    assert_eq!((status.len(), status[0].answers), (1, 2), "what is known of it stays known");
}
