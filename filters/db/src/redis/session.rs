//! A pooled session: the machine between the client's socket and the connections that its batches get.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use metrics::{Counter, counter};
use qudag_filter_api::{Chains, FilterError};
use qudag_filter_common::{Drain, Stream};
use tokio::time::{sleep, timeout};

use super::class::Class;
use super::conn::{Conn, LoginError};
use super::credentials::{Credentials, command};
use super::filters::RedisPool;
use super::kind::{Pooled, Redis, RedisAnswer, RedisBatch, RedisRequest};
use super::machine::{Batch, LONG, Machine};
use super::reply::{line, refusal};
use super::resp::arguments;
use super::servers::{Lease, Pool, PoolKey, Pools};
use super::settings::RedisUpstream;
use crate::pool::conn::{poll_read, poll_write};

/// How much is read of a server before the client has taken it.
const MOST_OUT: usize = 256 << 10;

/// How a pooled session ends.
pub(crate) enum End {
    /// With this outcome. What is still to be said to the client has been said.
    Over(&'static str),
    /// It has a connection of its own from now on: bytes are passed on.
    Own(Box<Conn>),
}

/// A pooled session.
pub(crate) struct Session {
    pub(crate) client: Stream,
    address: Option<SocketAddr>,
    /// From the client, and towards it.
    pub(crate) inbox: BytesMut,
    pub(crate) out: BytesMut,
    machine: Machine,
    chains: Chains<Redis>,
    pools: Arc<Pools>,
    target: Arc<RedisUpstream>,
    settings: Arc<RedisPool>,
    pool: Arc<Pool>,
    /// The pool before what the server is being asked for.
    before: Option<Arc<Pool>>,
    /// The connection of a transaction.
    held: Option<Lease>,
    /// What the client calls itself.
    name: Option<Vec<u8>>,
    /// The client has finished.
    ended: bool,
    stall: Duration,
    /// Bytes passed on.
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) commands: u64,
    counted: Counter,
}

/// What the chain says to a batch.
enum Admitted {
    Lease(Lease),
    /// There is no pool any more.
    Own,
    Refused(FilterError),
}

type Step = Result<(), End>;

const GONE: End = End::Over("client_gone");

impl Session {
    /// `None` when there are too many pools.
    pub(crate) fn new(
        client: Stream,
        pooled: Pooled,
        chains: Chains<Redis>,
        stall: Duration,
    ) -> Option<Self> {
        let Pooled { pools, settings, upstream } = pooled;
        let pool = pools.pool(&first_key(&upstream), &upstream, &settings)?;
        Some(Self {
            address: client.peer_addr(),
            client,
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            machine: Machine::default(),
            chains,
            pools,
            target: upstream,
            settings,
            pool,
            before: None,
            held: None,
            name: None,
            ended: false,
            stall,
            up: 0,
            down: 0,
            commands: 0,
            counted: counter!("qudag_sidecar_redis_commands_total"),
        })
    }

