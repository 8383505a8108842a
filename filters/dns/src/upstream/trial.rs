//! One query's way through the servers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use metrics::counter;
use qudag_core::budget;
use qudag_filter_api::FilterError;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::member::{Means, Member, Outcome};
use super::message::Failure;
use super::rules::{Candidate, End, List, Plan, Rank, Step, Why};
use super::system::RESOLV_CONF;
use super::{Members, Upstream, lock};
use crate::wire::{Ede, Parsed, Stripped};
use crate::{DnsQuery, DnsReply, Source};

/// Who remarks.
const NAME: &str = "dns_upstream";

/// How many queries to servers there may be because others are silent, beside the first ones: enough where three of ten are lost, or
/// where all servers are slower than the longest hedge.
const EXTRA: budget::Settings = budget::Settings { percent: 150, min_per_second: 50 };

/// The answer to a query: the first good one of a server.
pub(super) async fn answer(upstream: Arc<Upstream>, query: DnsQuery) -> Result<DnsReply, FilterError> {
    let limit = upstream.settings.timeout.0;
    let start = Instant::now();
    let deadline = start + limit;
    *lock(&upstream.state.last) = Some(start);
    lock(&upstream.state.extra).request(start.into_std());
    let (seats, queue) = (count(upstream.settings.max_in_flight), count(upstream.settings.max_queued));
    let _seat = match timeout_at(deadline, upstream.state.gate.enter(seats, queue)).await {
        Ok(Some(seat)) => seat,
        Ok(None) => {
            counter!("qudag_sidecar_dns_upstream_overflows_total").increment(1);
            query.note(NAME, || format!("{seats} queries are under way and {queue} wait"));
            return Err(FilterError::Overloaded("too many queries wait for the servers".into()));
        }
        Err(_) => {
            query.note(NAME, || format!("no turn within {limit:?}: {seats} queries are under way"));
            return Err(FilterError::Timeout { after: limit });
        }
    };
    let members = upstream.members().await;
    let mut trial = Trial::new(&upstream, &query, members, start);
    let outcome = timeout_at(deadline, trial.run()).await;
    match outcome {
        Ok(Some(reply)) => {
            trial.let_the_others_end();
            Ok(reply)
        }
        Ok(None) | Err(_) => trial.conclude(limit),
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A server that was asked.
struct Ask {
    member: Arc<Member>,
    start: Instant,
    /// How it ended; `None` while it is open.
    end: Option<Ended>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// With an error that the server answered with.
    Code,
    /// Otherwise.
    Otherwise,
}

/// The number of an ask, and what came of it.
type Event = (usize, Outcome);

struct Trial<'a> {
    upstream: &'a Upstream,
    query: &'a DnsQuery,
    asked: Arc<Parsed>,
    members: Members,
    candidates: Vec<Candidate>,
    plan: Plan,
    start: Instant,
    asks: Vec<Ask>,
    /// The member of each ask.
    numbers: Vec<usize>,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The first error that a server answered with.
    refusal: Option<DnsReply>,
    /// Why the last server gave no answer at all.
    error: Option<FilterError>,
    /// A server was left out because it is this process.
    own: bool,
    /// Something came that is no reply, and the reply did not.
    strange: bool,
}

impl<'a> Trial<'a> {
    fn new(upstream: &'a Upstream, query: &'a DnsQuery, members: Members, start: Instant) -> Self {
        let limits = &upstream.means.hedge;
        let candidates: Vec<_> =
            members.iter().map(|(list, member)| member.candidate(*list, start, limits)).collect();
        let error = members.is_empty().then(|| {
            let why = "it names no server, nor does filters.dns.dns_upstream.servers".into();
            FilterError::Resolve { name: RESOLV_CONF.to_owned(), why }
        });
        Self {
            upstream,
            query,
            asked: Arc::new(query.parsed().clone()),
            plan: Plan::new(&candidates, limits.attempt),
            members,
            candidates,
            start,
            asks: Vec::new(),
            numbers: Vec::new(),
            running: FuturesUnordered::new(),
            refusal: None,
            error,
            own: false,
            strange: false,
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        self.query.note(NAME, || format!("{} ms: {}", self.start.elapsed().as_millis(), what()));
    }

    async fn run(&mut self) -> Option<DnsReply> {
        loop {
            let (now, budget) = (Instant::now(), &self.upstream.state.extra);
            let until = match self.plan.next(now, || lock(budget).retry(&EXTRA, now.into_std())) {
                Step::Ask(number, why) => {
                    self.ask(number, why);
                    continue;
                }
                Step::Wait(until) => until,
                Step::Over => return None,
            };
            if until.is_none() && self.running.is_empty() {
                return None;
            }
            // What has come goes before what is due: when this host was slow, nobody was silent.
            let event = tokio::select! {
                biased;
                event = self.running.next(), if !self.running.is_empty() => event,
                () = sleep_until(until.unwrap_or(self.start)), if until.is_some() => None,
            };
            match event {
                Some((number, Outcome::Good(reply, took))) => return self.answered(number, reply, took),
                Some((number, Outcome::Failed(failure))) => self.failed(number, failure),
                Some((number, Outcome::Strange(open))) => {
                    self.strange = true;
                    let Some(ask) = self.asks.get(number) else { continue };
                    self.note(|| format!("{} sent something that is no reply to the query", ask.member.name));
                    let (member, means) = (Arc::clone(&ask.member), Arc::clone(&self.upstream.means));
                    let listening = member.listen(means, Arc::clone(&self.asked), open);
                    self.running.push(Box::pin(async move { (number, listening.await) }));
                    self.ended(number, End::Strange);
                }
                None => {}
            }
        }
    }

    fn ask(&mut self, number: usize, why: Why) {
        let (Some((list, member)), Some(candidate)) = (self.members.get(number), self.candidates.get(number))
        else {
            return;
        };
        let turn = self.numbers.iter().filter(|asked| **asked == number).count();
        self.note(|| {
            let why = match why {
                Why::First if *list == List::Servers => "first".to_owned(),
                Why::First => "first: nobody of the lists before is healthy".to_owned(),
                Why::Failover => "the one before failed".to_owned(),
                Why::Hedge => "those asked before are silent".to_owned(),
                Why::Again => format!("once more, {turn} times before"),
            };
            let rank = match candidate.rank {
                Rank::Clean => "",
                Rank::Doubtful => ", which is in doubt",
                Rank::Open => ", whose breaker is open",
            };
            format!("asking {}{rank}, of {} ({why})", member.name, list.label())
        });
        if why == Why::Hedge {
            member.meters.hedged();
        }
        let ask = self.asks.len();
        let (means, asked) = (Arc::clone(&self.upstream.means), Arc::clone(&self.asked));
        let turn = u32::try_from(turn).unwrap_or(0);
        let asking = Arc::clone(member).ask(means, asked, turn);
        self.running.push(Box::pin(async move { (ask, asking.await) }));
        self.asks.push(Ask { member: Arc::clone(member), start: Instant::now(), end: None });
        self.numbers.push(number);
    }

    fn ended(&mut self, ask: usize, end: End) {
        if let Some(number) = self.numbers.get(ask) {
            self.plan.ended(*number, end);
        }
    }

    fn answered(&mut self, number: usize, reply: Stripped, took: Duration) -> Option<DnsReply> {
        let ask = self.asks.get_mut(number)?;
        ask.end = Some(Ended::Otherwise);
        let member = Arc::clone(&ask.member);
        self.note(|| format!("{} answered after {:.1} ms", member.name, took.as_secs_f64() * 1e3));
        // A server that answers worse than another one is in trouble. When all answer alike, the name is.
        let wrong = self.asks.iter().filter(|ask| ask.end == Some(Ended::Code));
        wrong
            .filter(|ask| !Arc::ptr_eq(&ask.member, &member))
            .for_each(|ask| ask.member.was_wrong(&self.upstream.means));
        let list =
            self.numbers.get(number).and_then(|number| self.members.get(*number)).map(|(list, _)| *list);
        self.count_list(list.unwrap_or(List::Servers));
        Some(reply_of(&member, reply))
    }

    /// Which list the answer came from, and why that one.
    fn count_list(&self, list: List) {
        let before = |candidate: &&Candidate| candidate.list < list;
        let reason = match list {
            List::Servers => "preferred",
            _ if self.candidates.iter().filter(before).all(|candidate| candidate.rank == Rank::Open) => {
                "unhealthy"
            }
            _ => "no_answer",
        };
        counter!("qudag_sidecar_dns_upstream_answers_total", "list" => list.label(), "reason" => reason)
            .increment(1);
    }

    /// Notes a failure.
    fn failed(&mut self, number: usize, failure: Failure) {
        let Some(ask) = self.asks.get_mut(number) else { return };
        let member = Arc::clone(&ask.member);
        ask.end = Some(match failure {
            Failure::Code(..) => Ended::Code,
            _ => Ended::Otherwise,
        });
        self.note(|| format!("{}: {}", member.name, failure.text()));
        let name = || member.name.to_string();
        let (end, error) = match failure {
            Failure::Network(why) => (End::Unreachable, FilterError::connect(name(), why)),
            Failure::Closed => {
                (End::Unreachable, FilterError::Upstream("the server closed the connection".into()))
            }
            Failure::Busy => (
                End::Unreachable,
                FilterError::Overloaded("the server has too many queries to answer".into()),
            ),
            Failure::Resolve(why) => (End::Useless, FilterError::Resolve { name: name(), why: why.into() }),
            Failure::Mismatch => (End::Useless, FilterError::Upstream("a reply to another query".into())),
            Failure::Tls(why) => (End::Useless, FilterError::Upstream(format!("TLS: {why}").into())),
            Failure::Http(why) => (End::Useless, FilterError::Upstream(format!("HTTP: {why}").into())),
            Failure::Own => {
                self.own = true;
                return self.ended(number, End::Useless);
            }
            Failure::Code(_, Some(reply)) => {
                self.refusal.get_or_insert_with(|| refusal_of(&member, reply));
                return self.ended(number, End::Refused);
            }
            Failure::Code(_, None) => {
                (End::Useless, FilterError::Upstream("an error without a question".into()))
            }
        };
        self.error = Some(error);
        self.ended(number, end);
    }

    /// Goes on listening to those that were asked as well, for a while: how long they take, and whether they answer at all, is known
    /// only so.
    fn let_the_others_end(self) {
        let Self { upstream, asked, asks, running, .. } = self;
        if !running.is_empty() {
            drop(tokio::spawn(listen(asks, running, Arc::clone(&upstream.means), asked)));
        }
    }

    /// What the client is told when no server gave a good answer: what a server said, or else why none could.
    fn conclude(self, limit: Duration) -> Result<DnsReply, FilterError> {
        let now = Instant::now();
        let means = &self.upstream.means;
        let open = || self.asks.iter().filter(|ask| ask.end.is_none());
        let silent = open().next().is_some() && !self.strange;
        // One verdict for each server, however often it was asked.
        let mut judged: Vec<&Arc<Member>> = Vec::new();
        for ask in open().filter(|ask| now.saturating_duration_since(ask.start) >= means.hedge.attempt) {
            if !judged.iter().any(|member| Arc::ptr_eq(member, &ask.member)) {
                ask.member.was_silent(ask.start, means);
                judged.push(&ask.member);
            }
        }
        self.note(|| "nobody has an answer".to_owned());
        match (self.refusal, self.error) {
            (Some(reply), _) => Ok(reply),
            (None, Some(error)) if !silent => Err(error),
            (None, None) if self.strange => {
                Err(FilterError::Upstream("nothing but replies to other queries".into()))
            }
            (None, None) if !silent && self.own => {
                Err(FilterError::Upstream("the upstream server is this sidecar itself".into()))
            }
            (None, _) => Err(FilterError::Timeout { after: limit }),
        }
    }
}

/// Listens to servers whose answers are no longer needed.
async fn listen(
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

/// A server's error for a client, with the server's reason or else with ours: nobody who could tell has told.
fn refusal_of(member: &Member, reply: Stripped) -> DnsReply {
    let mut refusal = reply_of(member, reply);
    // RFC 8914 section 4.23: no reachable authority, also when they refuse to reply.
    refusal.ede.get_or_insert_with(|| Ede { code: 22, text: "the servers answered with an error".into() });
    refusal
}

fn reply_of(member: &Member, reply: Stripped) -> DnsReply {
    let source = Source::Upstream(Arc::clone(&member.name));
    DnsReply { ede: reply.ede, ..DnsReply::new(reply.wire.into(), source) }
}
