//! DNS over HTTPS (RFC 8484) on one HTTP/2 connection.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AGE, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::message::Failure;
use crate::wire::{parse_reply, patch_ttls, rtype};

const MESSAGE: HeaderValue = HeaderValue::from_static("application/dns-message");
/// A connection on which queries wait is asked whether it is alive after this time without a frame.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The longest message (RFC 1035 section 4.2.2).
const MAX_MESSAGE: usize = 65_535;

/// Our end of a connection. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Https {
    sender: SendRequest<Full<Bytes>>,
    uri: http::Uri,
    task: tokio::task::AbortHandle,
}

impl Drop for Https {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Https {
    /// Takes over a stream on which HTTP/2 was agreed.
    pub(super) async fn new<S>(stream: S, uri: &str) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let uri = uri.parse().map_err(|why| Failure::Http(format!("{uri}: {why}")))?;
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(failure)?;
        let task = tokio::spawn(async move {
            // How it ends is told to each query that waits.
            let _ended = connection.await;
        });
        Ok(Self { sender, uri, task: task.abort_handle() })
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks. The message has id 0, for the sake of caches (section 4.1).
    pub(super) async fn exchange(&self, message: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(CONTENT_TYPE, MESSAGE)
            .header(ACCEPT, MESSAGE)
            .body(Full::from(message))
            .map_err(|why| Failure::Http(why.to_string()))?;
        let response = self.sender.clone().send_request(request).await.map_err(failure)?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Http(format!("status {}", response.status())));
        }
        let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with(MESSAGE.as_bytes()) {
            return Err(Failure::Http(format!("content of type {:?}", String::from_utf8_lossy(kind))));
        }
        let age = response.headers().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0);
        let body = Limited::new(response.into_body(), MAX_MESSAGE).collect().await;
        let body = body.map_err(|why| match why.downcast::<hyper::Error>() {
            Ok(why) => failure(*why),
            Err(why) => Failure::Http(why.to_string()),
        })?;
        Ok(aged(body.to_bytes().into(), age))
    }
}

/// A message that an HTTP cache has held for so many seconds (section 5.1).
fn aged(mut message: Vec<u8>, age: u32) -> Vec<u8> {
    let Some(reply) = parse_reply(&message).filter(|_| age > 0) else { return message };
    let times = reply.records.iter().filter(|record| record.rtype != rtype::OPT);
    let times: Vec<_> = times.filter_map(|record| u16::try_from(record.ttl_at).ok()).collect();
    patch_ttls(&mut message, times, |ttl| ttl.saturating_sub(age));
    message
}

fn failure(why: hyper::Error) -> Failure {
    // A stream that the server has not looked at can be asked again elsewhere, like one of a connection that ended.
    if why.is_canceled() || why.is_closed() || why.is_incomplete_message() {
        return Failure::Closed;
    }
    let mut source = std::error::Error::source(&why);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return Failure::Network(std::io::Error::new(io.kind(), io.to_string()));
        }
        source = inner.source();
    }
    match std::error::Error::source(&why) {
        Some(inner) => Failure::Http(format!("{why}: {inner}")),
        None => Failure::Http(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{query_wire, reply_wire};

    #[test]
    fn the_time_in_a_cache_on_the_way_counts() {
        let query = query_wire("a.example", rtype::A, None);
        let data: &[u8] = &[192, 0, 2, 1];
        let reply = reply_wire(&query, 0, &[(rtype::A, 60, data), (rtype::A, 5, data)]);
        let ttls = |message: &[u8]| -> Vec<_> {
            parse_reply(message).unwrap().records.iter().map(|record| record.ttl).collect()
        };
        assert_eq!(ttls(&aged(reply.clone(), 0)), [60, 5]);
        assert_eq!(ttls(&aged(reply, 10)), [50, 0]);
        assert_eq!(aged(vec![1, 2, 3], 10), [1, 2, 3]);
    }
}
