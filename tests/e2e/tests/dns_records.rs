//! Names and questions that are rare: answered as the standards say, by UDP and TCP, with the cache off, cold and warm.
//! The table of standards is in docs/dns-standards.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use qudag_e2e::odd_names::{BIG_STRINGS, By, LINKS, MANY, OddNames, Pair, longest};
use qudag_kit::dns::hickory_proto::rr::RecordType;
use qudag_kit::dns_wire::{self, Ask, Edns, View, flag, rcode, rtype, shown};
use qudag_kit::faulty_dns::address_of;
use qudag_kit::{FaultyDns, needs_program};

const BOTH: [By; 2] = [By::Udp, By::Tcp];

fn edns() -> Edns {
    Edns::size(1232)
}

/// RFC 1035 sections 3.2.2 and 4.1, RFC 2181 section 5: sets come whole.
#[tokio::test]
async fn a_name_with_fifty_records_is_answered_whole() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for (record_type, by) in [(rtype::A, By::Udp), (rtype::A, By::Tcp), (rtype::AAAA, By::Tcp)] {
        let ask = Ask::new("many.odd.test.", record_type).edns(edns());
        let reply = odd.ask(by, &ask).await;
        assert_eq!((reply.rcode(), reply.has(flag::TC)), (rcode::NOERROR, false), "{ask}");
        assert_eq!(reply.data(record_type).len(), MANY);
        assert_eq!(View::set(&reply.answers), View::set(&odd.direct(By::Tcp, &ask).await.answers));
    }
    // 50 IPv6 addresses take 1,400 bytes: not by UDP.
    let reply = odd.ask(By::Udp, &Ask::new("many.odd.test.", rtype::AAAA).edns(edns())).await;
    assert!(reply.has(flag::TC) && reply.answers.is_empty(), "{reply:?}");
}

/// RFC 1035 section 4.2.1, RFC 2181 section 9, RFC 6891 sections 6.2.3 to 6.2.5, RFC 9715: the reply has at most the client's size
/// (512 at least) and 1,232 bytes, and TC says exactly when something is missing.
#[tokio::test]
async fn a_datagram_is_truncated_at_every_edns_size() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    let mut truncated = 0;
    for count in 1..=20 {
        let plain = Ask::new(&format!("n{count}.odd.test."), rtype::A);
        let mut asks = vec![(plain.clone(), 512)];
        for size in [0, 1, 511, 512, 513, 700, 876, 1231, 1232, 1233, 1400, 4096, 65_535] {
            asks.push((plain.clone().edns(Edns::size(size)), usize::from(size).clamp(512, 1232)));
        }
        for (ask, limit) in asks {
            let whole = odd.ask(By::Tcp, &ask).await;
            assert_eq!(whole.answers.len(), count * 4);
            let reply = odd.ask(By::Udp, &ask).await;
            assert!(reply.length <= limit, "{} bytes of at most {limit}: {ask}", reply.length);
            let fits = whole.length <= limit;
            assert_eq!(reply.has(flag::TC), !fits, "{ask}: whole {} bytes, limit {limit}", whole.length);
            if fits {
                assert_eq!(reply.without_age(), whole.without_age(), "{ask}");
            } else {
                assert_eq!((reply.rcode(), &reply.question), (rcode::NOERROR, &ask.question()));
                assert_eq!(reply.edns.is_some(), ask.edns.is_some(), "{ask}: EDNS is lost with the records");
                truncated += 1;
            }
        }
    }
    assert!(truncated > 50, "only {truncated} replies were truncated");
}