    /// Serves the client until its session ends or is passed on.
    pub(crate) async fn run(&mut self, drain: &Drain) -> End {
        loop {
            self.machine.look(&self.inbox);
            self.inbox.advance(self.machine.take_empty().min(self.inbox.len()));
            let step = if let Some(batch) = self.machine.batch() {
                self.batch(batch).await
            } else if let Some((class, length)) = self.machine.take_alone() {
                self.alone(class, length).await
            } else if let Some(why) = self.machine.malformed() {
                // As servers say it before they close.
                self.out.extend_from_slice(&line(&format!("ERR Protocol error: {why}")));
                self.flush().await.and(Err(End::Over("malformed")))
            } else if self.ended {
                self.flush().await.and(Err(End::Over("ok")))
            } else {
                self.wait(drain).await
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Waits for more of the client.
    async fn wait(&mut self, drain: &Drain) -> Step {
        let idle = self.held.as_ref().map(|_| self.settings.idle_in_transaction.0);
        let quiet = idle.is_none() && self.inbox.is_empty() && self.out.is_empty();
        tokio::select! {
            biased;
            turn = self.turn() => turn,
            () = drain.stopping(), if quiet => Err(End::Over("ok")),
            () = sleep(idle.unwrap_or_default()), if idle.is_some() => Err(End::Over("idle_in_transaction")),
        }
    }

    /// Writes to the client until all is written, or reads something of it; what comes first.
    async fn turn(&mut self) -> Step {
        let stall = self.stall;
        let waits = !self.out.is_empty();
        let turn = poll_fn(|cx| {
            if !self.out.is_empty() {
                match poll_write(&mut self.client, cx, &mut self.out) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(GONE)),
                    Poll::Pending => {}
                }
            }
            self.poll_inbox(cx)
        });
        if waits { timeout(stall, turn).await.unwrap_or(Err(End::Over("stalled"))) } else { turn.await }
    }

    /// Reads of the client unless much is there already.
    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.ended || self.inbox.len() >= 2 * LONG {
            return Poll::Pending;
        }
        match std::task::ready!(poll_read(&mut self.client, cx, &mut self.inbox)) {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(_) => return Poll::Ready(Err(GONE)),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is to be said to the client.
    async fn flush(&mut self) -> Step {
        while !self.out.is_empty() {
            let before = self.out.len();
            let written = poll_fn(|cx| match poll_write(&mut self.client, cx, &mut self.out) {
                Poll::Pending if self.out.len() < before => Poll::Ready(Ok(())),
                polled => polled,
            });
            match timeout(self.stall, written).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(GONE),
                Err(_) => return Err(End::Over("stalled")),
            }
        }
        Ok(())
    }

    async fn batch(&mut self, batch: Batch) -> Step {
        if self.out.len() > MOST_OUT {
            self.flush().await?;
        }
        let mut lease = match self.held.take() {
            Some(lease) => lease,
            None => match self.admit(batch.bytes).await? {
                Admitted::Lease(lease) => lease,
                Admitted::Own => return self.own("pool_off", 0).await,
                Admitted::Refused(error) => return self.refuse(batch, &error).await,
            },
        };
        self.commands += batch.commands as u64;
        self.counted.increment(batch.commands as u64);
        self.exchange(&mut lease, batch.bytes).await?;
        if self.machine.is_pinned() {
            self.held = Some(lease);
        } else {
            lease.give_back();
        }
        if let Some(before) = self.before.take()
            && self.machine.was_declined()
        {
            self.pool = before;
        }
        Ok(())
    }

    /// Asks the chain for a connection; meanwhile the client is heard.
    async fn admit(&mut self, bytes: usize) -> Result<Admitted, End> {
        let Some(generation) = (self.chains)() else { return Ok(Admitted::Refused(FilterError::Draining)) };
        let pool = Arc::clone(&self.pool);
        let batch = RedisBatch { client: self.address, pool, bytes, pressure: None };
        let mut asked = pin!(generation.chain.call(RedisRequest::Batch(batch)));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut asked => break answer,
                turn = self.turn() => {
                    turn?;
                    if self.ended {
                        // It does not wait for an answer any more, as far as anybody can tell.
                        return Err(GONE);
                    }
                }
            }
        };
        Ok(match answer {
            Ok(RedisAnswer::Server(lease)) => Admitted::Lease(lease),
            Ok(RedisAnswer::Own) => Admitted::Own,
            Ok(RedisAnswer::PassThrough(_) | RedisAnswer::Pooled(_)) => {
                Admitted::Refused(FilterError::Internal("a session for a batch".into()))
            }
            Err(error) => Admitted::Refused(error),
        })
    }

    /// Sends the batch, which is the first bytes of the inbox, and takes all its answers.
    async fn exchange(&mut self, lease: &mut Lease, bytes: usize) -> Step {
        let Some(conn) = lease.conn() else { return Err(End::Over("internal")) };
        conn.up.unsplit(self.inbox.split_to(bytes));
        self.up += bytes as u64;
        self.machine.sent();
        loop {
            let waits = !self.out.is_empty();
            let stall = self.stall;
            let progress = poll_fn(|cx| self.poll_progress(cx, conn));
            if waits {
                timeout(stall, progress).await.unwrap_or(Err(End::Over("stalled")))?;
            } else {
                progress.await?;
            }
            if self.machine.is_long() {
                if self.ended {
                    return Err(GONE);
                }
                let more = self.machine.more(&self.inbox).map_err(|_| End::Over("malformed"))?;
                self.up += more as u64;
                conn.up.unsplit(self.inbox.split_to(more));
            }
            let passed = self.machine.pass(&mut conn.scan, &mut conn.down, &mut self.out);
            self.down += passed.ok_or(End::Over("upstream"))? as u64;
            if self.machine.is_answered() && !self.machine.is_long() && conn.up.is_empty() {
                return Ok(());
            }
        }
    }

    /// Moves bytes between the sockets and the buffers; ready when any have moved.
    fn poll_progress(&mut self, cx: &mut Context<'_>, conn: &mut Conn) -> Poll<Step> {
        const LOST: End = End::Over("upstream");
        let mut moved = false;
        if !conn.up.is_empty() {
            let before = conn.up.len();
            if let Poll::Ready(Err(_)) = poll_write(&mut conn.stream, cx, &mut conn.up) {
                return Poll::Ready(Err(LOST));
            }
            moved |= conn.up.len() < before;
        }
        if !self.out.is_empty() {
            let before = self.out.len();
            if let Poll::Ready(Err(_)) = poll_write(&mut self.client, cx, &mut self.out) {
                return Poll::Ready(Err(GONE));
            }
            moved |= self.out.len() < before;
        }
        if !self.machine.is_long() || conn.up.len() < LONG {
            match self.poll_inbox(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {}
            }
        }
        if self.out.len() < MOST_OUT {
            match poll_read(&mut conn.stream, cx, &mut conn.down) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(LOST)),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// One error for each command of a batch.
    async fn refuse(&mut self, batch: Batch, error: &FilterError) -> Step {
        let label = error.label();
        counter!("qudag_sidecar_redis_refused_total", "reason" => label).increment(batch.commands as u64);
        self.inbox.advance(batch.bytes);
        self.machine.refused();
        if let Some(before) = self.before.take() {
            self.pool = before;
        }
        let refusal = refusal(error);
        for _ in 0..batch.commands {
            self.out.extend_from_slice(&refusal);
        }
        while self.machine.is_long() {
            let more = self.machine.more(&self.inbox).map_err(|_| End::Over("malformed"))?;
            self.inbox.advance(more);
            if self.machine.is_long() {
                if self.ended {
                    return Err(GONE);
                }
                self.turn().await?;
            }
        }
        if batch.opens || matches!(error, FilterError::Draining) {
            // Without a MULTI or WATCH that has failed, what comes next would be carried out otherwise than the client means it.
            self.flush().await?;
            return Err(End::Over(label));
        }
        Ok(())
    }

    fn say(&mut self, words: &[u8]) -> Step {
        self.out.extend_from_slice(words);
        Ok(())
    }

    /// The server's refusal in its own words, and one of the sidecar otherwise.
    fn say_refusal(&mut self, error: &LoginError) -> Step {
        match error {
            LoginError::Refused(words) => self.say(&[b"-", &words[..], b"\r\n"].concat()),
            LoginError::Failed(error) => self.say(&refusal(error)),
        }
    }

    /// A command that is handled alone. `length` is 0 for a long one that needs a connection of the session's own.
    async fn alone(&mut self, class: Class, length: usize) -> Step {
        if self.held.is_some() && class != Class::Quit {
            return self.own("transaction", length).await;
        }
        if let Class::Own(why) = class {
            return self.own(why, length).await;
        }
        let bytes = self.inbox.split_to(length);
        let Ok(words) = arguments(&bytes) else { return Err(End::Over("malformed")) };
        let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
        self.commands += 1;
        self.counted.increment(1);
        match (class, &words[..]) {
            (Class::Quit, _) => {
                self.say(b"+OK\r\n")?;
                self.flush().await?;
                Err(End::Over("ok"))
            }
            (Class::Reset, _) => {
                let first = first_key(&self.target);
                if let Some(pool) = self.pools.pool(&first, &self.target, &self.settings) {
                    self.pool = pool;
                }
                self.name = None;
                self.say(b"+RESET\r\n")
            }
            (Class::Auth, [_, password]) => self.auth(None, password).await,
            (Class::Auth, [_, user, password]) => self.auth(Some(user), password).await,
            (Class::Select, [_, database]) => match number(database) {
                Some(database) => {
                    let key = PoolKey { database, ..self.pool.key.clone() };
                    self.follow(key, false, &bytes).await
                }
                None => self.say(&line("ERR value is not an integer or out of range")),
            },
            (Class::Hello, [_, options @ ..]) => self.hello(options).await,
            (Class::SetName, [_, _, name]) if name.iter().all(u8::is_ascii_graphic) => {
                self.name = (!name.is_empty()).then(|| name.to_vec());
                self.say(b"+OK\r\n")
            }
            (Class::SetName, [_, _, _]) => {
                self.say(&line("ERR Client names cannot contain spaces, newlines or special characters."))
            }
            (Class::GetName, [_, _]) => {
                let name = match &self.name {
                    Some(name) => [format!("${}\r\n", name.len()).as_bytes(), &name[..], b"\r\n"].concat(),
                    None if self.pool.key.resp3 => b"_\r\n".to_vec(),
                    None => b"$-1\r\n".to_vec(),
                };
                self.say(&name)
            }
            // What a client library is called, for the list of connections, where these connections do not belong to it.
            (Class::SetInfo, [_, _, _, _]) => self.say(b"+OK\r\n"),
            // How many replicas have what this session has written to other connections is not known. From now on it is.
            (Class::Wait, [_, _, _]) => self.own_after(b":0\r\n").await,
            (Class::WaitAof, [_, _, _, _]) => self.own_after(b"*2\r\n:0\r\n:0\r\n").await,
            // With a wrong number of words; the server says so in its own words.
            _ => {
                self.put_first(&bytes);
                Ok(())
            }
        }
    }

    /// The server is asked for this before everything else that the client has sent.
    fn put_first(&mut self, bytes: &[u8]) {
        self.machine.put_first(&mut self.inbox, bytes);
    }

    /// Whether the server lets a client in is asked each time, so that a password that was changed is not good any more.
    async fn auth(&mut self, user: Option<&[u8]>, password: &[u8]) -> Step {
        let credentials = Some(Arc::new(Credentials::new(user, password.to_vec())));
        let key = PoolKey { credentials, ..self.pool.key.clone() };
        match self.pools.try_out(&key, &self.target, &self.settings).await {
            Ok(pool) => {
                self.pool = pool;
                self.say(b"+OK\r\n")
            }
            Err(error) => self.say_refusal(&error),
        }
    }

    /// HELLO \[version \[AUTH user password\] \[SETNAME name\]\]
    async fn hello(&mut self, options: &[&[u8]]) -> Step {
        let mut key = self.pool.key.clone();
        let (mut name, mut fresh) = (None, false);
        let Some((version, mut options)) = options.split_first() else {
            self.put_first(&command(&[b"HELLO"]));
            return Ok(());
        };
        loop {
            match options {
                [] => break,
                [option, user, password, rest @ ..] if option.eq_ignore_ascii_case(b"AUTH") => {
                    key.credentials = Some(Arc::new(Credentials::new(Some(user), password.to_vec())));
                    fresh = true;
                    options = rest;
                }
                [option, called, rest @ ..] if option.eq_ignore_ascii_case(b"SETNAME") => {
                    if !called.iter().all(u8::is_ascii_graphic) {
                        return self.say(&line(
                            "ERR Client names cannot contain spaces, newlines or special characters.",
                        ));
                    }
                    name = Some(called.to_vec());
                    options = rest;
                }
                [option, ..] => {
                    let option = option.escape_ascii().to_string();
                    return self.say(&line(&format!("ERR Syntax error in HELLO option '{option}'")));
                }
            }
        }
        key.resp3 = match *version {
            b"2" => false,
            b"3" => true,
            other => {
                // The server says which versions it knows.
                self.put_first(&command(&[b"HELLO", other]));
                return Ok(());
            }
        };
        let before = Arc::clone(&self.pool);
        self.follow(key, fresh, &command(&[b"HELLO", version])).await?;
        if !Arc::ptr_eq(&before, &self.pool) || self.before.is_some() {
            self.name = name.or_else(|| self.name.take());
        }
        Ok(())
    }

    /// The session goes on with connections of another kind, if the server agrees; its answer to `words` is the client's. `fresh`:
    /// on a new connection in any case.
    async fn follow(&mut self, key: PoolKey, fresh: bool, words: &[u8]) -> Step {
        let pool = if !fresh && self.pools.knows(&key) {
            self.pools.pool(&key, &self.target, &self.settings)
        } else if !fresh && key == self.pool.key {
            Some(Arc::clone(&self.pool))
        } else {
            match self.pools.try_out(&key, &self.target, &self.settings).await {
                Ok(pool) => Some(pool),
                Err(error) => return self.say_refusal(&error),
            }
        };
        let Some(pool) = pool else {
            return self.say(&refusal(&FilterError::Overloaded("too many pools".into())));
        };
        self.before = Some(std::mem::replace(&mut self.pool, pool));
        self.put_first(words);
        Ok(())
    }

    /// A connection of the session's own, on which its next command is sent, of so many bytes.
    async fn own(&mut self, why: &'static str, length: usize) -> Step {
        match self.take_own().await {
            Ok(connection) => {
                counter!("qudag_sidecar_redis_own_total", "reason" => why).increment(1);
                Err(End::Own(connection))
            }
            Err(error) => {
                self.inbox.advance(length);
                self.say_refusal(&error)?;
                if length == 0 || self.held.is_some() {
                    // What the client would send next cannot be carried out as it means it.
                    self.flush().await?;
                    return Err(End::Over("overloaded"));
                }
                Ok(())
            }
        }
    }

    /// The same after a command that the sidecar has answered.
    async fn own_after(&mut self, answer: &[u8]) -> Step {
        match self.take_own().await {
            Ok(connection) => {
                counter!("qudag_sidecar_redis_own_total", "reason" => "wait").increment(1);
                self.say(answer)?;
                Err(End::Own(connection))
            }
            Err(error) => self.say_refusal(&error),
        }
    }

    async fn take_own(&mut self) -> Result<Box<Conn>, LoginError> {
        let most = self.settings.max_own;
        match self.held.take() {
            Some(lease) => {
                let seat = match self.pools.own_seat(most) {
                    Ok(seat) => seat,
                    Err(error) => {
                        self.held = Some(lease);
                        return Err(error.into());
                    }
                };
                let mut connection =
                    lease.keep().ok_or(FilterError::Internal("a place without a connection".into()))?;
                connection.becomes_own(seat);
                Ok(connection)
            }
            None => {
                let name = self.name.as_deref();
                let opened = self.pools.own(&self.target, &self.pool.key, name, most).await?;
                Ok(Box::new(opened))
            }
        }
    }
}

/// What a session begins with, and goes back to by RESET.
fn first_key(target: &RedisUpstream) -> PoolKey {
    PoolKey {
        server: Arc::clone(&target.name),
        credentials: target.credentials.clone(),
        database: 0,
        resp3: false,
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
