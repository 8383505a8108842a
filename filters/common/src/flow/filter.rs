//! Which flows somebody wants to see.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Ended;
use crate::canonical;

/// The most conditions at once.
const MOST: usize = 16;

/// What a condition may ask for: `client`, `outcome` and the details that the kinds of traffic write.
pub const KEYS: [&str; 33] = [
    "application",
    "busy_ms",
    "client",
    "commands",
    "database",
    "error",
    "fallback",
    "filter",
    "flags",
    "listener",
    "method",
    "name",
    "names",
    "operations",
    "outcome",
    "own",
    "path",
    "peer",
    "pins",
    "rcode",
    "route",
    "source",
    "startup",
    "statement",
    "status",
    "text",
    "to",
    "transactions",
    "transport",
    "tunnel",
    "type",
    "user",
    "waited_ms",
];

/// Why a condition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterProblem {
    /// It is not `KEY=VALUE`.
    #[error("{0:?} is not KEY=VALUE or KEY!=VALUE")]
    Form(String),
    /// No flow has such a key.
    #[error("no flow has {0:?}; there are: {list}", list = KEYS.join(", "))]
    Key(String),
    /// The value cannot be a client's address.
    #[error("{0:?} is no client: an address, an address with a port, or `unix`")]
    Client(String),
    /// Too many conditions.
    #[error("more than {MOST} conditions")]
    Many,
}

/// Conditions on flows. Of several for one key one has to hold, of several keys each; those with `!=` hold all.
///
/// A detail fits when it is the value, whatever the case, or one of its words is: `source=upstream` fits `upstream 192.0.2.1:53`.
/// `name` also fits the names below it. `client` is an address with or without its port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    key: &'static str,
    not: bool,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    Ip(IpAddr),
    Socket(SocketAddr),
    Unix,
}

impl FlowFilter {
    /// Reads conditions of the form `KEY=VALUE` and `KEY!=VALUE`.
    ///
    /// # Errors
    /// When one is not of that form, or could never hold.
    pub fn parse<'a>(conditions: impl IntoIterator<Item = &'a str>) -> Result<Self, FilterProblem> {
        let conditions = conditions.into_iter().map(Condition::parse).collect::<Result<Vec<_>, _>>()?;
        if conditions.len() > MOST { Err(FilterProblem::Many) } else { Ok(Self(conditions)) }
    }

    /// Whether a flow is wanted.
    pub(super) fn fits(&self, flow: &Ended<'_>) -> bool {
        self.0.iter().all(|condition| {
            if condition.not {
                return !condition.fits(flow);
            }
            self.0.iter().any(|other| !other.not && other.key == condition.key && other.fits(flow))
        })
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, FilterProblem> {
        let (key, value) = text.split_once('=').ok_or_else(|| FilterProblem::Form(text.to_owned()))?;
        let (key, not) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
        let known = KEYS.iter().find(|known| **known == key);
        let key = known.ok_or_else(|| FilterProblem::Key(key.to_owned()))?;
        let value = match (*key, value.parse::<IpAddr>(), value.parse::<SocketAddr>()) {
            ("client", Ok(ip), _) => Value::Ip(ip.to_canonical()),
            ("client", _, Ok(socket)) => Value::Socket(canonical(socket)),
            ("client", ..) if value == "unix" => Value::Unix,
            ("client", ..) => return Err(FilterProblem::Client(value.to_owned())),
            ("name", ..) => Value::Text(value.trim_end_matches('.').to_owned()),
            _ => Value::Text(value.to_owned()),
        };
        Ok(Self { key, not, value })
    }

    fn fits(&self, flow: &Ended<'_>) -> bool {
        match (&self.value, flow.client) {
            (Value::Ip(ip), client) => client.is_some_and(|client| client.ip().to_canonical() == *ip),
            (Value::Socket(socket), client) => client.is_some_and(|client| canonical(client) == *socket),
            (Value::Unix, client) => client.is_none(),
            (Value::Text(value), _) if self.key == "outcome" => flow.outcome.eq_ignore_ascii_case(value),
            (Value::Text(value), _) => {
                flow.details.get(self.key).is_some_and(|detail| fits(self.key, detail, value))
            }
        }
    }
}

fn fits(key: &str, detail: &str, value: &str) -> bool {
    if key == "name" {
        let name = detail.strip_suffix('.').unwrap_or(detail);
        // On bytes: what a peer sent may be cut anywhere.
        let (name, value) = (name.as_bytes(), value.as_bytes());
        let Some(start) = name.len().checked_sub(value.len()) else { return false };
        let (below, end) = name.split_at(start);
        return end.eq_ignore_ascii_case(value)
            && (below.is_empty() || value.is_empty() || below.ends_with(b"."));
    }
    detail.eq_ignore_ascii_case(value) || detail.split(' ').any(|word| word.eq_ignore_ascii_case(value))
}

