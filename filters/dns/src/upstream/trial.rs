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

use super::asks::{Ask, Ended, Event, judge, listen};
use super::member::{Again, Member, Outcome, Place};
use super::message::Failure;
use super::rules::{Candidate, End, List, Permit, Plan, Rank, Step, Times, Why};
use super::system::RESOLV_CONF;
use super::{Members, Upstream, lock};
use crate::wire::{Ede, Parsed, Stripped};
use crate::{DnsQuery, DnsReply, Source};

/// Who remarks.
const NAME: &str = "dns_upstream";

/// How many queries to servers there may be because others are silent, beside the first ones: enough where three of ten are lost, or
/// where all servers are slower than the longest hedge.
const EXTRA: budget::Settings = budget::Settings { percent: 150, min_per_second: 50 };

/// From how many sockets one query asks one server at a time: a fresh port may find its way where another one is lost, and each needs a
/// file descriptor and is one more to guess.
const MOST_SOCKETS: usize = 3;

/// After how many queries at a time it is listened to those that were not needed: a sample of them is enough to know the servers.
const MOST_LISTENING: usize = 256;

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
    // Settled: others may have the places, whatever becomes of the questions.
    trial.leave();
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

/// What a query has at a member.
enum Standing {
    /// Nothing yet.
    Nowhere,
    /// There was no place.
    Outside,
    /// It waits for a place.
    InLine,
    /// A place.
    Inside { _place: Place },
}

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
    /// How many repetitions were sent from a socket that was there.
    joined: usize,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// What there is at each member.
    places: Vec<Standing>,
    /// The lines that the query stands in.
    lines: FuturesUnordered<BoxFuture<'static, (usize, Option<Place>)>>,
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
        let only = members.len() == 1;
        let candidates: Vec<_> =
            members.iter().map(|(list, member)| member.candidate(*list, start, limits, only)).collect();
        let error = members.is_empty().then(|| {
            let why = "it names no server, nor does filters.dns.dns_upstream.servers".into();
            FilterError::Resolve { name: RESOLV_CONF.to_owned(), why }
        });
        let spread = u32::try_from(upstream.means.random.next() % 21).unwrap_or(20) + 80;
        let times = Times { attempt: limits.attempt, timeout: upstream.settings.timeout.0, spread };
        Self {
            upstream,
            query,
            asked: Arc::new(query.parsed().clone()),
            plan: Plan::new(&candidates, times),
            places: members.iter().map(|_| Standing::Nowhere).collect(),
            lines: FuturesUnordered::new(),
            members,
            candidates,
            start,
            asks: Vec::new(),
            numbers: Vec::new(),
            joined: 0,
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

    /// Gives the places back, and those in the lines up.
    fn leave(&mut self) {
        self.lines.clear();
        self.places.clear();
    }

    /// What to do next. A question that it says has a place.
    fn step(&mut self) -> Step {
        let now = Instant::now();
        let Self { plan, members, places, upstream, query, start, .. } = self;
        plan.next(now, |wish| {
            let (Some((_, member)), Some(standing)) = (members.get(wish.number), places.get_mut(wish.number))
            else {
                return Permit::Denied;
            };
            let mut got = None;
            if !matches!(standing, Standing::Inside { .. }) {
                got = member.place(&upstream.means);
                if got.is_none() {
                    if matches!(standing, Standing::Nowhere) {
                        *standing = Standing::Outside;
                        member.meters.ended("busy");
                        let after = start.elapsed().as_millis();
                        query.note(NAME, || format!("{after} ms: {} has no place for it", member.name));
                    }
                    return Permit::Busy;
                }
            }
            let free = wish.repeat_of.is_some_and(|sent| member.missed(sent, now));
            if wish.is_extra() && !free && !lock(&upstream.state.extra).retry(&EXTRA, now.into_std()) {
                return Permit::Denied;
            }
            if let Some(place) = got {
                *standing = Standing::Inside { _place: place };
            }
            Permit::Granted
        })
    }

    /// Stands in the line of every server that has no place.
    fn stand_in_line(&mut self) {
        for number in self.plan.busy() {
            let (Some((_, member)), Some(standing)) = (self.members.get(number), self.places.get_mut(number))
            else {
                continue;
            };
            if !matches!(standing, Standing::InLine) {
                *standing = Standing::InLine;
                let place = Arc::clone(member).queue(Arc::clone(&self.upstream.means));
                self.lines.push(Box::pin(async move { (number, place.await) }));
            }
        }
    }

    /// Gives the turns in all lines up.
    fn leave_lines(&mut self) {
        if !self.lines.is_empty() {
            self.lines.clear();
            let in_line = self.places.iter_mut().filter(|standing| matches!(standing, Standing::InLine));
            in_line.for_each(|standing| *standing = Standing::Outside);
        }
    }

    /// It is the query's turn at a server, or the line is too long.
    fn turn(&mut self, number: usize, place: Option<Place>) {
        let Some(standing) = self.places.get_mut(number) else { return };
        match place {
            Some(place) => {
                *standing = Standing::Inside { _place: place };
                self.plan.placed(number);
            }
            None => {
                *standing = Standing::Outside;
                self.note(|| format!("{} queries wait for a place", self.upstream.means.queue));
                let error = FilterError::Overloaded("too many queries wait for the servers".into());
                self.error.get_or_insert(error);
                self.plan.ended(number, End::Useless, Instant::now());
            }
        }
    }

    async fn run(&mut self) -> Option<DnsReply> {
        loop {
            let until = match self.step() {
                Step::Ask(number, why) => {
                    self.leave_lines();
                    self.ask(number, why);
                    continue;
                }
                Step::Queue(until) => {
                    self.stand_in_line();
                    until
                }
                Step::Wait(until) => {
                    self.leave_lines();
                    until
                }
                Step::Over => return None,
            };
            if until.is_none() && self.running.is_empty() && self.lines.is_empty() {
                return None;
            }
            // What has come goes before what is due: when this host was slow, nobody was silent.
            let event = tokio::select! {
                biased;
                event = self.running.next(), if !self.running.is_empty() => event,
                Some((number, place)) = self.lines.next(), if !self.lines.is_empty() => {
                    self.turn(number, place);
                    continue;
                }
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
                Why::Again => format!("again, it was asked {turn} times"),
            };
            let rank = match candidate.rank {
                Rank::Clean => "",
                Rank::Doubtful => ", which is in doubt",
                Rank::Open => ", whose breaker is open",
            };
            format!("asking {}{rank}, of {} ({why})", member.name, list.label())
        });
        match why {
            Why::Hedge => member.meters.hedged(),
            Why::Again => member.meters.repeated(),
            Why::First | Why::Failover => {}
        }
        let open = || self.asks.iter().filter(|ask| ask.end.is_none() && Arc::ptr_eq(&ask.member, member));
        let sockets = open().count();
        if sockets >= MOST_SOCKETS && open().nth(self.joined % sockets).is_some_and(|ask| ask.again.send()) {
            self.joined += 1;
            return self.plan.joined(number);
        }
        let ask = self.asks.len();
        let (means, asked) = (Arc::clone(&self.upstream.means), Arc::clone(&self.asked));
        let turn = u32::try_from(turn).unwrap_or(0);
        let again = Again::default();
        let asking = Arc::clone(member).ask(means, asked, turn, again.clone());
        self.running.push(Box::pin(async move { (ask, asking.await) }));
        self.asks.push(Ask { member: Arc::clone(member), start: Instant::now(), again, end: None });
        self.numbers.push(number);
    }

    fn ended(&mut self, ask: usize, end: End) {
        let Some(number) = self.numbers.get(ask).copied() else { return };
        self.plan.ended(number, end, Instant::now());
        // Nobody waits for this server: another query may have the place, until it is asked again.
        let asked = self.asks.iter().zip(&self.numbers).filter(|(_, asked)| **asked == number);
        if asked.filter(|(ask, _)| ask.end.is_none()).count() == 0
            && let Some(standing) = self.places.get_mut(number)
        {
            *standing = Standing::Nowhere;
        }
    }

    fn answered(&mut self, number: usize, reply: Stripped, took: Option<Duration>) -> Option<DnsReply> {
        let ask = self.asks.get_mut(number)?;
        ask.end = Some(Ended::Otherwise);
        let (member, took) = (Arc::clone(&ask.member), took.unwrap_or_else(|| ask.start.elapsed()));
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
        if running.is_empty() {
            return;
        }
        match upstream.state.listening.try_enter(MOST_LISTENING) {
            Some(seat) => {
                let means = Arc::clone(&upstream.means);
                drop(tokio::spawn(async move {
                    listen(asks, running, means, asked).await;
                    drop(seat);
                }));
            }
            None => judge(&asks, &upstream.means),
        }
    }

    /// What the client is told when no server gave a good answer: what a server said, or else why none could.
    fn conclude(self, limit: Duration) -> Result<DnsReply, FilterError> {
        let silent = self.asks.iter().any(|ask| ask.end.is_none()) && !self.strange;
        judge(&self.asks, &self.upstream.means);
        self.note(|| "nobody has an answer".to_owned());
        match (self.refusal, self.error) {
            (Some(reply), _) => Ok(reply),
            (None, Some(error)) if !silent => {
                if matches!(error, FilterError::Overloaded(_)) {
                    counter!("qudag_sidecar_dns_upstream_overflows_total").increment(1);
                }
                Err(error)
            }
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
