//! `GET /tap/KIND`: flows as they end, one JSON object a line, until the client goes away or the sidecar stops.
//!
//! Beside flows there are lines `{"lost": N}`, where flows came faster than they were read, a last line `{"end": WHY}`, and an
//! empty line each second, which shows that the tap is alive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use qudag_filter_common::flow::{FlowFilter, KEYS, Tap};
use qudag_filter_common::{Audience, Drain, Seat, Seats};
use qudag_filter_db::TRANSACTIONS;
use qudag_filter_db::redis::BATCHES;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::error::ApiError;
use crate::generation::Kinds;

/// How many taps there may be at a time.
pub(super) const MOST: usize = 8;
/// How often a tap that has nothing to say shows that it is there, and how long flows that were lost stay unsaid.
const BEAT: Duration = Duration::from_secs(1);
/// How many bytes go out at once at most, roughly.
const CHUNK: usize = 16 * 1024;

/// The taps of one server.
#[derive(Clone, Debug)]
pub(super) struct Taps {
    seats: Seats,
    drain: Drain,
}

/// Left on a response whose body has no end of its own: when it was last asked for more.
#[derive(Clone, Debug)]
pub(super) struct Endless(Arc<Mutex<Instant>>);

impl Endless {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long nobody has read on.
    pub(super) fn idle(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Taps {
    pub(super) fn new(drain: Drain) -> Self {
        Self { seats: Seats::default(), drain }
    }

    /// Opens a tap of a kind of traffic. `query` is `KEY=VALUE&KEY!=VALUE…`; see [`FlowFilter`].
    pub(super) fn open(&self, kind: &str, query: Option<&str>) -> Result<Response, ApiError> {
        let mut kinds = Kinds::NAMES.iter().chain([&TRANSACTIONS, &BATCHES]);
        let kind = kinds.find(|known| **known == kind).ok_or_else(|| {
            let problem = format!("no kind of traffic {kind:?}; there are: {}", Kinds::NAMES.join(", "));
            ApiError::new(StatusCode::NOT_FOUND, problem)
        })?;
        let conditions = query.unwrap_or_default().split('&').filter(|condition| !condition.is_empty());
        let filter = FlowFilter::parse(conditions).map_err(|why| {
            ApiError::bad_request(why.to_string()).hint(format!("KEY=VALUE, KEY one of {}", KEYS.join(", ")))
        })?;
        let seat = self.seats.take(MOST).ok_or_else(|| {
            let problem = format!("{MOST} taps are open already");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, problem).hint("end one of them first")
        })?;
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let endless = Endless::new();
        let pour = Pour {
            tap: Audience::of(kind).tap(filter),
            drain: self.drain.clone(),
            beats,
            over: false,
            endless: endless.clone(),
            _seat: seat,
        };
        let lines = stream::unfold(pour, |mut pour| async move {
            let lines = pour.lines().await?;
            Some((Ok::<_, std::convert::Infallible>(lines), pour))
        });
        let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
        let mut response = (head, Body::from_stream(lines)).into_response();
        response.extensions_mut().insert(endless);
        Ok(response)
    }
}

/// What a tap's answer is made from.
struct Pour {
    tap: Tap,
    drain: Drain,
    beats: Interval,
    over: bool,
    endless: Endless,
    _seat: Seat,
}

impl Pour {
    /// The next lines; `None` after the last.
    async fn lines(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        self.endless.touch();
        let first = tokio::select! {
            biased;
            () = self.drain.stopping() => {
                self.over = true;
                None
            }
            flow = self.tap.next() => flow,
            _ = self.beats.tick() => None,
        };
        let mut text = Vec::new();
        let mut next = first;
        while let Some(flow) = next {
            line(&mut text, &*flow);
            next = if text.len() < CHUNK { self.tap.ready() } else { None };
        }
        let lost = self.tap.lost();
        if lost > 0 {
            line(&mut text, &json!({ "lost": lost }));
        }
        if self.over {
            line(&mut text, &json!({ "end": "the sidecar stops" }));
        }
        if text.is_empty() {
            text.push(b'\n');
        }
        Some(text.into())
    }
}

fn line(text: &mut Vec<u8>, value: &impl Serialize) {
    // What is written here can be written as JSON, and memory takes it.
    if serde_json::to_writer(&mut *text, value).is_ok() {
        text.push(b'\n');
    }
}
