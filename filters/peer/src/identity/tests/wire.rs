//! What goes over the wire in a handshake (RFC 8446 section 4.1.2), and what comes of it.

use rustls::quic::{ClientConnection, ServerConnection, Version};
use rustls::{NamedGroup, ProtocolVersion};

use super::*;
use crate::identity::load;

/// X25519MLKEM768 in the registry of TLS supported groups.
const X25519MLKEM768: u16 = 0x11ec;

/// The extensions of a ClientHello: type and contents.
fn extensions(hello: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut rest = hello;
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at(length);
        rest = left;
        taken.to_vec()
    };
    let number = |bytes: Vec<u8>| bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
    assert_eq!(take(1), [1], "a ClientHello");
    assert_eq!(number(take(3)), hello.len() - 4, "nothing follows it");
    take(2 + 32);
    for bytes in [1, 2, 1] {
        let length = number(take(bytes));
        take(length);
    }
    let mut left = number(take(2));
    let mut found = Vec::new();
    while left > 0 {
        let (kind, length) = (number(take(2)) as u16, number(take(2)));
        found.push((kind, take(length)));
        left -= 4 + length;
    }
    found
}

fn pair() -> (ServerConnection, ClientConnection) {
    let ca = Ca::new();
    let configs = |last: &str, other: &str| load::load(&ca.issue(last)).unwrap().tls.raw(only(other));
    let (server, client) = (configs("a", "b").0, configs("b", "a").1);
    let name = SERVER_NAME.try_into().unwrap();
    let server = ServerConnection::new(Arc::new(server), Version::V1, b"parameters".to_vec()).unwrap();
    let client = ClientConnection::new(Arc::new(client), Version::V1, name, b"parameters".to_vec()).unwrap();
    (server, client)
}

#[test]
fn a_client_offers_one_key_exchange_one_version_and_nothing_to_resume() {
    let (_, mut client) = pair();
    let mut hello = Vec::new();
    client.write_hs(&mut hello);
    let extensions = extensions(&hello);
    let get =
        |kind: u16| extensions.iter().find(|(found, _)| *found == kind).map(|(_, body)| body.as_slice());
    let group = X25519MLKEM768.to_be_bytes();
    // supported_groups: one.
    assert_eq!(get(10).unwrap(), [&[0, 2][..], &group].concat());
    // key_share: one of 1184 + 32 bytes, and nothing of another kind.
    let shares = get(51).unwrap();
    assert_eq!(shares[2..4], group);
    assert_eq!(usize::from(u16::from_be_bytes([shares[4], shares[5]])), 1184 + 32);
    assert_eq!(shares.len(), 2 + 4 + 1184 + 32);
    // supported_versions: 1.3 alone.
    assert_eq!(get(43).unwrap(), [2, 3, 4]);
    // application_layer_protocol_negotiation.
    assert_eq!(get(16).unwrap(), [&[0, 6, 5][..], ALPN].concat());
    // server_name, pre_shared_key, early_data.
    assert_eq!((get(0), get(41), get(42)), (None, None, None));
}

#[test]
fn both_sides_have_negotiated_it_and_no_ticket_comes() {
    let (mut server, mut client) = pair();
    // Each flight is in the keys of one level, and is handed over by itself as QUIC does.
    for _ in 0..4 {
        let mut flight = Vec::new();
        while client.write_hs(&mut flight).is_some() || !flight.is_empty() {
            server.read_hs(&flight).unwrap();
            flight.clear();
        }
        while server.write_hs(&mut flight).is_some() || !flight.is_empty() {
            client.read_hs(&flight).unwrap();
            flight.clear();
        }
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    for group in [server.negotiated_key_exchange_group(), client.negotiated_key_exchange_group()] {
        assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
    }
    assert_eq!(u16::from(NamedGroup::X25519MLKEM768), X25519MLKEM768);
    for (version, protocol) in [
        (server.protocol_version(), server.alpn_protocol()),
        (client.protocol_version(), client.alpn_protocol()),
    ] {
        assert_eq!((version, protocol), (Some(ProtocolVersion::TLSv1_3), Some(ALPN)));
    }
    assert_eq!(client.tls13_tickets_received(), 0);
    assert!(client.zero_rtt_keys().is_none() && server.zero_rtt_keys().is_none());
}