/// RFC 1034 section 3.6.2, RFC 1035 section 3.3.1, RFC 2181 section 10.1.
#[tokio::test]
async fn aliases_lead_to_their_end_however_many_there_are() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for by in BOTH {
        let reply = odd.ask(by, &Ask::new("c0.odd.test.", rtype::A).edns(edns())).await;
        assert_eq!(reply.rcode(), rcode::NOERROR);
        // In the order of the way, so that a client that follows it in one pass arrives.
        for (link, record) in reply.answers.iter().enumerate() {
            assert_eq!(record.owner, dns_wire::name(&format!("c{link}.odd.test.")), "{reply:?}");
            assert_eq!(record.rtype, if link < LINKS { rtype::CNAME } else { rtype::A });
        }
        assert_eq!(reply.answers.len(), LINKS + 1);
        // The alias itself is asked for, so it is not followed.
        let reply = odd.ask(by, &Ask::new("c0.odd.test.", rtype::CNAME)).await;
        assert_eq!(reply.answers.len(), 1);
        // RFC 2308 section 2, RFC 6604 section 2: the code is that of the last name.
        let reply = odd.ask(by, &Ask::new("dangling.odd.test.", rtype::A)).await;
        assert_eq!((reply.rcode(), reply.data(rtype::CNAME).len()), (rcode::NXDOMAIN, 1));
        let reply = odd.ask(by, &Ask::new("bare.odd.test.", rtype::A)).await;
        assert_eq!((reply.rcode(), reply.answers.len()), (rcode::NOERROR, 1));
        assert_eq!(reply.authorities.iter().filter(|record| record.rtype == rtype::SOA).count(), 1);
        // RFC 6672 section 3.1: the DNAME comes with the alias made of it.
        let reply = odd.ask(by, &Ask::new("x.dn.odd.test.", rtype::A)).await;
        assert_eq!(reply.data(rtype::DNAME).len(), 1, "{reply:?}");
        assert_eq!(reply.data(rtype::CNAME), [dns_wire::name("x.deep.empty.odd.test.")]);
        assert_eq!(reply.data(rtype::A), [[192, 0, 2, 8]]);
        // An alias to itself ends; what the authority makes of it is passed on.
        let ask = Ask::new("loop1.odd.test.", rtype::A);
        let reply = odd.ask(by, &ask).await;
        assert_eq!(View::set(&reply.answers), View::set(&odd.direct(by, &ask).await.answers));
    }
}

/// The same with a server that follows the whole chain, however long.
#[tokio::test]
async fn a_chain_of_many_aliases_arrives_whole_and_in_order() {
    let server = FaultyDns::start();
    let pair = Pair::of(server.addr()).await;
    for links in [8, 9, 16, 40] {
        for by in BOTH {
            let name = |left: usize| format!("chain{left}-x.test.");
            let reply = pair.ask(by, &Ask::new(&name(links), rtype::A).edns(edns())).await;
            // 40 links take more than a datagram.
            if reply.has(flag::TC) {
                assert_eq!((by, links), (By::Udp, 40));
                continue;
            }
            assert_eq!(reply.answers.len(), links + 1);
            for (number, record) in reply.answers.iter().enumerate() {
                assert_eq!(record.owner, dns_wire::name(&name(links - number)));
            }
            assert_eq!(reply.data(rtype::A), [address_of(&name(0), 0).octets()]);
        }
    }
}

/// RFC 1035 sections 3.3.14 and 4.2.2, RFC 7766 section 5: what does not fit into a datagram comes by TCP.
#[tokio::test]
async fn a_text_of_60_kb_comes_by_tcp() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    let ask = Ask::new("big.odd.test.", rtype::TXT).edns(Edns::size(65_535));
    let reply = odd.ask(By::Udp, &ask).await;
    assert!(reply.has(flag::TC) && reply.answers.is_empty());
    let reply = odd.ask(By::Tcp, &ask).await;
    assert_eq!((reply.has(flag::TC), reply.answers.len()), (false, 1));
    assert_eq!(reply.answers[0].data.len(), BIG_STRINGS * 250);
    assert_eq!(reply.answers, odd.direct(By::Tcp, &ask).await.answers);
}

