//! Commands that are handled alone: those that the sidecar answers, or that lead the session to other connections.

use std::sync::Arc;

use bytes::Buf;
use metrics::counter;
use qudag_filter_api::FilterError;

use super::{End, Session, Step, first_key};
use crate::redis::class::Class;
use crate::redis::conn::{Conn, LoginError};
use crate::redis::credentials::{Credentials, command};
use crate::redis::pools::PoolKey;
use crate::redis::reply::{line, refusal};
use crate::redis::resp::arguments;

impl Session {
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
    pub(super) async fn alone(&mut self, class: Class, length: usize) -> Step {
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
                if let Some(pool) = self.pools.pool(&first, &self.target) {
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
        match self.pools.try_out(&key, &self.target).await {
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
            self.pools.pool(&key, &self.target)
        } else if !fresh && key == self.pool.key {
            Some(Arc::clone(&self.pool))
        } else {
            match self.pools.try_out(&key, &self.target).await {
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
    pub(super) async fn own(&mut self, why: &'static str, length: usize) -> Step {
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
        match self.held.take() {
            Some(lease) => {
                let seat = match self.pools.own_seat() {
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
                let opened = self.pools.own(&self.target, &self.pool.key, name).await?;
                Ok(Box::new(opened))
            }
        }
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
