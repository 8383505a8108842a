//! What a link must know of an IP packet, and what a router says when one is too big.
//!
//! Nothing here trusts a length: whatever is cut short is "not UDP" and gets no answer.

/// Protocol numbers of IP (IANA).
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The most bytes of an ICMP error of IPv4 (RFC 1812, section 4.3.2.3).
const ICMP_MOST: usize = 576;
/// The most bytes of an ICMPv6 error: the smallest MTU of IPv6 (RFC 4443, section 2.4 c).
const ICMPV6_MOST: usize = 1280;

/// The version of IP: 4 or 6.
pub(super) fn version(packet: &[u8]) -> Option<u8> {
    packet.first().map(|byte| byte >> 4).filter(|version| matches!(version, 4 | 6))
}

/// Bytes of the fixed header, after which corruption strikes.
pub(super) fn header_length(packet: &[u8]) -> usize {
    match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        Some(first) if first >> 4 == 6 => 40,
        _ => 0,
    }
}

/// Whether the packet carries UDP, whole or in fragments.
pub(super) fn is_udp(packet: &[u8]) -> bool {
    match version(packet) {
        Some(4) => packet.get(9) == Some(&UDP),
        Some(6) => upper_layer_v6(packet).is_some_and(|(protocol, _)| protocol == UDP),
        _ => false,
    }
}

/// The protocol behind the extension headers of IPv6, and where its header begins.
fn upper_layer_v6(packet: &[u8]) -> Option<(u8, usize)> {
    let mut next = *packet.get(6)?;
    let mut at = 40;
    // More headers than this are in no packet that a test sends.
    for _ in 0..8 {
        let length = match next {
            // Hop-by-hop options, routing, destination options (RFC 8200, sections 4.3, 4.4, 4.6).
            0 | 43 | 60 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            // Fragment (section 4.5).
            44 => 8,
            // Authentication (RFC 4302).
            51 => (usize::from(*packet.get(at + 1)?) + 2) * 4,
            protocol => return Some((protocol, at)),
        };
        next = *packet.get(at)?;
        at += length;
    }
    None
}

/// What a router with a smaller MTU ahead answers: "fragmentation needed" of RFC 1191 or "packet too big" of
/// RFC 4443.
///
/// Its source is the destination of the packet, so that it has a way back in every network. Nothing for IPv4
/// without DF, and for what no ICMP error may answer: ICMP errors, later fragments, packets to groups or from
/// nobody.
pub(super) fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    match version(packet)? {
        4 => too_big_v4(packet, mtu),
        _ => too_big_v6(packet, mtu),
    }
}

fn too_big_v4(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (dont_fragment, offset) = (fragment & 0x4000 != 0, fragment & 0x1fff);
    let (source, destination) = (packet.get(12..16)?, packet.get(16..20)?);
    // RFC 1122, section 3.2.2; groups and what is reserved begin at 224.
    let one_host = 1..224;
    if !dont_fragment || offset != 0 || !one_host.contains(&header[12]) || !one_host.contains(&header[16]) {
        return None;
    }
    if header[9] == ICMP && matches!(packet.get(header_length(packet)), Some(3 | 4 | 5 | 11 | 12) | None) {
        return None;
    }
    let quoted = packet.get(..packet.len().min(ICMP_MOST - 28))?;
    let length = u16::try_from(28 + quoted.len()).ok()?;

    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let sum = checksum(&[&message]);
    put(&mut message, 2, sum);

    // Internetwork control (RFC 1812, section 4.3.2.5), TTL 64.
    let mut answer = vec![0x45, 0xc0];
    answer.extend(length.to_be_bytes());
    answer.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    answer.extend(destination);
    answer.extend(source);
    let sum = checksum(&[&answer]);
    put(&mut answer, 10, sum);
    answer.extend(message);
    Some(answer)
}

