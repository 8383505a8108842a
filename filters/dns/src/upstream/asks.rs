//! The questions of one query, and what their ends tell about the servers.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use super::member::{Again, Means, Member, Outcome};
use super::message::Failure;
use crate::wire::Parsed;

/// A server that was asked.
pub(super) struct Ask {
    pub(super) member: Arc<Member>,
    pub(super) start: Instant,
    pub(super) again: Again,
    /// How it ended; `None` while it is open.
    pub(super) end: Option<Ended>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an error that the server answered with.
    Code,
    /// Otherwise.
    Otherwise,
}

/// The number of an ask, and what came of it.
pub(super) type Event = (usize, Outcome);

/// Those that have had their time are silent: one verdict for each server, however often it was asked.
pub(super) fn judge(asks: &[Ask], means: &Means) {
    let now = Instant::now();
    let mut judged: Vec<&Arc<Member>> = Vec::new();
    let open = asks.iter().filter(|ask| ask.end.is_none());
    for ask in open.filter(|ask| now.saturating_duration_since(ask.start) >= means.hedge.attempt) {
        if !judged.iter().any(|member| Arc::ptr_eq(member, &ask.member)) {
            ask.member.was_silent(ask.start, means);
            judged.push(&ask.member);
        }
    }
}

/// Listens to servers whose answers are no longer needed.
pub(super) async fn listen(
    mut asks: Vec<Ask>,
    mut running: FuturesUnordered<BoxFuture<'static, Event>>,
    means: Arc<Means>,
    asked: Arc<Parsed>,
) {
    let last = asks.iter().filter(|ask| ask.end.is_none()).map(|ask| ask.start).max();
    let until = last.unwrap_or_else(Instant::now) + means.hedge.attempt;
    let listening = async {
        while let Some((number, outcome)) = running.next().await {
            let Some(ask) = asks.get_mut(number) else { continue };
            match outcome {
                Outcome::Good(..) => ask.end = Some(Ended::Otherwise),
                Outcome::Failed(failure) => {
                    ask.end = Some(Ended::Otherwise);
                    if matches!(failure, Failure::Code(..)) {
                        ask.member.was_wrong(&means);
                    }
                }
                Outcome::Strange(open) => {
                    let listening =
                        Arc::clone(&ask.member).listen(Arc::clone(&means), Arc::clone(&asked), open);
                    running.push(Box::pin(async move { (number, listening.await) }));
                }
            }
        }
    };
    if timeout_at(until, listening).await.is_err() {
        let open = asks.iter().filter(|ask| ask.end.is_none());
        open.for_each(|ask| ask.member.was_silent(ask.start, &means));
    }
}
