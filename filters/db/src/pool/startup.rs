//! The way of a client to its pooled session: TLS, StartupMessage, authentication, and what it is told then.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use qudag_filter_api::{Chains, FilterError, FlowKey};
use qudag_filter_common::{Drain, FlowLine, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::cancels::Cancels;
use super::desk::Want;
use super::registry::Trace;
use super::session::Session;
use super::settings::DbPool;
use super::tapped::Tapped;
use super::{Pool, PoolKey, Pools, Prefers, SessionInfo, Target, console};
use crate::asking::Asker;
use crate::auth::{Begun, SecureStream, ServerTls, Users, accept_tls, authenticate};
use crate::kind::Db;
use crate::load::Load;
use crate::replicas::Replicas;
use crate::reply::{fatal, say_last};
use crate::session::{Client, Down, Parameters, Pins, Tidy};
use crate::startup::{Progress, Setting, StartupError, StartupMessage, StartupPacket, parse, shown};
use crate::wire::backend::{self, Status};
use crate::wire::build::{self, ErrorResponse};

/// The minor version of protocol 3 that is spoken (PostgreSQL 18).
const MINOR: u16 = 2;
/// The parameter that says where a session's transactions go.
const TARGET: &[u8] = b"qudag.target";

/// What pooled sessions need of the listener's settings; made anew only when these change.
pub(crate) struct Access {
    pub(crate) target: Arc<Target>,
    /// Clients' TLS, where there is a certificate.
    pub(crate) tls: Option<Arc<ServerTls>>,
    /// How loaded the servers are.
    pub(crate) load: Arc<Load>,
    /// Who may use the console.
    pub(crate) admins: Vec<String>,
    /// Who may log in; the reason when that is not known.
    pub(crate) users: Result<Arc<Users>, String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A client that is to have a pooled session.
pub(crate) struct Coming {
    pub(crate) stream: Stream,
    /// What was read of it: the first packet at least.
    pub(crate) inbox: BytesMut,
    pub(crate) key: FlowKey,
    pub(crate) access: Arc<Access>,
    pub(crate) replicas: Option<Arc<Replicas>>,
    /// Whether it has come where sessions only read.
    pub(crate) read_only: bool,
    pub(crate) pools: Arc<Pools>,
    pub(crate) settings: Arc<DbPool>,
    pub(crate) chains: Chains<Db>,
    pub(crate) cancels: Cancels,
    pub(crate) deadline: Instant,
    pub(crate) stall: Duration,
}

/// Why there is no session, with what the client is told, and the outcome of the flow.
struct Refused {
    outcome: &'static str,
    said: BytesMut,
}

impl Refused {
    fn silent(outcome: &'static str) -> Self {
        Self { outcome, said: BytesMut::new() }
    }

    fn fatal(outcome: &'static str, sqlstate: &str, message: &str) -> Self {
        let mut said = BytesMut::new();
        ErrorResponse { fatal: true, sqlstate, message, detail: None, hint: None }.write(&mut said);
        Self { outcome, said }
    }

    fn with(error: &FilterError) -> Self {
        let mut said = BytesMut::new();
        fatal(error, &mut said);
        Self { outcome: error.label(), said }
    }
}

impl From<StartupError> for Refused {
    fn from(error: StartupError) -> Self {
        Self::fatal("malformed", "08P01", &error.to_string())
    }
}

/// The client's stream, its first messages read.
struct Welcome {
    stream: SecureStream,
    inbox: BytesMut,
    message: StartupMessage,
}

/// The outcome of a session, and the bytes from and to the client.
type Ended = (&'static str, u64, u64);

/// A pooled session from its first byte to its end.
pub(crate) async fn pooled(coming: Coming, drain: Drain, line: &mut FlowLine) -> Ended {
    let Coming { stream, inbox, key, access, pools, settings, chains, cancels, deadline, stall, .. } = coming;
    let client = stream.peer_addr();
    let mut welcome = match receive(stream, inbox, &access, &cancels, deadline).await {
        Ok(Some(welcome)) => welcome,
        Ok(None) => return ("ok", 0, 0),
        Err((refused, stream)) => {
            if let Some(stream) = stream {
                say_last(*stream, &refused.said).await;
            }
            return (refused.outcome, 0, 0);
        }
    };
    line.detail("user", shown(&welcome.message.user));
    line.detail("database", shown(&welcome.message.database));
    if !welcome.message.application_name.is_empty() {
        line.detail("application", shown(&welcome.message.application_name));
    }
    let login = LoggingIn {
        access: &access,
        pools: &pools,
        settings: &settings,
        replicas: coming.replicas.as_deref(),
        read_only: coming.read_only,
        deadline,
        who: client.map(|client| client.ip()),
    };
    let (pool, parameters, prefers, said) = match login.run(&mut welcome).await {
        Ok(Entered::Pool(pool, parameters, prefers, said)) => (pool, parameters, prefers, said),
        Ok(Entered::Console(mut out)) => {
            write_parameters(&mut out, &console::parameters());
            out.extend_from_slice(&build::ready(Status::Idle));
            let seen =
                console::Seen { pools: &pools, replicas: coming.replicas.as_deref(), load: &access.load };
            return (console::serve(welcome.stream, welcome.inbox, out, &seen, &drain).await, 0, 0);
        }
        Err(refused) => {
            say_last(welcome.stream, &refused.said).await;
            return (refused.outcome, 0, 0);
        }
    };
    let (orders, received) = mpsc::unbounded_channel();
    let long = welcome.message.minor >= 2;
    let Some((seat, secret)) = cancels.add(long, &orders) else { return ("internal", 0, 0) };
    let mut out = said;
    write_parameters(&mut out, &parameters);
    build::key_data(&mut out, seat.process, &secret);
    out.extend_from_slice(&build::ready(Status::Idle));
    let Welcome { stream, inbox, message } = welcome;
    let info = Arc::new(SessionInfo {
        client,
        key,
        pool: Arc::clone(&pool),
        prefers,
        seed: fastrand::u64(..),
        others: std::sync::Mutex::default(),
        orders,
        application: shown(&message.application_name),
        tls: stream.is_encrypted(),
        trace: Trace::new(std::time::Instant::now()),
    });
    pool.sessions.add(&info);
    let lane = match &stream {
        SecureStream::Plain(_) => pool.lane.handle(),
        _ => Handle::current(),
    };
    let traced = Arc::clone(&info);
    let begin = move |stream| Session {
        client: Client::new(parameters),
        stream,
        inbox,
        out,
        info,
        member: pool.enter(),
        own: None,
        orders: received,
        chains,
        stall,
        tapped: Tapped::default(),
        wrote: None,
        changed: None,
        read: 0,
        written: 0,
    };
    // Client and servers of a pool follow each other on one thread. A stream with TLS stays where it is: its thread has work of its own.
    let tasks = drain.clone();
    let task = match stream {
        SecureStream::Plain(stream) => {
            let Ok(stream) = stream.detach() else { return ("internal", 0, 0) };
            lane.spawn(async move {
                let Ok(stream) = stream.attach() else { return ("internal", 0, 0) };
                run(begin(stream.into()), &tasks).await
            })
        }
        stream => lane.spawn(async move { run(begin(stream), &tasks).await }),
    };
    // The abort is awaited here, where it costs the session nothing.
    let ended = abort_with(task, &drain).await;
    drop(seat);
    let trace = &traced.trace;
    line.detail("transactions", trace.transactions.load(Relaxed));
    let pins = Pins::of_bits(trace.pins.load(Relaxed));
    if !pins.is_empty() {
        line.detail("pins", pins.labels().collect::<Vec<_>>().join(" "));
    }
    ended
}

/// Waits for the end of a session's task, which the drain's deadline puts to it.
async fn abort_with(task: JoinHandle<Ended>, drain: &Drain) -> Ended {
    let mut task = AbortOnDropHandle::new(task);
    tokio::select! {
        biased;
        ended = &mut task => ended.unwrap_or(("internal", 0, 0)),
        () = drain.aborted() => ("aborted", 0, 0),
    }
}

async fn run(mut session: Session, drain: &Drain) -> Ended {
    let outcome = session.run(drain).await;
    (outcome, session.read, session.written)
}

fn write_parameters(out: &mut BytesMut, parameters: &Parameters) {
    for (name, value) in parameters.told() {
        build::parameter(out, name, value);
    }
}

type NotReceived = (Refused, Option<Box<SecureStream>>);

/// The packets before and through the StartupMessage; `None` for a CancelRequest, which is carried out.
async fn receive(
    stream: Stream,
    mut inbox: BytesMut,
    access: &Access,
    cancels: &Cancels,
    deadline: Instant,
) -> Result<Option<Welcome>, NotReceived> {
    let mut stream = SecureStream::from(stream);
    let (mut ssl, mut gss) = (false, false);
    loop {
        let packet = match read_packet(&mut stream, &mut inbox, deadline).await {
            Ok(packet) => packet,
            Err(refused) => return Err((refused, Some(Box::new(stream)))),
        };
        let refuse = |stream, refused| Err((refused, Some(Box::new(stream))));
        match packet {
            StartupPacket::Startup(message) => return Ok(Some(Welcome { stream, inbox, message })),
            StartupPacket::CancelRequest { process, secret } => {
                cancels.cancel(process, &secret);
                return Ok(None);
            }
            StartupPacket::SslRequest if std::mem::replace(&mut ssl, true) => {
                return refuse(stream, StartupError::Repeated("SSLRequest").into());
            }
            StartupPacket::GssEncRequest if std::mem::replace(&mut gss, true) => {
                return refuse(stream, StartupError::Repeated("GSSENCRequest").into());
            }
            StartupPacket::GssEncRequest => {
                if tell(&mut stream, b"N", deadline).await.is_err() {
                    return Err((Refused::silent("client_gone"), None));
                }
            }
            StartupPacket::SslRequest | StartupPacket::DirectTls => {
                let direct = packet == StartupPacket::DirectTls;
                match (stream, &access.tls) {
                    (SecureStream::Plain(plain), Some(tls)) => {
                        let mut plain = plain;
                        if !direct && timeout_at(deadline, plain.write_all(b"S")).await.is_err() {
                            return Err((Refused::silent("client_gone"), None));
                        }
                        let begun = if direct { Begun::Direct } else { Begun::Requested };
                        let read = std::mem::take(&mut inbox);
                        match accept_tls(plain, read, begun, tls, deadline).await {
                            Ok(secure) => stream = secure,
                            Err(error) => {
                                tracing::debug!(%error, "no TLS with a database client");
                                return Err((Refused::silent("tls"), None));
                            }
                        }
                    }
                    // Without a certificate nothing can be said within TLS.
                    (_, _) if direct => return Err((Refused::silent("refused"), None)),
                    (mut other, _) => {
                        if tell(&mut other, b"N", deadline).await.is_err() {
                            return Err((Refused::silent("client_gone"), None));
                        }
                        stream = other;
                    }
                }
            }
        }
    }
}

async fn tell(stream: &mut SecureStream, word: &[u8], deadline: Instant) -> Result<(), ()> {
    let said = async {
        stream.write_all(word).await?;
        stream.flush().await
    };
    match timeout_at(deadline, said).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

/// The next packet. What is behind it stays in `inbox`; the bytes of a TLS handshake stay there as well.
async fn read_packet(
    stream: &mut SecureStream,
    inbox: &mut BytesMut,
    deadline: Instant,
) -> Result<StartupPacket, Refused> {
    loop {
        if !inbox.is_empty()
            && let Progress::Packet(packet, used) = parse(inbox)?
        {
            if packet != StartupPacket::DirectTls {
                let _ = inbox.split_to(used);
            }
            return Ok(packet);
        }
        match timeout_at(deadline, stream.read_buf(inbox)).await {
            Err(_) => return Err(Refused::silent("startup_timeout")),
            Ok(Ok(0) | Err(_)) => return Err(Refused::silent("client_gone")),
            Ok(Ok(_)) => {}
        }
    }
}

/// Where a client has come to, with what it is told first.
enum Entered {
    Pool(Arc<Pool>, Arc<Parameters>, Prefers, BytesMut),
    Console(BytesMut),
}

/// A client with a StartupMessage.
struct LoggingIn<'a> {
    access: &'a Access,
    pools: &'a Arc<Pools>,
    settings: &'a Arc<DbPool>,
    replicas: Option<&'a Replicas>,
    read_only: bool,
    deadline: Instant,
    who: super::places::Who,
}

impl LoggingIn<'_> {
    /// The pool, what the client is told of parameters, and what comes before that.
    async fn run(&self, welcome: &mut Welcome) -> Result<Entered, Refused> {
        let message = &welcome.message;
        if message.user.is_empty() {
            return Err(Refused::fatal(
                "malformed",
                "28000",
                "no PostgreSQL user name specified in startup packet",
            ));
        }
        if message.is_replication() {
            let text = "qudag-sidecar: replication connections are not pooled; connect to the server itself";
            return Err(Refused::fatal("refused", "0A000", text));
        }
        let mut said = BytesMut::new();
        let unknown: Vec<&[u8]> = message.protocol_options().collect();
        if message.minor > MINOR || !unknown.is_empty() {
            build::negotiate(&mut said, message.minor.min(MINOR), &unknown);
        }
        let mut given = message.given().map_err(|why| Refused::fatal("malformed", "22023", &why))?;
        let prefers = self.prefers(&mut given)?;
        let users = self.access.users.as_ref().map_err(|why| {
            tracing::warn!(%why, "nobody can log in to pooled sessions");
            Refused::with(&FilterError::Internal("no users are known".into()))
        })?;
        if !said.is_empty() && tell(&mut welcome.stream, &said.split(), self.deadline).await.is_err() {
            return Err(Refused::silent("client_gone"));
        }
        let user = message.user.clone();
        let identity =
            authenticate(&mut welcome.stream, &mut welcome.inbox, &user, users, self.deadline).await;
        let identity = identity.map_err(|error| {
            let mut said = BytesMut::new();
            error.write(&mut said);
            Refused { outcome: error.label(), said }
        })?;
        said.extend_from_slice(build::AUTHENTICATION_OK);
        if welcome.message.database == console::DATABASE {
            if self.access.admins.iter().any(|admin| admin.as_bytes() == user) {
                return Ok(Entered::Console(said));
            }
            let text = "qudag-sidecar: not an administrator; see listeners.postgres.auth.admins";
            return Err(Refused::fatal("refused", "42501", text));
        }
        let mut target = Arc::clone(&self.access.target);
        let mut key = PoolKey {
            server: Arc::clone(&target.name),
            user: user.into(),
            database: welcome.message.database.clone().into(),
        };
        if let Some(replicas) = self.replicas {
            target = replicas.enter(self.pools, &target, &key, &identity);
            key.server = Arc::clone(&target.name);
        }
        let mut servers = self.replicas.map(Replicas::targets).unwrap_or_default();
        if servers.is_empty() {
            servers.push(Arc::clone(&self.access.target));
        }
        let asker =
            || Asker { user: key.user.clone(), database: key.database.clone(), identity: identity.clone() };
        self.access.load.enter(self.pools, servers, asker);
        let pool = self.pools.pool(&key, &target, self.settings, identity);
        let pool = pool.ok_or_else(|| Refused::with(&FilterError::Overloaded("too many pools".into())))?;
        let known = pool.welcome(self.who).await.map_err(|failed| match failed.response {
            Some(response) => Refused { outcome: "refused", said: BytesMut::from(&response[..]) },
            None => Refused::with(&failed.error),
        })?;
        let parameters = self.parameters(&pool, known, &given).await?;
        Ok(Entered::Pool(pool, parameters, prefers, said))
    }

    /// Takes what the client prefers out of what it gave.
    fn prefers(&self, given: &mut Vec<Setting>) -> Result<Prefers, Refused> {
        let mut prefers = if self.read_only { Prefers::Replica } else { Prefers::Any };
        let mut wrong = false;
        given.retain(|(name, value)| {
            let ours = name.eq_ignore_ascii_case(TARGET);
            if ours {
                match &value[..] {
                    b"any" => prefers = Prefers::Any,
                    b"primary" => prefers = Prefers::Primary,
                    b"replica" => prefers = Prefers::Replica,
                    _ => wrong = true,
                }
            }
            !ours
        });
        if wrong {
            let text = "qudag-sidecar: invalid value for parameter \"qudag.target\": primary, replica or any";
            return Err(Refused::fatal("malformed", "22023", text));
        }
        Ok(prefers)
    }

    /// What the client is told: what the server has, and what it makes of what the client gave.
    async fn parameters(
        &self,
        pool: &Arc<Pool>,
        known: Arc<Parameters>,
        given: &[Setting],
    ) -> Result<Arc<Parameters>, Refused> {
        if given.is_empty() {
            return Ok(known);
        }
        let mut wish = Vec::new();
        for (name, value) in given {
            for part in [name, value] {
                wish.extend_from_slice(part);
                wish.push(0);
            }
        }
        // Clients that gave the same share what they are told, so that a server that one had is known to be right for the next.
        if let Some(made) = pool.wish(&wish) {
            return Ok(made);
        }
        let mut wanted = Parameters::clone(&known);
        for (name, value) in given {
            wanted.give(name, value);
        }
        // A plain name is what the server would make of it.
        let plain = |value: &[u8]| value.len() < 64 && value.iter().all(|byte| (b' '..=b'~').contains(byte));
        let is_plain =
            given.iter().all(|(name, value)| name.eq_ignore_ascii_case(b"application_name") && plain(value));
        let made = if is_plain { Arc::new(wanted) } else { self.ask_server(pool, wanted).await? };
        pool.remember_wish(wish.into(), Arc::clone(&made));
        Ok(made)
    }

    /// Lets a server take the parameters, as it would at a login: it says what is wrong, and how it writes what is right.
    async fn ask_server(&self, pool: &Arc<Pool>, wanted: Parameters) -> Result<Arc<Parameters>, Refused> {
        let asked = async {
            let lease = pool.take(Want { who: self.who, bytes: 0, pressure: None }).await;
            let mut lease = lease.map_err(|error| Refused::with(&error))?;
            let mut client = Client::new(Arc::new(wanted));
            let mut inbox = BytesMut::new();
            let names = client.parameters().question(&mut inbox);
            let Some(conn) = lease.conn() else { return Err(lost()) };
            let mut out = BytesMut::new();
            let mut ready = conn.machine.attach(&mut client, &mut conn.up);
            loop {
                if ready {
                    let mut texts = pool.texts.lock().unwrap_or_else(PoisonError::into_inner);
                    let sent = client.up(&mut conn.machine, &mut texts, &mut inbox, &mut conn.up, &mut out);
                    sent.map_err(|_| lost())?;
                }
                let up = conn.up.split();
                conn.stream.write_all(&up).await.map_err(|_| lost())?;
                conn.stream.flush().await.map_err(|_| lost())?;
                if conn.stream.read_buf(&mut conn.down).await.map_err(|_| lost())? == 0 {
                    return Err(lost());
                }
                match conn.machine.down(&mut conn.down, &mut out, Some(&mut client.seen)) {
                    Ok(Down::Ready) => ready = true,
                    Ok(Down::Free) => break,
                    Ok(Down::SetupFailed) => {
                        let said = backend::as_fatal(conn.machine.failure());
                        return Err(Refused { outcome: "refused", said });
                    }
                    Ok(_) => {}
                    Err(_) => return Err(lost()),
                }
            }
            let values = backend::first_row(&out).ok_or_else(lost)?;
            let mut made = Parameters::clone(client.parameters());
            for (name, value) in names.iter().zip(&values) {
                made.give(name, value);
            }
            match conn.machine.leave(&mut client, &mut conn.up) {
                Tidy::Clean => lease.give_back(None, std::time::Instant::now()),
                tidy => lease.tidy(tidy, None),
            }
            Ok(Arc::new(made))
        };
        match timeout_at(self.deadline, asked).await {
            Ok(made) => made,
            Err(_) => Err(Refused::with(&FilterError::Timeout { after: self.access.target.connect_timeout })),
        }
    }
}

fn lost() -> Refused {
    Refused::with(&FilterError::Upstream("the connection to the server is lost".into()))
}
