//! What a gateway does to header fields (RFC 9110 section 7.6, RFC 7239).

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Uri, Version};
use qudag_filter_api::FilterError;

/// The sidecar's pseudonym in `Via`.
const PSEUDONYM: &str = "qudag-sidecar";

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The host that a request is for, once the request is known to be one that may be forwarded.
///
/// # Errors
/// [`FilterError::Malformed`] when `Host` is missing on HTTP/1.1, repeated or not a host, or when the target is neither a path, nor `*`,
/// nor an `http` address (RFC 9112 sections 3.2 and 3.3).
pub(crate) fn check(request: &Parts) -> Result<Option<String>, FilterError> {
    let malformed = |why: &'static str| FilterError::Malformed(why.into());
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) if request.version == Version::HTTP_11 => return Err(malformed("no Host")),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(malformed("more than one Host")),
        (Some(host), None) if host.is_empty() => None,
        (Some(host), None) => {
            let host = host.to_str().ok().filter(|host| is_host(host)).ok_or(malformed("invalid Host"))?;
            Some(host.to_owned())
        }
    };
    let uri = &request.uri;
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path().starts_with('/') => Ok(host),
        (None, None) if uri.path() == "*" && request.method == Method::OPTIONS => Ok(host),
        // An address in the target outranks `Host` (RFC 9112 section 3.2.2); in HTTP/2 it is the host.
        (Some("http" | "https"), Some(authority)) if is_host(authority.as_str()) => {
            Ok(Some(authority.to_string()))
        }
        _ => Err(malformed("unacceptable request target")),
    }
}

/// Whether a text is HOST or HOST:PORT, without user information.
fn is_host(text: &str) -> bool {
    !text.contains('@') && text.parse::<Authority>().is_ok_and(|authority| !authority.host().is_empty())
}

/// The target for the node, in origin form (RFC 9112 section 3.2.1).
pub(crate) fn origin_form(uri: &Uri, method: &Method) -> String {
    match uri.path_and_query() {
        Some(target) => target.to_string(),
        None if method == Method::OPTIONS => "*".to_owned(),
        None => "/".to_owned(),
    }
}

/// The protocol that an HTTP/1.1 client asks to change to, where the sidecar passes that on.
///
/// HTTP/2 and TLS are not among them: the sidecar would no longer see the requests.
pub(crate) fn upgrade(request: &Parts) -> Option<HeaderValue> {
    let asked = request.version == Version::HTTP_11 && lists(&request.headers, CONNECTION, "upgrade");
    let protocol = request.headers.get(UPGRADE).filter(|_| asked && !has_body(&request.headers))?;
    let name = protocol.to_str().ok()?.split(['/', ',']).next()?.trim().to_ascii_lowercase();
    let alone = request.headers.get_all(UPGRADE).iter().count() == 1 && !protocol.as_bytes().contains(&b',');
    let known = !name.is_empty() && !matches!(name.as_str(), "h2c" | "h2" | "http" | "tls");
    (alone && known).then(|| protocol.clone())
}

/// Whether a request announces a body (RFC 9112 section 6.3).
pub(crate) fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// Whether a list field has a member, in any case of letters.
fn lists(headers: &HeaderMap, name: HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(member))
}

/// Removes the fields that concern one connection (RFC 9110 section 7.6.1), and what `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        // Fields that end to end parties rely on cannot be named away.
        .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHENTICATE,
        &PROXY_AUTHORIZATION,
        &TE,
        &TRAILER,
        &TRANSFER_ENCODING,
        &UPGRADE,
        &HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