fn too_big_v6(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let (source, destination) = (header.get(8..24)?, header.get(24..40)?);
    let from_nobody = source.iter().all(|byte| *byte == 0) || source.first() == Some(&0xff);
    // RFC 4443, section 2.4 e; a packet to a group may be answered, but its address may not be our source.
    if from_nobody || destination.first() == Some(&0xff) {
        return None;
    }
    let (protocol, at) = upper_layer_v6(packet)?;
    // The errors of ICMPv6 are the types below 128.
    if protocol == ICMPV6 && packet.get(at).is_none_or(|kind| *kind < 128) {
        return None;
    }
    let quoted = packet.get(..packet.len().min(ICMPV6_MOST - 48))?;
    let length = u16::try_from(8 + quoted.len()).ok()?;

    let mut message = vec![2, 0, 0, 0];
    message.extend(u32::from(mtu).to_be_bytes());
    message.extend(quoted);
    let pseudo = [&[0, 0], &length.to_be_bytes()[..], &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[destination, source, &pseudo, &message]);
    put(&mut message, 2, sum);

    let mut answer = vec![0x60, 0, 0, 0];
    answer.extend(length.to_be_bytes());
    answer.extend([ICMPV6, 64]);
    answer.extend(destination);
    answer.extend(source);
    answer.extend(message);
    Some(answer)
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// The Internet checksum (RFC 1071) over parts; all but the last must have even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let words = words.map(|word| match word {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [high] => u16::from_be_bytes([*high, 0]),
        _ => 0,
    });
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + payload).unwrap().to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(vec![8; payload]);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        packet.extend([next, 64]);
        packet.extend([[0xfd; 16], [0xfe; 16]].concat());
        packet.extend(payload);
        packet
    }

    #[test]
    fn udp_is_seen_behind_extension_headers_and_in_fragments() {
        assert!(is_udp(&v4(UDP, 0, 8)));
        assert!(is_udp(&v4(UDP, 0x2001, 8)));
        assert!(!is_udp(&v4(6, 0, 20)));
        assert!(is_udp(&v6(UDP, &[0; 8])));
        assert!(!is_udp(&v6(6, &[0; 20])));
        let behind = [&[60, 1, 0, 0, 0, 0, 0, 0][..], &[0; 8], &[UDP, 0, 0, 1, 0, 0, 0, 7], &[0; 8]].concat();
        let mut two = behind.clone();
        two[0] = 44;
        assert!(is_udp(&v6(0, &two)));
        // The second header is cut off.
        assert!(!is_udp(&v6(0, &behind[..16])));
    }

    #[test]
    fn the_answer_of_ipv4_names_the_mtu_and_quotes_the_packet() {
        let packet = v4(UDP, 0x4000, 1400);
        let answer = too_big(&packet, 1300).unwrap();
        assert_eq!(answer.len(), ICMP_MOST);
        assert_eq!(checksum(&[&answer[..20]]), 0);
        assert_eq!(checksum(&[&answer[20..]]), 0);
        assert_eq!(answer[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(answer[20..28][..2], [3, 4]);
        assert_eq!(answer[26..28], 1300_u16.to_be_bytes());
        assert_eq!(answer[28..], packet[..ICMP_MOST - 28]);
    }

    #[test]
    fn the_answer_of_ipv6_names_the_mtu_and_quotes_the_packet() {
        let packet = v6(UDP, &[7; 1401]);
        let answer = too_big(&packet, 1300).unwrap();
        assert_eq!(answer.len(), ICMPV6_MOST);
        assert_eq!(answer[8..40], [[0xfe; 16], [0xfd; 16]].concat());
        let length = u16::from_be_bytes([answer[4], answer[5]]);
        let pseudo = [&answer[8..40], &[0, 0], &length.to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
        assert_eq!(checksum(&[&pseudo, &answer[40..]]), 0);
        assert_eq!(answer[40..42], [2, 0]);
        assert_eq!(answer[44..48], 1300_u32.to_be_bytes());
        assert_eq!(answer[48..], packet[..ICMPV6_MOST - 48]);
    }

    #[test]
    fn no_error_answers_what_none_may_answer() {
        assert_eq!(too_big(&v4(UDP, 0, 1400), 1300), None, "it may be cut");
        assert_eq!(too_big(&v4(UDP, 0x4001, 1400), 1300), None, "a later fragment");
        let echo = v4(ICMP, 0x4000, 1400);
        assert!(too_big(&echo, 1300).is_some());
        let mut error = echo;
        error[20] = 3;
        assert_eq!(too_big(&error, 1300), None);
        let mut group = v4(UDP, 0x4000, 1400);
        group[16] = 224;
        assert_eq!(too_big(&group, 1300), None);
        assert_eq!(too_big(&v6(ICMPV6, &[1; 1400]), 1300), None);
        assert!(too_big(&v6(ICMPV6, &[128; 1400]), 1300).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_surprise(first in prop::option::of(prop_oneof![Just(0x45), Just(0x60), any::<u8>()]), rest in prop::collection::vec(any::<u8>(), 0..100)) {
            let packet: Vec<u8> = first.into_iter().chain(rest).collect();
            let _ = (is_udp(&packet), header_length(&packet), version(&packet));
            if let Some(answer) = too_big(&packet, 1300) {
                prop_assert!(answer.len() <= packet.len() + 48);
            }
        }
    }
}