/// RFC 1035 section 2.3.3, RFC 4343: the question comes back as it was asked, and case makes no other name of it.
#[tokio::test]
async fn names_in_mixed_case_are_one_name_and_come_back_as_asked() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for name in ["mixed.odd.test.", "MIXED.ODD.TEST.", "MiXeD.oDd.TeSt.", "mIxEd.OdD.tEsT."] {
        for by in BOTH {
            let ask = Ask::new(name, rtype::A);
            let reply = odd.ask(by, &ask).await;
            assert_eq!(reply.question, ask.question(), "{name}: the question comes back in another case");
            assert_eq!(reply.data(rtype::A), [[192, 0, 2, 2]]);
        }
    }
    // The cache asks once for all of them; without it every question is asked.
    let server = FaultyDns::start();
    let pair = Pair::of(server.addr()).await;
    for (number, name) in ["mixed.test.", "MIXED.TEST.", "MiXeD.TeSt."].iter().enumerate() {
        pair.ask(By::Udp, &Ask::new(name, rtype::A)).await;
        assert_eq!(
            server.queries("mixed.test.", RecordType::A),
            number as u64 + 2,
            "{name} was asked for again"
        );
    }
    // Only the 26 letters of ASCII have cases: 0x5b to 0x60 and bytes above 0x7f are what they are.
    let ask = Ask::new(r"B\001\255.odd.test.", rtype::A);
    assert_eq!(odd.ask(By::Udp, &ask).await.data(rtype::A), [[192, 0, 2, 7]]);
    let reply = odd.ask(By::Udp, &Ask::new(r"b\001\223.odd.test.", rtype::A)).await;
    assert_eq!(reply.rcode(), rcode::NXDOMAIN);
}

/// RFC 5890 section 2.3.2.1 (A-labels), RFC 2181 section 11 (any bytes), RFC 1035 section 2.3.4 (lengths).
#[tokio::test]
async fn any_bytes_may_stand_in_a_name() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for (name, last) in [
        ("xn--bcher-kva.odd.test.", 3),
        ("XN--BCHER-KVA.odd.test.", 3),
        (r"sp\032ace.odd.test.", 5),
        (r"dot\.ted.odd.test.", 6),
        (r"b\001\255.odd.test.", 7),
        (&longest(), 11),
    ] {
        for by in BOTH {
            let ask = Ask::new(name, rtype::A);
            let reply = odd.ask(by, &ask).await;
            assert_eq!(reply.data(rtype::A), [[192, 0, 2, last]], "{name}");
            assert_eq!(reply.question, ask.question());
        }
    }
    // Not the same as the name with two labels, nor the name in UTF-8 the same as its A-label.
    for name in ["dot.ted.odd.test.", "b\u{fc}cher.odd.test."] {
        let reply = odd.ask(By::Udp, &Ask::new(name, rtype::A)).await;
        assert_eq!(reply.rcode(), rcode::NXDOMAIN, "{name}");
    }
}

/// RFC 2308 sections 2, 3 and 5, RFC 8020, RFC 4592 section 2.2.2 (empty non-terminals).
#[tokio::test]
async fn what_does_not_exist_comes_with_the_zone_and_its_time() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    let none = rcode::NXDOMAIN;
    for (name, record_type, code) in [
        ("none.odd.test.", rtype::A, none),
        ("below.none.odd.test.", rtype::A, none),
        ("a.odd.test.", rtype::MX, rcode::NOERROR),
        ("empty.odd.test.", rtype::A, rcode::NOERROR),
        ("wild.odd.test.", rtype::A, rcode::NOERROR),
        ("x.wild.odd.test.", rtype::AAAA, rcode::NOERROR),
    ] {
        for by in BOTH {
            let reply = odd.ask(by, &Ask::new(name, record_type)).await;
            assert_eq!((reply.rcode(), reply.answers.len()), (code, 0), "{name}");
            let soa = reply.authorities.iter().find(|record| record.rtype == rtype::SOA);
            let soa = soa.unwrap_or_else(|| panic!("{name}: no SOA: {reply:?}"));
            assert_eq!(soa.owner, dns_wire::name("odd.test."));
            assert!(soa.ttl <= 30, "{name}: MINIMUM is 30 s, and this is {}", soa.ttl);
        }
    }
    // A name below one that has no data of its own exists nonetheless.
    let reply = odd.ask(By::Udp, &Ask::new("leaf.empty.odd.test.", rtype::A)).await;
    assert_eq!(reply.data(rtype::A), [[192, 0, 2, 4]]);
    let reply = odd.ask(By::Udp, &Ask::new("any.where.wild.odd.test.", rtype::A)).await;
    assert_eq!(reply.answers[0].owner, dns_wire::name("any.where.wild.odd.test."));
}

