//! What may differ between the sidecar and Unbound, and why.

use std::fmt;

use qudag_kit::dns_wire::{Ask, View, flag, rcode, rtype};

use crate::questions;

/// Something in which two replies to one query differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// One of them is missing.
    Silence,
    /// The response codes: ours and theirs.
    Code(u16, u16),
    /// The answer sections, as sets.
    Answers,
    /// The SOA records in the authority sections.
    Soa,
    /// A flag of the header: whether it is set in ours.
    Flag(u16, bool),
    /// EDNS is there or not, its version, or DO.
    Edns,
    /// The question that comes back.
    Question,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag, ours) => write!(f, "flag {flag:#06x} set by us: {ours}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Every reason that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Both are right about their own length.
    OtherLength,
    /// Another operation than QUERY.
    Operation,
    /// The version of EDNS comes before everything else.
    Version,
    /// A question that cannot be asked.
    NoSuchQuestion,
    /// `ANY`.
    Any,
    /// Transfers of zones.
    Transfer,
    /// Types that are not data, unknown to us.
    MetaType,
    /// Class ANY, or one that the authority does not have.
    OtherClass,
    /// A question without RD.
    NoRecursion,
    /// The authority refuses.
    RefusedByServer,
    /// The server does not follow an alias to its end.
    AliasOfServer,
    /// DNSSEC's own records, which stand beside an alias.
    BesideAlias,
    /// The authority gives some signatures, not all; Unbound adds those of other answers.
    SomeSignatures,
    /// More aliases than Unbound follows.
    LongChain,
    /// Unbound limits its own errors.
    ErrorsLimited,
    /// What the header of a refusal says besides the code.
    HeaderOfRefusal,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::OtherLength,
        Self::Operation,
        Self::Version,
        Self::NoSuchQuestion,
        Self::Any,
        Self::Transfer,
        Self::MetaType,
        Self::OtherClass,
        Self::NoRecursion,
        Self::RefusedByServer,
        Self::AliasOfServer,
        Self::BesideAlias,
        Self::SomeSignatures,
        Self::LongChain,
        Self::ErrorsLimited,
        Self::HeaderOfRefusal,
    ];

    /// The reason in words, with what it rests on.
    pub fn why(self) -> &'static str {
        match self {
            Self::OtherLength => {
                "replies of different lengths, each truncated exactly when it does not fit (RFC 6891 6.2.3)"
            }
            Self::Operation => {
                "NOTIMP without the question, which need not have the form of one; Unbound says REFUSED to NOTIFY and repeats \
                 the question (RFC 1035 4.1.1, RFC 1996 3.12)"
            }
            Self::Version => "BADVERS comes first, whatever is asked (RFC 6891 6.1.3)",
            Self::NoSuchQuestion => {
                "FORMERR to types 0 and OPT, which no question has (RFC 6895 3.1, RFC 6891 6.1.1)"
            }
            Self::Any => "ANY is answered with HINFO; Unbound collects everything (RFC 8482 4.2)",
            Self::Transfer => "NOTIMP to transfers of zones, REFUSED by Unbound (RFC 5936 2.2.1)",
            Self::MetaType => {
                "types that nobody knows are passed on; Unbound says FORMERR to 128 to 254 (RFC 3597 3, RFC 6895 3.1)"
            }
            Self::OtherClass => {
                "other classes are passed on as they are, and what the server says is the answer (RFC 3597 2)"
            }
            Self::NoRecursion => {
                "without RD the server is asked without RD; Unbound refuses to be snooped on (RFC 1034 4.3.1, RFC 8499 6)"
            }
            Self::RefusedByServer => {
                "the server's REFUSED is passed on where Unbound says SERVFAIL (RFC 1035 4.1.1)"
            }
            Self::AliasOfServer => {
                "the authority stops behind a few aliases and at its zones' borders; Unbound asks on itself, the sidecar leaves \
                 that to its resolver (RFC 1034 5.3.1)"
            }
            Self::BesideAlias => {
                "RRSIG and NSEC of an alias are the alias's own; Unbound, with the alias in its cache, follows it (RFC 4035 2.5)"
            }
            Self::SomeSignatures => {
                "a question for RRSIG is answered with some signatures, as the authority chose them; Unbound adds what it has seen in \
                 other answers (RFC 8482 4.1, for ANY)"
            }
            Self::LongChain => {
                "Unbound gives up behind eleven aliases; the server's part of the chain is passed on (RFC 1034 3.6.2)"
            }
            Self::ErrorsLimited => {
                "Unbound sends at most a hundred errors a second and drops the rest; the sidecar's errors are limited with all other \
                 queries, per client (filter rate_limit)"
            }
            Self::HeaderOfRefusal => {
                "Unbound's refusals repeat the query's header and leave RA and EDNS out (RFC 6891 7 wants EDNS)"
            }
        }
    }

    /// A short name, as docs/dns-standards.md has it.
    pub fn label(self) -> String {
        let mut label = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !label.is_empty() {
                label.push('-');
            }
            label.push(letter.to_ascii_lowercase());
        }
        label
    }

    fn of(ask: &Ask, ours: Option<&View>, theirs: Option<&View>, difference: Difference) -> Option<Self> {
        let version = ask.edns.as_ref().map_or(0, |edns| edns.version);
        let (ours, Some(theirs)) = (ours?, theirs) else {
            let odd =
                ask.flags & 0x7800 != 0 || version > 0 || matches!(ask.rtype, 0 | rtype::OPT | 128..=254);
            return odd.then_some(Self::ErrorsLimited);
        };
        let refused = |view: &View| !matches!(view.rcode(), rcode::NOERROR | rcode::NXDOMAIN);
        if ask.flags & 0x7800 != 0 {
            return (ours.rcode() == rcode::NOTIMP && refused(theirs)).then_some(Self::Operation);
        }
        if version > 0 && ours.rcode() == rcode::BADVERS {
            return Some(Self::Version);
        }
        let header = matches!(
            difference,
            Difference::Flag(flag::RA, true) | Difference::Flag(flag::AD | flag::Z, false)
        );
        if refused(theirs) && (header || difference == Difference::Edns && theirs.edns.is_none()) {
            return Some(Self::HeaderOfRefusal);
        }
        match ask.rtype {
            0 | rtype::OPT => return (ours.rcode() == rcode::FORMERR).then_some(Self::NoSuchQuestion),
            rtype::ANY => return (ours.data(rtype::HINFO) == [b"\x07RFC8482\0"]).then_some(Self::Any),
            rtype::AXFR | rtype::IXFR => return (ours.rcode() == rcode::NOTIMP).then_some(Self::Transfer),
            _ => {}
        }
        if ask.flags & flag::RD == 0 && theirs.rcode() == rcode::REFUSED {
            return Some(Self::NoRecursion);
        }
        if matches!(ask.rtype, 128..=254) && theirs.rcode() == rcode::FORMERR {
            return Some(Self::MetaType);
        }
        if difference == Difference::Code(rcode::REFUSED, rcode::SERVFAIL) {
            return Some(if ask.class == 1 { Self::RefusedByServer } else { Self::OtherClass });
        }
        let asked = ask.name.to_ascii_lowercase();
        let is_alias = |view: &View| {
            view.answers.iter().any(|record| record.rtype == rtype::CNAME && record.owner == asked)
        };
        if matches!(ask.rtype, rtype::RRSIG | rtype::NSEC) && is_alias(theirs) && !is_alias(ours) {
            return Some(Self::BesideAlias);
        }
        let signatures = |view: &View| view.answers.iter().all(|record| record.rtype == rtype::RRSIG);
        if ask.rtype == rtype::RRSIG
            && difference == Difference::Answers
            && !ours.answers.is_empty()
            && signatures(theirs)
            && View::set(&ours.answers).is_subset(&View::set(&theirs.answers))
        {
            return Some(Self::SomeSignatures);
        }
        let gave_up = theirs.rcode() == rcode::SERVFAIL && theirs.answers.is_empty();
        let own_data = matches!(ask.rtype, rtype::RRSIG | rtype::NSEC) && questions::is_long_chain(&asked);
        if gave_up && (Self::is_cut(ours) || own_data) {
            return Some(Self::LongChain);
        }
        if Self::is_cut(ours) && View::set(&ours.answers).is_subset(&View::set(&theirs.answers)) {
            return matches!(difference, Difference::Answers | Difference::Soa | Difference::Code(..))
                .then_some(Self::AliasOfServer);
        }
        None
    }

    /// Whether the answer ends with an alias whose end is neither there nor denied.
    fn is_cut(view: &View) -> bool {
        let Some(last) = view.answers.iter().rfind(|record| record.rtype == rtype::CNAME) else {
            return false;
        };
        !view.answers.iter().any(|record| record.owner == last.data)
            && !view.authorities.iter().any(|record| record.rtype == rtype::SOA)
    }
}