impl fmt::Display for FlowFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Condition { key, not, value }) in self.0.iter().enumerate() {
            let (space, not) = (if i == 0 { "" } else { " " }, if *not { "!" } else { "" });
            match value {
                Value::Text(value) => write!(f, "{space}{key}{not}={value}")?,
                Value::Ip(ip) => write!(f, "{space}{key}{not}={ip}")?,
                Value::Socket(socket) => write!(f, "{space}{key}{not}={socket}")?,
                Value::Unix => write!(f, "{space}{key}{not}=unix")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::Details;

    fn fits(conditions: &[&str], client: Option<&str>, details: &[(&'static str, &str)]) -> bool {
        let mut all = Details::default();
        for (key, value) in details {
            all.add(key, value);
        }
        let flow = Ended {
            client: client.map(|client| client.parse().unwrap()),
            outcome: "ok",
            duration: Duration::ZERO,
            bytes_up: 0,
            bytes_down: 0,
            details: &all,
        };
        FlowFilter::parse(conditions.iter().copied()).unwrap().fits(&flow)
    }

    #[test]
    fn a_name_means_itself_and_what_is_below() {
        let name = |condition: &str, name| fits(&[condition], None, &[("name", name)]);
        assert!(name("name=example.com", "example.com."));
        assert!(name("name=Example.COM.", "www.eXample.com"));
        assert!(!name("name=example.com", "badexample.com"));
        assert!(!name("name=www.example.com", "example.com"));
        assert!(name("name!=example.com", "example.org"));
        assert!(!fits(&["name=example.com"], None, &[]), "a flow without a name has no such name");
    }

    #[test]
    fn one_of_each_key_and_none_of_the_excluded() {
        let flow = [("source", "upstream 192.0.2.1:53"), ("type", "A"), ("rcode", "NOERROR")];
        for (conditions, wanted) in [
            (&[][..], true),
            (&["source=upstream"], true),
            (&["source=192.0.2.1:53"], true),
            (&["source=cache"], false),
            (&["source=cache", "source=upstream"], true),
            (&["source=upstream", "type=AAAA"], false),
            (&["source=upstream", "type=a"], true),
            (&["outcome=ok", "type!=AAAA", "type!=TXT"], true),
            (&["outcome!=ok"], false),
            (&["rcode!=NOERROR", "type=A"], false),
        ] {
            assert_eq!(fits(conditions, None, &flow), wanted, "{conditions:?}");
        }
    }

    #[test]
    fn a_client_is_an_address_with_or_without_its_port() {
        let client = |condition: &str, client| fits(&[condition], client, &[]);
        assert!(client("client=10.0.0.1", Some("10.0.0.1:5")));
        assert!(client("client=10.0.0.1", Some("[::ffff:10.0.0.1]:5")));
        assert!(client("client=10.0.0.1:5", Some("10.0.0.1:5")));
        assert!(!client("client=10.0.0.1:6", Some("10.0.0.1:5")));
        assert!(!client("client=10.0.0.1", None));
        assert!(client("client=unix", None));
        assert!(client("client!=unix", Some("[::1]:1")));
    }

    #[test]
    fn what_could_never_hold_is_refused() {
        let problem = |text| FlowFilter::parse([text]).unwrap_err();
        assert_eq!(problem("name"), FilterProblem::Form("name".into()));
        assert_eq!(problem("nam=x"), FilterProblem::Key("nam".into()));
        assert_eq!(problem("client=x"), FilterProblem::Client("x".into()));
        assert_eq!(FlowFilter::parse(["type=A"; MOST + 1]), Err(FilterProblem::Many));
        assert!(KEYS.is_sorted());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(condition in "\\PC{0,40}", detail in "\\PC{0,40}", value in "\\PC{0,20}") {
            let _ = FlowFilter::parse([condition.as_str()]);
            for key in ["name", "source"] {
                let _ = fits(&[&format!("{key}={value}")], None, &[(key, &detail)]);
            }
        }

        /// What is shown is what was meant.
        #[test]
        fn filters_are_shown_as_they_are_read(key in proptest::sample::select(KEYS.to_vec()), not: bool, value in "[a-z.]{1,9}") {
            prop_assume!(key != "client");
            let text = format!("{key}{}={}", if not { "!" } else { "" }, value.trim_end_matches('.'));
            let filter = FlowFilter::parse([text.as_str()]).unwrap();
            prop_assert_eq!(filter.to_string(), text);
        }
    }
}