/// RFC 1035 section 3.2.1: a time to live of 0 is for this use only.
#[tokio::test]
async fn a_time_to_live_of_zero_is_passed_on_and_not_kept() {
    let server = FaultyDns::start();
    server.set_ttl(0);
    let pair = Pair::of(server.addr()).await;
    for round in 1..=3 {
        for by in BOTH {
            let reply = pair.ask(by, &Ask::new("brief.test.", rtype::A)).await;
            assert_eq!((reply.answers.len(), reply.answers[0].ttl), (1, 0));
        }
        // Once without a cache and twice with it, by UDP and by TCP.
        assert_eq!(server.queries("brief.test.", RecordType::A), round * 6);
    }
}

/// RFC 3597 sections 3 to 5: types that nobody knows are bytes, and names in types that came later are not compressed.
#[tokio::test]
async fn types_that_nobody_knows_are_passed_on_as_they_are() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for by in BOTH {
        let reply = odd.ask(by, &Ask::new("unknown.odd.test.", 65_280).edns(edns())).await;
        assert_eq!(reply.data(65_280), [[10, 0, 0, 1, 2, 3]]);
        let reply = odd.ask(by, &Ask::new("unknown-empty.odd.test.", 65_281)).await;
        assert_eq!(reply.data(65_281), [b""]);
        for (name, number) in [
            ("_sip._tcp", rtype::SRV),
            ("mail", rtype::MX),
            ("naptr", 35),
            ("caa", rtype::CAA),
            ("svc", rtype::HTTPS),
            ("tlsa", 52),
            ("sshfp", 44),
            ("loc", 29),
            ("7", rtype::PTR),
            ("text", rtype::TXT),
            ("empty-text", rtype::TXT),
        ] {
            let ask = Ask::new(&format!("{name}.odd.test."), number).edns(edns());
            let reply = odd.ask(by, &ask).await;
            assert!(!reply.answers.is_empty(), "{ask}: {reply:?}");
            assert_eq!(View::set(&reply.answers), View::set(&odd.direct(by, &ask).await.answers), "{ask}");
        }
        // No data, whatever the number, and never an error.
        for number in [3, 10, 99, 127, 256, 4_000, 65_279, 65_534] {
            let reply = odd.ask(by, &Ask::new("a.odd.test.", number)).await;
            assert_eq!((reply.rcode(), reply.answers.len()), (rcode::NOERROR, 0), "TYPE{number}");
        }
    }
}

/// RFC 1035 section 3.2.4, RFC 2136 section 1.3, RFC 3597 section 2: the class is part of the question.
#[tokio::test]
async fn classes_are_kept_apart() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for by in BOTH {
        assert_eq!(odd.ask(by, &Ask::new("a.odd.test.", rtype::A)).await.data(rtype::A).len(), 1);
        for class in [2, 3, 4, 254, 255, 256, 65_280] {
            let ask = Ask::new("a.odd.test.", rtype::A).class(class);
            let reply = odd.ask(by, &ask).await;
            assert_eq!(reply.question, ask.question());
            assert_ne!(reply.rcode(), rcode::FORMERR, "{ask}");
            let in_class = reply.answers.iter().all(|record| record.class == class || class == 255);
            assert!(in_class, "{ask}: an address of another class: {reply:?}");
        }
    }
}

/// RFC 8482 section 4.2.
#[tokio::test]
async fn any_is_answered_with_a_hint_and_never_goes_on() {
    let server = FaultyDns::start();
    let pair = Pair::of(server.addr()).await;
    for name in ["a.test.", "nx-a.test.", ".", "elsewhere.invalid."] {
        for by in BOTH {
            let ask = Ask::new(name, rtype::ANY);
            let reply = pair.ask(by, &ask).await;
            assert_eq!((reply.rcode(), reply.answers.len()), (rcode::NOERROR, 1), "{ask}");
            let hint = &reply.answers[0];
            assert_eq!(
                (hint.rtype, &hint.data[..], &hint.owner),
                (rtype::HINFO, &b"\x07RFC8482\0"[..], &ask.name)
            );
            assert_eq!(server.queries(name, RecordType::ANY), 0, "{name} ANY went upstream");
        }
    }
}