/// Makes a client's request fields those of the sidecar's own request. `Host` and the framing are the terminal service's.
pub(crate) fn forward(request: &mut Parts, client: Option<IpAddr>, host: Option<&str>) {
    let upgrade = upgrade(request);
    remove_hop_by_hop(&mut request.headers);
    let headers = &mut request.headers;
    headers.remove(HOST);
    headers.remove(CONTENT_LENGTH);
    // hyper answers the expectation when the body is read.
    if headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        headers.remove(EXPECT);
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let mut add = |name: &HeaderName, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.append(name, value);
        }
    };
    let node = match client {
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => format!("\"[{ip}]\""),
        None => "unknown".to_owned(),
    };
    // A host has no character that would need an escape in a quoted string.
    let host = host.map(|host| format!(";host=\"{host}\"")).unwrap_or_default();
    add(&FORWARDED, format!("for={node}{host};proto=http"));
    if let Some(ip) = client {
        add(&X_FORWARDED_FOR, ip.to_string());
    }
    let version = match request.version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    add(&VIA, format!("{version} {PSEUDONYM}"));
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_host_is_the_targets_or_the_fields() {
        let host = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            check(&parts(request)).ok()
        };
        assert_eq!(host("/", &["a:1"]), Some(Some("a:1".to_owned())));
        assert_eq!(host("/", &["[::1]:80"]), Some(Some("[::1]:80".to_owned())));
        assert_eq!(host("http://b/", &["a"]), Some(Some("b".to_owned())));
        assert_eq!(host("/", &[""]), Some(None));
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("/", &["a/b"]),
            ("/", &["u@a"]),
            ("/", &["a b"]),
            ("/", &["a\""]),
            ("a:443", &["a:443"]),
            ("ftp://a/", &["a"]),
            ("http://u:p@a/", &["a"]),
            ("*", &["a"]),
        ] {
            assert_eq!(host(uri, hosts), None, "{uri} {hosts:?}");
        }
        let old = Request::builder().uri("/").version(Version::HTTP_10);
        assert_eq!(check(&parts(old)).unwrap(), None);
    }

    #[test]
    fn targets_are_in_origin_form() {
        for (uri, target) in
            [("http://a", "/"), ("http://a?b", "/?b"), ("http://a/b?c", "/b?c"), ("/b?", "/b?"), ("*", "*")]
        {
            assert_eq!(origin_form(&uri.parse().unwrap(), &Method::GET), target, "{uri}");
        }
    }

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let request = Request::builder()
            .uri("/")
            .header(HOST, "a")
            .header(CONNECTION, "close, X-Private ,content-length")
            .header(CONNECTION, "other")
            .header("x-private", "1")
            .header("other", "1")
            .header("keep-alive", "1")
            .header(TE, "trailers")
            .header(UPGRADE, "websocket")
            .header(PROXY_AUTHORIZATION, "secret")
            .header("proxy-connection", "keep-alive")
            .header(EXPECT, "100-Continue")
            .header(FORWARDED, "for=192.0.2.1")
            .header("x-kept", "1");
        let mut request = parts(request);
        forward(&mut request, Some("::1".parse().unwrap()), Some("a"));
        let mut seen: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                "forwarded: for=\"[::1]\";host=\"a\";proto=http",
                "forwarded: for=192.0.2.1",
                "via: 1.1 qudag-sidecar",
                "x-forwarded-for: ::1",
                "x-kept: 1",
            ]
        );
    }

    #[test]
    fn only_upgrades_that_hide_no_requests_are_passed_on() {
        let asks = |protocol: &str, length: &str, version| {
            let request = Request::builder().uri("/").version(version).header(HOST, "a");
            let request = request.header(CONNECTION, "keep-alive, Upgrade").header(UPGRADE, protocol);
            let mut request = parts(request.header(CONTENT_LENGTH, length));
            forward(&mut request, None, None);
            assert_eq!(request.headers.contains_key(UPGRADE), request.headers.contains_key(CONNECTION));
            request.headers.contains_key(UPGRADE)
        };
        assert!(asks("websocket", "0", Version::HTTP_11));
        assert!(!asks("websocket", "0", Version::HTTP_10));
        assert!(!asks("websocket", "5", Version::HTTP_11));
        for protocol in ["h2c", "H2C", "TLS/1.0", "HTTP/2.0", "websocket, h2c", "", " "] {
            assert!(!asks(protocol, "0", Version::HTTP_11), "{protocol}");
        }
    }
}
