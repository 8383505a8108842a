//! Where a user's secret comes from: a file, and then the server.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use metrics::counter;
use qudag_filter_api::BuildError;
use qudag_filter_common::Followed;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::query::{AskError, Asker, Way};
use super::scram::{ScramError, Verifier, random};
use super::secret::{Identity, Stored};
use super::settings::{AuthSettings, Method};
use super::userlist::{UserFile, UserList};

/// How long an answer of the server holds, where there is a secret and where there is none.
const KNOWN: Duration = Duration::from_secs(30);
const UNKNOWN: Duration = Duration::from_secs(5);
/// How many answers are kept.
const MOST_ANSWERS: usize = 10_000;
/// How long an answer may take, with connecting.
const ASK_TIME: Duration = Duration::from_secs(10);
/// How often it is said that the server cannot be asked.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// A user's secret; `None` where there is no such user, or none with a secret.
type Answer = Option<Arc<Stored>>;
/// A question under way.
type Flight = Shared<BoxFuture<'static, Result<Answer, Arc<str>>>>;

/// The users that a listener knows.
pub struct Users {
    method: Method,
    file: Option<Arc<Followed<UserList>>>,
    server: Option<Arc<Server>>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What is known of a user.
pub(super) struct Found {
    pub(super) answer: Answer,
    /// Whether it was known before, so that it may be out of date.
    pub(super) cached: bool,
}

/// The server as a source.
struct Server {
    asker: Asker,
    file: Option<Arc<Followed<UserList>>>,
    state: Mutex<State>,
}

struct State {
    answers: Answers,
    flights: HashMap<Box<[u8]>, Flight>,
    quiet_until: Instant,
}

/// Answers for as long as they hold.
#[derive(Default)]
struct Answers(HashMap<Box<[u8]>, (Answer, Instant)>);

impl Answers {
    fn get(&self, user: &[u8], now: Instant) -> Option<Answer> {
        self.0.get(user).filter(|(_, until)| now < *until).map(|(answer, _)| answer.clone())
    }

    fn keep(&mut self, user: &[u8], answer: Answer, now: Instant) {
        if self.0.len() >= MOST_ANSWERS {
            self.0.retain(|_, (_, until)| now < *until);
        }
        if self.0.len() >= MOST_ANSWERS {
            // Names that somebody tries out; and what is left are asked for again.
            self.0.retain(|_, (answer, _)| answer.is_some());
        }
        if self.0.len() >= MOST_ANSWERS {
            self.0.clear();
        }
        let until = now + if answer.is_some() { KNOWN } else { UNKNOWN };
        self.0.insert(user.into(), (answer, until));
    }
}

impl Users {
    /// Reads the file and follows it from now on, in a task of the current runtime. The server is asked when there is something to ask.
    ///
    /// # Errors
    /// When the file cannot be used, or there is neither a file nor a query for clients that have to prove themselves.
    pub fn open(settings: &AuthSettings, way: Way) -> Result<Self, BuildError> {
        const WHERE: &str = "listeners.postgres.auth";
        let AuthSettings { method, users, query, query_user, query_database, admins: _ } = settings;
        if *method != Method::Trust && users.is_none() && query_user.is_none() {
            let why =
                "no user is known: `users` has to name a file, or `query_user` a user that asks the server";
            return Err(BuildError::new(WHERE, why));
        }
        let file = users.as_ref().map(|path| {
            let opened = Followed::open(UserFile(path.clone()));
            opened.map(Arc::new).map_err(|why| BuildError::new(WHERE, format!("{}: {why}", path.display())))
        });
        let file = file.transpose()?;
        let server = query_user.as_ref().filter(|_| *method != Method::Trust).map(|user| {
            let asker = Asker::new(way, query, user, query_database);
            let state =
                State { answers: Answers::default(), flights: HashMap::new(), quiet_until: Instant::now() };
            Arc::new(Server { asker, file: file.clone(), state: Mutex::new(state) })
        });
        Ok(Self { method: *method, file, server })
    }

    /// How clients prove who they are.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What logs in at the server as a user that was not asked for a proof: what the file has, or nothing.
    pub(crate) fn trusted(&self, user: &[u8]) -> Identity {
        let stored = self.file.as_ref().and_then(|file| file.contents().get(user)).flatten();
        stored.and_then(|stored| stored.identity()).unwrap_or(Identity::Trust)
    }