/// RFC 5936 section 2.2.1, RFC 1995 section 4: zones are not transferred through here.
#[tokio::test]
async fn transfers_of_zones_are_not_implemented() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for record_type in [rtype::AXFR, rtype::IXFR] {
        for by in BOTH {
            let reply = odd.ask(by, &Ask::new("odd.test.", record_type)).await;
            assert_eq!((reply.rcode(), reply.answers.len()), (rcode::NOTIMP, 0), "TYPE{record_type} {by:?}");
        }
    }
}

/// RFC 1035 section 4.1.1, RFC 1996 (NOTIFY), RFC 2136 (UPDATE), RFC 3425 (IQUERY is obsolete), RFC 8490 section 5.1 (DSO).
#[tokio::test]
async fn other_operations_are_not_implemented() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for opcode in 1..16 {
        for by in BOTH {
            let ask = Ask::new("odd.test.", rtype::SOA).opcode(opcode);
            let reply = odd.ask(by, &ask).await;
            assert_eq!(reply.rcode(), rcode::NOTIMP, "operation {opcode}");
            assert_eq!(reply.flags & 0x7800, opcode << 11, "the operation comes back");
            assert!(reply.answers.is_empty());
        }
    }
}

/// RFC 4035 section 3.2, RFC 3225, RFC 6840 sections 5.7 to 5.9: DNSSEC records for those who ask, and neither DO nor CD mixes with its
/// opposite in the cache.
#[tokio::test]
async fn dnssec_records_come_to_those_who_ask_for_them() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for flags in [flag::RD, flag::RD | flag::CD, flag::RD | flag::AD, flag::RD | flag::AD | flag::CD] {
        for dnssec in [true, false, true] {
            for (name, answers) in
                [("a.signed.test.", 1), ("x.wild.signed.test.", 1), ("alias.signed.test.", 2)]
            {
                let edns = if dnssec { edns().dnssec() } else { edns() };
                let ask = Ask::new(name, rtype::A).flags(flags).edns(edns);
                let reply = odd.ask(By::Udp, &ask).await;
                assert_eq!(reply.data(rtype::RRSIG).len(), if dnssec { answers } else { 0 }, "{ask}");
                assert_eq!(reply.data(rtype::A).len(), 1);
                assert_eq!(reply.has(flag::CD), flags & flag::CD != 0, "CD comes back");
                assert_eq!(reply.edns.as_ref().unwrap().flags & dns_wire::DO != 0, dnssec, "DO comes back");
                assert!(!reply.has(flag::AD), "Knot authenticates nothing, and neither do we");
            }
            let edns = if dnssec { edns().dnssec() } else { edns() };
            let reply =
                odd.ask(By::Udp, &Ask::new("none.signed.test.", rtype::A).flags(flags).edns(edns)).await;
            let proofs = reply.authorities.iter().filter(|record| record.rtype == rtype::NSEC).count();
            assert_eq!((reply.rcode(), proofs > 0), (rcode::NXDOMAIN, dnssec), "{reply:?}");
        }
    }
    for record_type in [rtype::DNSKEY, rtype::DS, rtype::NSEC, rtype::RRSIG] {
        let ask = Ask::new("signed.test.", record_type).edns(edns().dnssec());
        let reply = odd.ask(By::Tcp, &ask).await;
        assert_eq!(View::set(&reply.answers), View::set(&odd.direct(By::Tcp, &ask).await.answers), "{ask}");
    }
}

