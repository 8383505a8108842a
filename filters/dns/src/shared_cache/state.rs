//! What outlives reloads and toggles: which flushes of the fleet are known, which of ours the fleet does not know, and whom to tell.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use qudag_filter_api::{BuildError, Env};
use tokio::sync::{Notify, watch};

use super::client::Server;
use super::counts::Counts;
use super::entry::Seal;
use super::link::Link;
use super::log::FlushLog;
use super::{DnsSharedCache, RedisUrl};
use crate::FlushSelector;

/// How many flushes of the fleet are kept for a cache that is not attached yet.
const MAX_BACKLOG: usize = 64;

/// Told what to flush; see [`SharedCacheState::attach`].
pub type OnFlush = Arc<dyn Fn(&FlushSelector) + Send + Sync>;

/// Whether a flush has reached the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No sidecar gets an answer from before the flush out of the shared cache any more, and all are told to flush their own.
    Fleet,
    /// This sidecar only; the others follow when Redis can be reached again.
    Later,
    /// This sidecar only, because the filter is off; the others follow when it is on again.
    Off,
}

impl Reach {
    /// The name in the admin API.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Later => "later",
            Self::Off => "off",
        }
    }
}

/// Whom the fleet's flushes concern here.
#[derive(Default)]
struct Local {
    hook: Option<OnFlush>,
    /// Flushes that came before there was a hook.
    backlog: Vec<FlushSelector>,
}

/// The shared cache as one sidecar knows it.
pub struct SharedCacheState {
    server: Server,
    prefix: String,
    seal: Seal,
    max_queue: usize,
    /// Tells this sidecar's flushes from those of others.
    origin: u64,
    log: Mutex<FlushLog>,
    local: Mutex<Local>,
    /// The number of the last flush of ours that the fleet has.
    written: watch::Sender<u64>,
    wake: Notify,
    /// There while a chain holds it, that is, while the filter is on.
    link: Mutex<Weak<Link>>,
    counts: Counts,
}

impl SharedCacheState {
    /// A state for these settings. Takes over the flushes that the fleet does not know yet.
    pub(super) fn new(
        settings: &DnsSharedCache,
        env: &Env,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let secret = settings.key.as_ref().map(|key| key.read()).transpose();
        let secret = secret.map_err(|why| BuildError::new("filters.dns.dns_shared_cache.key", why))?;
        let mut log = FlushLog::default();
        if let Some(previous) = previous {
            for selector in previous.log().waiting() {
                log.ask(selector);
            }
        }
        Ok(Self {
            server: Server {
                url: settings.url.clone(),
                username: settings.username.clone(),
                password: settings.password.clone(),
                ca: settings.ca.clone(),
                flushes: format!("{}:flushes", settings.prefix),
                resolve: Arc::clone(&env.resolve),
            },
            prefix: settings.prefix.clone(),
            seal: Seal::new(secret.as_deref()),
            max_queue: settings.max_queue,
            origin: fastrand::u64(1..),
            log: Mutex::new(log),
            local: Mutex::default(),
            written: watch::Sender::new(0),
            wake: Notify::new(),
            link: Mutex::default(),
            counts: Counts::new(),
        })
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn url(&self) -> &RedisUrl {
        &self.server.url
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn seal(&self) -> &Seal {
        &self.seal
    }

    pub(super) fn max_queue(&self) -> usize {
        self.max_queue
    }

    pub(super) fn origin(&self) -> u64 {
        self.origin
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn log(&self) -> MutexGuard<'_, FlushLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the stream of flushes looked at now.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Resolves when somebody wants the stream looked at.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The stream has every flush of ours up to this number.
    pub(super) fn written(&self, number: u64) {
        self.log().written(number);
        self.written.send_replace(number);
    }

    /// The way to the server, which is there for as long as anybody holds it.
    pub(super) fn link(self: &Arc<Self>) -> Arc<Link> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = link.upgrade() {
            return link;
        }
        let started = Arc::new(Link::start(Arc::clone(self)));
        *link = Arc::downgrade(&started);
        started
    }

    /// Tells `hook` of every flush of another sidecar from now on, and of those that came before: it flushes the cache in
    /// front. It must not hold the state.
    pub fn attach(&self, hook: OnFlush) {
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        for selector in local.backlog.drain(..) {
            hook(&selector);
        }
        local.hook = Some(hook);
    }

    /// Another sidecar has flushed.
    pub(super) fn flush_here(&self, selector: &FlushSelector) {
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hook) = &local.hook {
            hook(selector);
        } else if local.backlog.len() < MAX_BACKLOG {
            local.backlog.push(selector.clone());
        } else {
            local.backlog = vec![FlushSelector::All];
        }
    }

    /// Flushes the shared cache, and the caches of all other sidecars. From the call on, this sidecar gets nothing from before out of
    /// the shared cache; flush its own cache after the call and before waiting. The future tells, within `longest`, how far
    /// the flush has come.
    pub fn flush(
        self: &Arc<Self>,
        selector: &FlushSelector,
        longest: Duration,
    ) -> impl Future<Output = Reach> + Send + use<> {
        let number = self.log().ask(selector);
        let mut written = self.written.subscribe();
        let on = self.link.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0;
        self.wake();
        async move {
            if !on {
                return Reach::Off;
            }
            match tokio::time::timeout(longest, written.wait_for(|written| *written >= number)).await {
                Ok(Ok(_)) => Reach::Fleet,
                _ => Reach::Later,
            }
        }
    }
}

impl fmt::Debug for SharedCacheState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCacheState").field("url", &self.server.url).finish_non_exhaustive()
    }
}