/// All differences, each with its reason if it has one.
pub fn differences(
    ask: &Ask,
    ours: Option<&View>,
    theirs: Option<&View>,
) -> Vec<(Difference, Option<Reason>)> {
    let found = match (ours, theirs) {
        (None, None) => Vec::new(),
        (Some(ours), Some(theirs)) => between(ours, theirs),
        _ => vec![Difference::Silence],
    };
    found.into_iter().map(|it| (it, Reason::of(ask, ours, theirs, it))).collect()
}

fn between(ours: &View, theirs: &View) -> Vec<Difference> {
    let mut found = Vec::new();
    if ours.rcode() != theirs.rcode() {
        found.push(Difference::Code(ours.rcode(), theirs.rcode()));
    }
    if View::set(&ours.answers) != View::set(&theirs.answers) {
        found.push(Difference::Answers);
    }
    let soa = |view: &View| {
        let mut soa = View::set(&view.authorities);
        soa.retain(|record| record.rtype == rtype::SOA);
        soa
    };
    if soa(ours) != soa(theirs) {
        found.push(Difference::Soa);
    }
    for flag in [flag::AA, flag::TC, flag::RD, flag::RA, flag::Z, flag::AD, flag::CD, 0x7800] {
        if ours.flags & flag != theirs.flags & flag {
            found.push(Difference::Flag(flag, ours.has(flag)));
        }
    }
    let edns = |view: &View| view.edns.as_ref().map(|edns| (edns.version, edns.flags));
    if edns(ours) != edns(theirs) {
        found.push(Difference::Edns);
    }
    if ours.question != theirs.question {
        found.push(Difference::Question);
    }
    found
}