/// RFC 1035 section 4.1.1 as changed by RFC 4035: what the header of a reply says.
#[tokio::test]
async fn the_header_of_a_reply_is_our_own() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for bits in 0..16 {
        let bit = |number: u16, flag| if bits >> number & 1 == 1 { flag } else { 0 };
        let flags = bit(0, flag::RD) | bit(1, flag::CD) | bit(2, flag::AD) | bit(3, flag::Z);
        for by in BOTH {
            let reply = odd.ask(by, &Ask::new("a.odd.test.", rtype::A).flags(flags)).await;
            assert!(reply.has(flag::QR) && reply.has(flag::RA));
            assert_eq!(reply.flags & (flag::RD | flag::CD), flags & (flag::RD | flag::CD));
            assert_eq!(
                reply.flags & (flag::AA | flag::Z | flag::TC | flag::AD),
                0,
                "{flags:#06x}: {:#06x}",
                reply.flags
            );
            assert_eq!(reply.data(rtype::A), [[192, 0, 2, 1]]);
        }
    }
}

/// RFC 6891 sections 6.1 and 7: EDNS is answered with EDNS, of version 0, hop by hop, and with nothing that we do not do.
#[tokio::test]
async fn edns_is_between_the_client_and_us() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    let ask = Ask::new("a.odd.test.", rtype::A);
    for by in BOTH {
        assert_eq!(odd.ask(by, &ask).await.edns, None, "nobody asked for EDNS");
        let options: [(u16, &[u8]); 8] = [
            (3, b""),                        // NSID, RFC 5001: optional.
            (8, &[0, 1, 24, 0, 192, 0, 2]),  // Client subnet, RFC 7871: never sent on.
            (9, b""),                        // Expire, RFC 7314: for zone transfers.
            (10, &[1, 2, 3, 4, 5, 6, 7, 8]), // Cookie, RFC 7873: not one of ours.
            (11, b""),                       // TCP keepalive, RFC 7828.
            (12, &[0; 64]),                  // Padding, RFC 7830: only where it is encrypted.
            (15, &[0, 3]),                   // An extended error makes no sense in a query.
            (65_001, b"whatever"),           // RFC 6891 section 6.1.2: unknown options are ignored.
        ];
        for (code, value) in options {
            let reply = odd.ask(by, &ask.clone().edns(edns().option(code, value))).await;
            let edns = reply.edns.clone().unwrap();
            assert_eq!((reply.rcode(), edns.version, edns.flags), (0, 0, 0), "option {code}");
            assert_eq!(edns.size, 1232);
            assert_eq!(edns.options, [], "option {code} by {by:?}");
            assert_eq!(reply.data(rtype::A), [[192, 0, 2, 1]]);
        }
        let all = options.iter().fold(edns(), |edns, (code, value)| edns.option(*code, value));
        assert_eq!(odd.ask(by, &ask.clone().edns(all)).await.data(rtype::A).len(), 1);
        // Section 6.1.4: flags other than DO are ignored and sent as zero.
        let reply = odd.ask(by, &ask.clone().edns(Edns { flags: 0xffff, ..edns() })).await;
        assert_eq!((reply.rcode(), reply.edns.unwrap().flags), (0, dns_wire::DO));
        // Section 6.1.3: any later version gets BADVERS with the version that we know, and no answer.
        for version in [1, 2, 255] {
            let reply = odd.ask(by, &ask.clone().edns(Edns { version, ..edns() })).await;
            assert_eq!((reply.rcode(), reply.answers.len()), (rcode::BADVERS, 0), "version {version}");
            assert_eq!(reply.edns.unwrap().version, 0);
        }
    }
}

/// What becomes of a message that is no good query.
enum Fate {
    /// No reply, which could go round in circles.
    Silence,
    /// A reply with this code, the id, and no more than it takes.
    Code(u16),
    /// It is answered after all.
    Answer,
}

