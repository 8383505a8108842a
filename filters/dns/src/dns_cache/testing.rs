//! A cache over an upstream server that does as it is told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qudag_filter_api::FilterError;
use tokio::sync::Semaphore;

use super::store::lock;
use super::*;
use crate::testing::{env, query, reply_wire, soa};
use crate::wire::{Ede, parse_reply, rcode, rtype};

/// What the server does with a query.
#[derive(Clone, Debug)]
pub(super) enum Does {
    /// Answers with a code and one address with a time to live; NXDOMAIN comes with an SOA record.
    Answer(u8, u32),
    /// Fails.
    Fail(FilterError),
    /// Answers late.
    Late(Duration, u32),
    /// Answers with data that are so many seconds old and live as many more.
    Old(u64, u32),
}

/// An upstream server that counts what it is asked and answers when it may.
#[derive(Clone)]
pub(super) struct Upstream {
    asked: Arc<AtomicUsize>,
    refreshes: Arc<AtomicUsize>,
    pub(super) gate: Arc<Semaphore>,
    does: Arc<Mutex<Does>>,
    broken: Arc<Mutex<Option<Name>>>,
}

impl Upstream {
    pub(super) fn new(code: u8, ttl: u32) -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let does = Arc::new(Mutex::new(Does::Answer(code, ttl)));
        Self { asked: Arc::default(), refreshes: Arc::default(), gate, does, broken: Arc::default() }
    }

    pub(super) fn closed(self) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..self }
    }

    pub(super) fn now(&self, does: Does) {
        *lock(&self.does) = does;
    }

    /// One name fails from now on.
    pub(super) fn break_name(&self, name: &str) {
        *lock(&self.broken) = Name::from_text(name).ok();
    }

    pub(super) fn down(&self) {
        self.now(Does::Fail(FilterError::Timeout { after: Duration::from_secs(1) }));
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How many of the queries were no client's.
    pub(super) fn refreshes(&self) -> usize {
        self.refreshes.load(Ordering::SeqCst)
    }

    pub(super) fn service(&self) -> Svc<Dns> {
        let this = self.clone();
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let this = this.clone();
            async move {
                let number = this.asked.fetch_add(1, Ordering::SeqCst) as u8;
                this.refreshes.fetch_add(usize::from(query.client().port() == 0), Ordering::SeqCst);
                let _permit = this.gate.acquire().await;
                let does = lock(&this.does).clone();
                if lock(&this.broken).as_ref() == Some(&query.parsed().name) {
                    return Err(FilterError::Timeout { after: Duration::ZERO });
                }
                let source = Source::Upstream("test".into());
                let address = |ttl: u32| {
                    let data = [192, 0, 2, number];
                    reply_wire(query.wire(), rcode::NOERROR, &[(rtype::A, ttl, &data)])
                };
                Ok(match does {
                    Does::Answer(rcode::NXDOMAIN, ttl) => {
                        let data = soa(ttl);
                        let wire = reply_wire(query.wire(), rcode::NXDOMAIN, &[(rtype::SOA, ttl, &data)]);
                        DnsReply::new(wire.into(), source)
                    }
                    Does::Answer(code, ttl) => {
                        let mut wire = address(ttl);
                        wire[3] |= code;
                        DnsReply::new(wire.into(), source)
                    }
                    Does::Fail(error) => return Err(error),
                    Does::Late(by, ttl) => {
                        tokio::time::sleep(by).await;
                        DnsReply::new(address(ttl).into(), source)
                    }
                    Does::Old(age, ttl) => {
                        let age = Duration::from_secs(age);
                        DnsReply { age, ..DnsReply::new(address(ttl).into(), source) }
                    }
                })
            }
        })
    }
}

pub(super) fn chain(settings: &DnsCache, upstream: &Upstream) -> (Svc<Dns>, Arc<CacheState>) {
    let state = settings.state(&env(), None).unwrap();
    (settings.wrap(Arc::clone(&state), upstream.service()), state)
}

/// The last byte of the address (of the SOA record for a name that does not exist), the time to live, and the source.
pub(super) async fn ask(chain: &Svc<Dns>, name: &str) -> (u8, u32, Source) {
    let reply = chain.clone().oneshot(query(name, rtype::A)).await.unwrap();
    let parsed = parse_reply(&reply.wire).unwrap();
    (reply.wire[parsed.records[0].data.end - 1], parsed.records[0].ttl, reply.source)
}

/// What a reply says besides its records: code, reason and second reason.
pub(super) async fn reasons(chain: &Svc<Dns>, name: &str) -> (u8, Option<u16>, Option<u16>) {
    let query = query(name, rtype::A);
    let result = chain.clone().oneshot(query.clone()).await;
    let reply = result.unwrap_or_else(|error| DnsReply::error(&query, &error));
    let code = |ede: &Option<Ede>| ede.as_ref().map(|ede| ede.code);
    (reply.rcode(), code(&reply.ede), code(&reply.also))
}

pub(super) fn upstream() -> Source {
    Source::Upstream("test".into())
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Lets time pass, in steps, so that whatever is due happens when it is due.
pub(super) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
