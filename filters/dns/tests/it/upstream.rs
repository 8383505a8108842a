//! Failing over from one server to the next.

use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsOption;
use qudag_filter_common::ListenerSpec;
use qudag_filter_dns::{DnsFilters, DnsListener};

use crate::support::{
    Does, Server, Sidecar, addresses, env, extended_error, impatient_settings, patient_key, query,
    upstream_settings, with_edns,
};

async fn works(sidecar: &Sidecar) {
    let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(addresses(&reply), ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test]
async fn whatever_one_server_does_the_next_one_answers() {
    for does in [
        Does::Code(ResponseCode::ServFail),
        Does::Code(ResponseCode::Refused),
        Does::Code(ResponseCode::FormErr),
        Does::Code(ResponseCode::NotImp),
        Does::Code(ResponseCode::NotAuth),
        Does::Nothing,
        Does::WrongId,
        Does::WrongName,
        Does::TruncatedAlways,
    ] {
        let (bad, good) = (Server::start(does).await, Server::start(Does::Answer(1)).await);
        let sidecar = Sidecar::to(&[&bad, &good]).await;
        let start = Instant::now();
        works(&sidecar).await;
        assert_eq!((bad.asked().0, good.asked().0), (1, 1), "{does:?}");
        let waited = start.elapsed() >= Duration::from_secs(1);
        assert_eq!(waited, does == Does::Nothing, "{does:?} is waited for only when it is silent");
        // From now on the good one is asked first.
        works(&sidecar).await;
        assert_eq!((bad.asked().0, good.asked().0), (1, 2), "{does:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_passed_over() {
    let (gone, good) = (Server::start(Does::Answer(1)).await, Server::start(Does::Answer(1)).await);
    let settings = upstream_settings(&[&gone, &good]);
    drop(gone);
    works(&Sidecar::with(&settings).await).await;
}

#[tokio::test]
async fn that_there_is_no_such_name_is_an_answer() {
    let (first, second) = (Server::start(Does::NxDomain).await, Server::start(Does::Answer(1)).await);
    let sidecar = Sidecar::to(&[&first, &second]).await;
    let reply = sidecar.udp(&query("nowhere.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!((reply.authorities.len(), second.asked()), (1, (0, 0)));
    // No data of a type is one as well.
    first.now(Does::Answer(0));
    let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
    assert_eq!((reply.metadata.response_code, second.asked()), (ResponseCode::NoError, (0, 0)));
}

#[tokio::test]
async fn a_truncated_reply_is_asked_for_again_over_tcp() {
    let server = Server::start(Does::Truncated(100)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let reply = sidecar.tcp(&query("www.example.", RecordType::A)).await;
    assert_eq!((addresses(&reply).len(), server.asked()), (100, (1, 1)));
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let server = Server::start(Does::NothingOnce).await;
    works(&Sidecar::with(&impatient_settings(&[&server])).await).await;
    assert_eq!(server.asked().0, 2);
}

#[tokio::test]
async fn a_server_that_is_slow_is_still_listened_to() {
    let slow = Server::start(Does::Late(Duration::from_millis(700))).await;
    works(&Sidecar::with(&impatient_settings(&[&slow])).await).await;
    let silent = Server::start(Does::Nothing).await;
    works(&Sidecar::with(&impatient_settings(&[&slow, &silent])).await).await;
    assert!(silent.asked().0 > 0);
}

#[tokio::test]
async fn an_error_is_not_held_back_for_a_server_that_is_silent() {
    let silent = Server::start(Does::Nothing).await;
    let failing = Server::start(Does::Code(ResponseCode::ServFail)).await;
    let sidecar = Sidecar::with(&impatient_settings(&[&silent, &failing])).await;
    let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((silent.asked().0, failing.asked().0), (2, 1), "once more, for a datagram may have been lost");
}

#[tokio::test]
async fn when_nobody_answers_the_client_learns_why_and_in_time() {
    let servers = (Server::start(Does::Nothing).await, Server::start(Does::Nothing).await);
    let settings = impatient_settings(&[&servers.0, &servers.1]);
    let sidecar = Sidecar::with(&settings).await;
    let ask = with_edns(query("www.example.", RecordType::A), 1232);
    let start = Instant::now();
    let reply = sidecar.udp(&ask).await;
    assert_eq!((reply.metadata.response_code, extended_error(&reply)), (ResponseCode::ServFail, Some(22)));
    assert!((1400..6000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    drop(servers);
    let reply = sidecar.udp(&ask).await;
    assert_eq!((reply.metadata.response_code, extended_error(&reply)), (ResponseCode::ServFail, Some(23)));
}

#[tokio::test]
async fn when_all_refuse_the_client_gets_their_refusal() {
    let first = Server::start(Does::Code(ResponseCode::Refused)).await;
    let second = Server::start(Does::Code(ResponseCode::ServFail)).await;
    let sidecar = Sidecar::to(&[&first, &second]).await;
    let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert_eq!((first.asked().0, second.asked().0), (1, 1));
}

#[tokio::test]
async fn servers_are_reached_by_name_and_over_ipv6() {
    let server = Server::start(Does::Answer(1)).await;
    let servers = ["nowhere.example".to_owned(), format!("localhost:{}", server.addr.port())];
    let settings = format!("{{{}}}", patient_key(&servers));
    works(&Sidecar::with(&settings).await).await;
    assert_eq!(server.asked().0, 1);
    // A name behind a server that fails is waited for.
    let failing = Server::start(Does::Code(ResponseCode::ServFail)).await;
    let settings = settings.replace("nowhere.example", &failing.addr.to_string());
    works(&Sidecar::with(&settings).await).await;
    assert_eq!((failing.asked().0, server.asked().0), (1, 2));

    let server = Server::on("::1", Does::Truncated(1)).await;
    works(&Sidecar::to(&[&server]).await).await;
    assert_eq!(server.asked(), (1, 1));
}

#[tokio::test]
async fn the_clients_options_stay_with_us() {
    let server = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::to(&[&server]).await;
    let mut ask = query("WwW.Example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    edns.set_dnssec_ok(true);
    edns.options_mut().insert(EdnsOption::Unknown(10, b"mycookie".to_vec()));
    ask.set_edns(edns);
    ask.metadata.checking_disabled = true;
    let reply = sidecar.udp(&ask).await;
    let seen = server.last();
    assert_ne!(seen.metadata.id, ask.metadata.id, "an id of our own, but for one time in 65,536");
    assert!(seen.metadata.checking_disabled && seen.metadata.recursion_desired);
    let edns = seen.edns.unwrap();
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
    assert_eq!(edns.max_payload(), 1232);
    // And those of the server with it.
    let edns = reply.edns.unwrap();
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
}

#[tokio::test]
async fn the_sidecar_does_not_ask_itself() {
    let good = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::to(&[&good]).await;
    let own = sidecar.addr;
    sidecar.refilter(&format!(r#"{{"dns_upstream": {{"servers": ["{own}", "{}"]}}}}"#, good.addr));
    works(&sidecar).await;
    sidecar.refilter(&format!(r#"{{"dns_upstream": {{"servers": ["{own}"]}}}}"#));
    let reply = sidecar.udp(&with_edns(query("www.example.", RecordType::A), 1232)).await;
    assert_eq!((reply.metadata.response_code, extended_error(&reply)), (ResponseCode::ServFail, Some(23)));

    let refused = |bind: &str, server: &str| {
        let listener: DnsListener = serde_json::from_str(&format!(r#"{{"bind": "{bind}"}}"#)).unwrap();
        let filters: DnsFilters =
            serde_json::from_str(&format!(r#"{{"dns_upstream": {{"servers": ["{server}"]}}}}"#)).unwrap();
        let settings = std::sync::Arc::new(listener.settings(&env()));
        listener.terminal(&filters, &settings, &env(), None).err().map(|why| why.what)
    };
    let what = Some("filters.dns.dns_upstream.servers".to_owned());
    assert_eq!(refused("127.0.0.1:5300", "127.0.0.1:5300"), what);
    assert_eq!(refused("0.0.0.0:53", "127.0.0.1"), what);
    assert_eq!(refused("127.0.0.1:5300", "127.0.0.1"), None);
}