fn messages() -> Vec<(&'static str, Vec<u8>, Fate)> {
    use Fate::{Answer, Code, Silence};
    let good = Ask::new("a.odd.test.", rtype::A).edns(edns()).bytes();
    let bare = Ask::new("a.odd.test.", rtype::A).bytes();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut wire = good.clone();
        change(&mut wire);
        wire
    };
    let opt = edns().record();
    let record = b"\0\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04";
    let formerr = || Code(rcode::FORMERR);
    vec![
        ("nothing", vec![], Silence),
        ("one byte", vec![0], Silence),
        ("half a header", good[..11].to_vec(), Silence),
        ("a response", with(&|wire| wire[2] |= 0x80), Silence),
        ("a header without a question", good[..12].to_vec(), formerr()),
        (
            "no question at all",
            with(&|wire| {
                wire.truncate(12);
                wire[5] = 0;
                wire[11] = 0;
            }),
            formerr(),
        ),
        ("two questions", with(&|wire| wire[5] = 2), formerr()),
        (
            "two questions that are there",
            {
                let mut wire = [&bare[..], &bare[12..]].concat();
                wire[5] = 2;
                wire
            },
            formerr(),
        ),
        ("65,535 questions", with(&|wire| wire[4..6].copy_from_slice(&[0xff, 0xff])), formerr()),
        ("65,535 answers", with(&|wire| wire[6..8].copy_from_slice(&[0xff, 0xff])), formerr()),
        ("65,535 authorities", with(&|wire| wire[8..10].copy_from_slice(&[0xff, 0xff])), formerr()),
        ("65,535 additional records", with(&|wire| wire[10..12].copy_from_slice(&[0xff, 0xff])), formerr()),
        (
            "an answer in a query",
            {
                let mut wire = [&bare[..], record].concat();
                wire[7] = 1;
                wire
            },
            formerr(),
        ),
        (
            "an authority in a query",
            {
                let mut wire = [&bare[..], record].concat();
                wire[9] = 1;
                wire
            },
            formerr(),
        ),
        (
            "an additional record that nobody asked for",
            {
                let mut wire = [&bare[..], record].concat();
                wire[11] = 1;
                wire
            },
            Answer,
        ),
        ("a truncated query", with(&|wire| wire[2] |= 0x02), formerr()),
        ("a name that is cut", good[..15].to_vec(), formerr()),
        ("a question that is cut", good[..25].to_vec(), formerr()),
        ("a pointer to itself", with(&|wire| wire[12..14].copy_from_slice(&[0xc0, 12])), formerr()),
        ("a pointer forwards", with(&|wire| wire[12..14].copy_from_slice(&[0xc0, 20])), formerr()),
        ("a pointer into the header", with(&|wire| wire[12..14].copy_from_slice(&[0xc0, 0])), formerr()),
        ("a label of type 01", with(&|wire| wire[12] = 0x41), formerr()),
        ("a label of type 10", with(&|wire| wire[12] = 0x81), formerr()),
        ("a label of 63 bytes where there are fewer", with(&|wire| wire[12] = 63), formerr()),
        (
            "a name of 256 bytes",
            {
                let mut ask = Ask::new(&longest(), rtype::A);
                ask.name.splice(0..0, *b"\x01x");
                ask.bytes()
            },
            formerr(),
        ),
        (
            "a name of 128 labels",
            Ask { name: [&b"\x01x".repeat(128)[..], b"\0"].concat(), ..Ask::new("", 1) }.bytes(),
            formerr(),
        ),
        ("type 0", Ask::new("a.odd.test.", 0).bytes(), formerr()),
        ("type OPT", Ask::new("a.odd.test.", rtype::OPT).bytes(), formerr()),
        ("a byte too many", with(&|wire| wire.push(0)), formerr()),
        ("a second query behind it", [&good[..], &good[..]].concat(), formerr()),
        ("an OPT record that is cut", with(&|wire| wire.truncate(wire.len() - 1)), formerr()),
        (
            "two OPT records",
            {
                let mut wire = [&good[..], &opt].concat();
                wire[11] = 2;
                wire
            },
            formerr(),
        ),
        (
            "an OPT record with an owner",
            {
                let mut wire = [&bare[..], b"\x01x", &opt].concat();
                wire[11] = 1;
                wire
            },
            formerr(),
        ),
        (
            "an OPT record among the answers",
            {
                let mut wire = [&bare[..], &opt].concat();
                wire[7] = 1;
                wire
            },
            formerr(),
        ),
        (
            "an option longer than its record",
            {
                let mut wire = good.clone();
                let length = wire.len();
                wire[length - 1] = 4;
                wire.extend([0, 10, 0, 9]);
                wire
            },
            formerr(),
        ),
        (
            "half an option",
            {
                let mut wire = good.clone();
                let length = wire.len();
                wire[length - 1] = 3;
                wire.extend([0, 10, 0]);
                wire
            },
            formerr(),
        ),
    ]
}