    /// What is known of a user. `fresh` asks the server whatever is known already.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(super) async fn find(&self, user: &[u8], fresh: bool) -> Result<Found, Arc<str>> {
        if let Some(answer) = self.file.as_ref().and_then(|file| file.contents().get(user)) {
            return Ok(Found { answer, cached: false });
        }
        match &self.server {
            Some(server) => server.find(user, fresh).await,
            None => Ok(Found { answer: None, cached: false }),
        }
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(self: &Arc<Self>, user: &[u8], fresh: bool) -> Result<Found, Arc<str>> {
        let flight = {
            let mut state = self.state();
            let known = if fresh { None } else { state.answers.get(user, Instant::now()) };
            if let Some(answer) = known {
                return Ok(Found { answer, cached: true });
            }
            match state.flights.get(user) {
                Some(flight) => flight.clone(),
                None => {
                    // A task, so that it comes to its end also when nobody waits any more.
                    let task = tokio::spawn(Arc::clone(self).fly(user.into()));
                    let flight = task.map(|ended| ended.unwrap_or_else(|_| Err("interrupted".into())));
                    let flight = flight.boxed().shared();
                    state.flights.insert(user.into(), flight.clone());
                    flight
                }
            }
        };
        flight.await.map(|answer| Found { answer, cached: false })
    }

    async fn fly(self: Arc<Self>, user: Box<[u8]>) -> Result<Answer, Arc<str>> {
        let own = self.file.as_ref().and_then(|file| file.contents().get(self.asker.user())).flatten();
        let own = own.and_then(|stored| stored.identity()).unwrap_or(Identity::Trust);
        let asked = timeout(ASK_TIME, Box::pin(self.asker.ask(&user, &own))).await;
        let asked = asked.unwrap_or(Err(AskError::Timeout));
        let outcome = if asked.is_ok() { "ok" } else { "error" };
        counter!("qudag_sidecar_db_auth_queries_total", "outcome" => outcome).increment(1);
        let now = Instant::now();
        let mut state = self.state();
        state.flights.remove(&user);
        match asked {
            Ok(stored) => {
                let answer = stored.map(Arc::new);
                state.answers.keep(&user, answer.clone(), now);
                Ok(answer)
            }
            Err(why) => {
                if state.quiet_until <= now {
                    state.quiet_until = now + WARN_EVERY;
                    warn!("the PostgreSQL server cannot be asked for users: {why}");
                }
                Err(why.to_string().into())
            }
        }
    }
}

/// The verifier that a user that is none is asked for. What it is made of is the same for as long as the process lives.
///
/// # Errors
/// Where there is no randomness.
pub(super) fn decoy(user: &[u8]) -> Result<Verifier, ScramError> {
    static SECRET: OnceLock<[u8; 32]> = OnceLock::new();
    let secret = match SECRET.get() {
        Some(secret) => secret,
        None => {
            let mut secret = [0; 32];
            random(&mut secret)?;
            SECRET.get_or_init(|| secret)
        }
    };
    Ok(Verifier::decoy(user, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_for_their_time_and_are_bounded() {
        let start = Instant::now();
        let known: Answer = Stored::read(b"sesame").unwrap().map(Arc::new);
        let mut answers = Answers::default();
        answers.keep(b"ann", known.clone(), start);
        answers.keep(b"eve", None, start);
        assert_eq!(answers.get(b"ann", start + KNOWN / 2), Some(known.clone()));
        assert_eq!(answers.get(b"ann", start + KNOWN), None);
        assert_eq!((answers.get(b"eve", start), answers.get(b"eve", start + UNKNOWN)), (Some(None), None));
        for number in 0..3 * MOST_ANSWERS {
            answers.keep(format!("try{number}").as_bytes(), None, start);
            assert!(answers.0.len() <= MOST_ANSWERS);
        }
        assert_eq!(answers.get(b"ann", start), Some(known), "who tries out names does not drive out users");
    }

    #[test]
    fn a_user_that_is_none_has_the_same_salt_each_time() {
        assert_eq!(decoy(b"eve"), decoy(b"eve"));
        assert_ne!(decoy(b"eve"), decoy(b"adam"));
    }
}
