//! What every request passes before and after its route: the checks that need no token, the headers of every answer,
//! the count and the audit log.

use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::counter;

use super::auth::{Auth, Peer, Role};
use super::body::Asked;
use super::error::{ApiError, Why};
use super::host::Authority;

/// The role that a request turned out to have, for the count and the audit log.
#[derive(Clone, Debug, Default)]
struct Known(Arc<OnceLock<Role>>);

/// The only query that is understood, but for those of taps.
const ORIGIN_QUERY: (&str, &str) = ("/config", "origin=true");
/// Where conditions on flows are taken.
const TAPS: &str = "/tap/";

/// The outermost layer.
pub(super) async fn guard(State(auth): State<Arc<Auth>>, mut request: Request, next: Next) -> Response {
    let known = Known::default();
    let asked = Asked::default();
    let peer = request.extensions().get::<Peer>().copied();
    let change = !is_read(request.method());
    let action = format!("{} {}", request.method(), request.uri().path());
    // Set by the router from the route's own pattern, so that the label has a closed set of values.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let may_enter = match &peer {
        Some(peer) => may_enter(&request, peer, &auth),
        None => Err(ApiError::forbidden("unknown peer")),
    };
    let mut response = match may_enter {
        Ok(()) => {
            request.extensions_mut().insert(known.clone());
            request.extensions_mut().insert(asked.clone());
            let response = next.run(request).await;
            if response.status() == StatusCode::METHOD_NOT_ALLOWED { in_json(response) } else { response }
        }
        Err(error) => error.into_response(),
    };

    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

    let role = known.0.get().map_or("none", |role| role.label());
    let status = response.status();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    let labels = [("route", route), ("code", status.as_u16().to_string()), ("role", role.to_owned())];
    counter!("qudag_sidecar_admin_requests_total", &labels).increment(1);
    if change {
        let who = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let body = match labels.first() {
            // What is refused may be a secret that was written where only a reference may be.
            Some((_, route)) if route == "/settings" && !status.is_success() => "(not shown)",
            _ => asked.0.get().map_or("", String::as_str),
        };
        let why = response.extensions().get::<Why>().map_or("", |why| why.0.as_str());
        // As strings, which are logged in quotes: what a client sent must not be able to write a line of its own.
        if status.is_success() {
            tracing::info!(target: "audit", who, role, action, body, code = status.as_u16(), "accepted");
        } else {
            tracing::warn!(target: "audit", who, role, action, body, code = status.as_u16(), why, "refused");
        }
    }
    response
}

/// Lets through who may at least read.
pub(super) async fn may_read(auth: State<Arc<Auth>>, request: Request, next: Next) -> Response {
    with_role(Role::Read, &auth, request, next).await
}

/// Lets through who may write.
pub(super) async fn may_write(auth: State<Arc<Auth>>, request: Request, next: Next) -> Response {
    with_role(Role::Write, &auth, request, next).await
}

/// Lets everybody through on a loopback address, and who may read elsewhere.
pub(super) async fn may_probe(auth: State<Arc<Auth>>, request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>().is_some_and(|peer| peer.loopback) {
        return next.run(request).await;
    }
    with_role(Role::Read, &auth, request, next).await
}

async fn with_role(needed: Role, auth: &Auth, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let role = only_one(request.headers(), header::AUTHORIZATION)
        .ok()
        .and_then(|token| peer?.role(token.map(HeaderValue::as_bytes), auth));
    if let (Some(role), Some(known)) = (role, request.extensions().get::<Known>()) {
        let _ = known.0.set(role);
    }
    match role {
        Some(role) if role >= needed => next.run(request).await,
        Some(_) => ApiError::forbidden("this token may only read").into_response(),
        None if peer.is_some_and(|peer| peer.user.is_some()) => {
            ApiError::forbidden("only the sidecar's own user and root may use this socket").into_response()
        }
        None => ApiError::new(StatusCode::UNAUTHORIZED, "a valid token is needed")
            .hint("send the header `Authorization: Bearer TOKEN`")
            .into_response(),
    }
}

fn may_enter(request: &Request, peer: &Peer, auth: &Auth) -> Result<(), ApiError> {
    let headers = request.headers();
    exact_path(request.uri())?;
    if let Some((_, local)) = peer.tcp {
        let host = only_one(headers, header::HOST)?;
        let host = host.ok_or_else(|| ApiError::bad_request("no Host header"))?;
        let host = host
            .to_str()
            .ok()
            .filter(|host| Authority::parse(host).is_some_and(|host| host.is_ours(local, auth.names())));
        let host = host.ok_or_else(|| {
            ApiError::forbidden("the Host header names another server")
                .hint("use the address that the sidecar listens on, or localhost")
        })?;
        same_origin(headers, Some(host))?;
    } else {
        same_origin(headers, None)?;
    }
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if is_read(request.method()) && has_body {
        return Err(ApiError::bad_request("a GET has no body"));
    }
    Ok(())
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// Paths are compared as they come; whatever another program on the way could read in another way is unknown here.
fn exact_path(uri: &Uri) -> Result<(), ApiError> {
    let path = uri.path();
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'.' | b'-'));
    let names_dots = path.split('/').any(|segment| segment == "." || segment == "..");
    if uri.authority().is_some() || !plain || names_dots || path.contains("//") {
        return Err(ApiError::not_found());
    }
    match uri.query() {
        None => Ok(()),
        Some(query) if (path, query) == ORIGIN_QUERY => Ok(()),
        Some(query) if path.starts_with(TAPS) && is_plain_query(query) => Ok(()),
        Some(_) if path.starts_with(TAPS) => {
            Err(ApiError::bad_request("conditions are visible ASCII without escapes"))
        }
        Some(_) => Err(ApiError::bad_request("this route takes no query")),
    }
}

/// Whether a query can be read in one way only: nothing in it is an escape.
pub(crate) fn is_plain_query(query: &str) -> bool {
    query.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/[]=!&".contains(&b))
}

/// A browser says where a request comes from; only our own origin may send one. Programs say nothing.
fn same_origin(headers: &HeaderMap, host: Option<&str>) -> Result<(), ApiError> {
    let ours = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        origin.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
    };
    if headers.get_all(header::ORIGIN).iter().any(|origin| !ours(origin)) {
        return Err(ApiError::forbidden("requests from other origins are refused"));
    }
    let site_is_fine = |site: &HeaderValue| site == "same-origin" || site == "none";
    if headers.get_all("sec-fetch-site").iter().any(|site| !site_is_fine(site)) {
        return Err(ApiError::forbidden("requests from other sites are refused"));
    }
    Ok(())
}

fn only_one(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&HeaderValue>, ApiError> {
    let mut values = headers.get_all(&name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(ApiError::bad_request(format!("more than one {name} header"))),
    }
}

fn in_json(response: Response) -> Response {
    let allow = response.headers().get(header::ALLOW).cloned();
    let error = match allow.as_ref().and_then(|allow| allow.to_str().ok()) {
        Some(allow) => format!("this route takes {allow} only"),
        None => "this route does not take this method".to_owned(),
    };
    let mut response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error).into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