/// RFC 1035 sections 4.1 and 7.3, RFC 6891 section 7: a message that is no query gets FORMERR or nothing, never an answer, and the
/// listener goes on.
#[tokio::test]
async fn malformed_messages_are_refused_by_udp() {
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        for (what, message, fate) in messages() {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(door).await.unwrap();
            socket.send(&message).await.unwrap();
            // A query behind it on the same socket: it is answered, and before it comes what the message got.
            let next = Ask { id: 0x7777, ..Ask::new("a.odd.test.", rtype::A) };
            let mut replies = Vec::new();
            if matches!(fate, Fate::Silence) {
                socket.send(&next.bytes()).await.unwrap();
            }
            let mut room = [0; 4096];
            let length = qudag_kit::within(dns_timeout(), what, socket.recv(&mut room)).await.unwrap();
            replies.push(View::read(&room[..length]).unwrap_or_else(|why| panic!("{what}: {why}")));
            let reply = &replies[0];
            match fate {
                Fate::Silence => assert_eq!(reply.id, next.id, "{what} was answered"),
                Fate::Code(code) => {
                    assert_eq!((reply.rcode(), reply.answers.len()), (code, 0), "{what}");
                    assert_eq!(reply.id.to_be_bytes()[..], message[..2], "{what}: another id");
                    assert!(length <= message.len() + 11, "{what}: {length} bytes for {}", message.len());
                }
                Fate::Answer => assert_eq!(reply.data(rtype::A).len(), 1, "{what}"),
            }
        }
        let reply = odd.ask(By::Udp, &Ask::new("a.odd.test.", rtype::A)).await;
        assert_eq!(reply.rcode(), rcode::NOERROR);
    }
}

/// The same by TCP. What is no query at all ends the connection (RFC 7766 section 6.2.4 leaves that open), because its length cannot be
/// believed either.
#[tokio::test]
async fn malformed_messages_are_refused_by_tcp() {
    use tokio::io::AsyncReadExt;
    needs_program!("knotd");
    let odd = OddNames::start().await;
    for door in odd.doors() {
        for (what, message, fate) in messages() {
            let mut stream = tokio::net::TcpStream::connect(door).await.unwrap();
            let next = Ask { id: 0x7777, ..Ask::new("a.odd.test.", rtype::A) };
            let framed: Vec<u8> = [&message[..], &next.bytes()].iter().flat_map(|one| frame(one)).collect();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &framed).await.unwrap();
            if matches!(fate, Fate::Silence) {
                let ended = qudag_kit::within(dns_timeout(), what, stream.read(&mut [0; 100])).await;
                assert!(!matches!(ended, Ok(1..)), "{what} was answered");
                continue;
            }
            // Both are answered, in whichever order.
            let mut replies = Vec::new();
            for _ in 0..2 {
                let reply = qudag_kit::within(dns_timeout(), what, read_frame(&mut stream)).await;
                replies.push(View::read(&reply).unwrap());
            }
            let of = |id: u16| replies.iter().find(|reply| reply.id == id);
            assert_eq!(of(next.id).unwrap_or_else(|| panic!("{what}")).data(rtype::A).len(), 1);
            let reply = of(u16::from_be_bytes([message[0], message[1]])).unwrap_or_else(|| panic!("{what}"));
            match fate {
                Fate::Code(code) => assert_eq!((reply.rcode(), reply.answers.len()), (code, 0), "{what}"),
                _ => assert_eq!(reply.data(rtype::A).len(), 1, "{what}"),
            }
        }
    }
}

fn dns_timeout() -> std::time::Duration {
    qudag_kit::dns::TIMEOUT
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], message].concat()
}

async fn read_frame(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    use tokio::io::AsyncReadExt;
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

/// What the names of the zone look like in a failure.
#[test]
fn the_longest_name_has_255_bytes() {
    let name = dns_wire::name(&longest());
    assert_eq!(name.len(), 255);
    assert_eq!(shown(&name), longest());
}
