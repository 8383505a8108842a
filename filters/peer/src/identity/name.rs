//! Who a sidecar is: the URI in its certificate.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::certificate::Facts;

/// The most bytes a name has (SPIFFE-ID section 2.3).
const MAX_NAME: usize = 2048;
/// The most bytes the trust domain of a SPIFFE ID has (section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;
/// The scheme of SPIFFE IDs.
const SPIFFE: &str = "spiffe";

/// The name of a sidecar: a URI with a scheme, such as `spiffe://example.org/node-a` or `urn:uuid:…`. It stands in the certificate
/// as its only subject alternative name of that type.
///
/// Two names are equal when their bytes are; only the scheme is read without regard to case (RFC 3986 section 3.1). A name with
/// the scheme `spiffe` has to be a SPIFFE ID (SPIFFE-ID section 2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(Arc<str>);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAName {
    /// RFC 3986 section 3: a scheme stands first.
    #[error("not a URI: it begins with no scheme, as spiffe: is one")]
    NoScheme,
    /// RFC 3986 section 2.
    #[error("not a URI: {0:?} has to be percent-encoded")]
    Character(char),
    /// RFC 3986 section 2.1.
    #[error("not a URI: two hexadecimal digits have to follow %")]
    Percent,
    /// Nothing behind the scheme.
    #[error("not a URI: nothing follows the scheme")]
    Empty,
    /// SPIFFE-ID section 2.3.
    #[error("longer than {MAX_NAME} bytes")]
    Long,
    /// SPIFFE-ID section 2.1.
    #[error(
        "not a SPIFFE ID: behind spiffe:// stands a trust domain of small letters, digits, dots, hyphens and underscores"
    )]
    TrustDomain,
    /// SPIFFE-ID section 2.2.
    #[error(
        "not a SPIFFE ID: the path has segments of letters, digits, dots, hyphens and underscores, none of them empty, . or .."
    )]
    Path,
}

impl PeerName {
    /// The URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        if text.len() > MAX_NAME {
            return Err(NotAName::Long);
        }
        let (scheme, rest) = text.split_once(':').ok_or(NotAName::NoScheme)?;
        let mut letters = scheme.bytes();
        let good = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|letter| letter.is_ascii_alphanumeric() || b"+-.".contains(&letter));
        if !good {
            return Err(NotAName::NoScheme);
        }
        if rest.is_empty() {
            return Err(NotAName::Empty);
        }
        check_characters(rest)?;
        let scheme = scheme.to_ascii_lowercase();
        if scheme == SPIFFE {
            check_spiffe(rest)?;
        }
        Ok(Self(format!("{scheme}:{rest}").into()))
    }
}

/// RFC 3986 section 2: unreserved and reserved characters, and percent-encoded octets.
fn check_characters(rest: &str) -> Result<(), NotAName> {
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match character {
            '%' => {
                let digits = characters.by_ref().take(2).filter(char::is_ascii_hexdigit).count();
                if digits != 2 {
                    return Err(NotAName::Percent);
                }
            }
            c if c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=".contains(c) => {}
            other => return Err(NotAName::Character(other)),
        }
    }
    Ok(())
}

fn check_spiffe(rest: &str) -> Result<(), NotAName> {
    let rest = rest.strip_prefix("//").ok_or(NotAName::TrustDomain)?;
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let is_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if domain.is_empty() || domain.len() > MAX_TRUST_DOMAIN || !domain.bytes().all(is_domain) {
        return Err(NotAName::TrustDomain);
    }
    let is_segment = |segment: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(plain)
    };
    match path.is_none_or(|path| path.split('/').all(is_segment)) {
        true => Ok(()),
        false => Err(NotAName::Path),
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PeerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|why| format!("{text:?}: {why}"))
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl JsonSchema for PeerName {
    fn schema_name() -> Cow<'static, str> {
        "PeerName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "The URI in a sidecar's certificate, a SPIFFE ID for instance.",
            "pattern": "^[A-Za-z][A-Za-z0-9+.-]*:.+$",
            "maxLength": 2048,
            "examples": ["spiffe://example.org/node-a"]
        })
    }
}

/// The name of the other side of an established connection; `None` before the handshake is over.
///
/// On a server that is when `Connecting` has resolved; the handshake has checked the name by then.
pub fn peer_name(connection: &quinn::Connection) -> Option<PeerName> {
    use rustls::pki_types::CertificateDer;
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Facts::of(chain.first()?).ok()?.name().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<String, NotAName> {
        text.parse::<PeerName>().map(|name| name.to_string())
    }

    #[test]
    fn uris_are_names() {
        for name in [
            "spiffe://example.org/node-a",
            "spiffe://example.org",
            "spiffe://qudag/ns/default/sa/Peer_1.x",
            "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "https://example.org:443/a?b=c#d",
            "x:%41",
        ] {
            assert_eq!(parsed(name).as_deref(), Ok(name));
        }
        assert_eq!(parsed("SPIFFE://example.org/a").as_deref(), Ok("spiffe://example.org/a"));
    }

    #[test]
    fn what_is_no_uri_is_refused_with_the_reason() {
        let long = format!("x:{}", "a".repeat(MAX_NAME - 1));
        for (name, why) in [
            ("", NotAName::NoScheme),
            ("node-a", NotAName::NoScheme),
            ("1a:b", NotAName::NoScheme),
            ("a b:c", NotAName::NoScheme),
            (":c", NotAName::NoScheme),
            ("urn:", NotAName::Empty),
            ("urn:a b", NotAName::Character(' ')),
            ("urn:é", NotAName::Character('é')),
            ("urn:a\n", NotAName::Character('\n')),
            ("urn:%4", NotAName::Percent),
            ("urn:%zz", NotAName::Percent),
            (&long, NotAName::Long),
            ("spiffe:a", NotAName::TrustDomain),
            ("spiffe:///a", NotAName::TrustDomain),
            ("spiffe://Example.org/a", NotAName::TrustDomain),
            ("spiffe://a@example.org/a", NotAName::TrustDomain),
            ("spiffe://example.org:1/a", NotAName::TrustDomain),
            ("spiffe://example.org?x", NotAName::TrustDomain),
            ("spiffe://example.org/", NotAName::Path),
            ("spiffe://example.org/a/", NotAName::Path),
            ("spiffe://example.org/a//b", NotAName::Path),
            ("spiffe://example.org/../b", NotAName::Path),
            ("spiffe://example.org/a?b", NotAName::Path),
            ("spiffe://example.org/%41", NotAName::Path),
        ] {
            assert_eq!(parsed(name), Err(why), "{name}");
        }
        assert!(parsed(&long[..MAX_NAME]).is_ok());
    }

    #[test]
    fn it_is_a_string_in_the_configuration() {
        let name: PeerName = serde_json::from_str(r#""spiffe://a/b""#).unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), r#""spiffe://a/b""#);
        let why = serde_json::from_str::<PeerName>(r#""node-a""#).unwrap_err().to_string();
        assert!(why.contains("node-a") && why.contains("scheme"), "{why}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_reads_the_same_again(text in ".{0,40}|spiffe://[a-zA-Z./_-]{0,20}") {
            if let Ok(name) = text.parse::<PeerName>() {
                prop_assert!(name.as_str().is_ascii());
                prop_assert_eq!(name.as_str().parse::<PeerName>(), Ok(name));
            }
        }
    }
}
