//! The client's side of a login, sans-io: what a server asks for is answered with what there is.

use bytes::{Bytes, BytesMut};

use super::login::LoginError;
use super::scram::{Client, Credentials};
use super::secret::Identity;
use crate::session::Parameters;
use crate::wire::auth::{self, Request, SaslInitial};
use crate::wire::backend::{self, Report, Status};
use crate::wire::{Head, WireError, body};

/// More parameters are not reported by any server.
const MOST_PARAMETERS: usize = 1000;

/// How far the authentication is.
#[derive(Debug)]
enum State {
    /// Nothing was asked for.
    Begun,
    /// A password or its hash was sent.
    Sent,
    /// The first message of SCRAM was sent.
    First(Client),
    /// The last one was sent.
    Last(Client),
    /// The server has shown that it knows the user's verifier.
    Proved,
    /// AuthenticationOk.
    Passed,
}

/// A login after its StartupMessage.
#[derive(Debug)]
pub(super) struct Exchange {
    user: Box<[u8]>,
    identity: Identity,
    /// The hash of the server's certificate.
    binding: Option<Box<[u8]>>,
    state: State,
    parameters: Parameters,
    reported: usize,
    key: (u32, Box<[u8]>),
}

/// What a session begins with.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) parameters: Parameters,
    pub(super) process: u32,
    pub(super) secret: Box<[u8]>,
}

impl From<WireError> for LoginError {
    fn from(_: WireError) -> Self {
        Self::Protocol("malformed message")
    }
}

/// Whether answering this message computes for so long that it has no place on a thread that serves others.
pub(super) fn is_slow(message: &[u8], exchange: &Exchange) -> bool {
    message.first() == Some(&auth::REQUEST)
        && matches!((&exchange.state, &exchange.identity), (State::First(_), Identity::Password(_)))
}

impl Exchange {
    pub(super) fn new(user: &[u8], identity: Identity, binding: Option<&[u8]>) -> Self {
        Self {
            user: user.into(),
            identity,
            binding: binding.map(Into::into),
            state: State::Begun,
            parameters: Parameters::default(),
            reported: 0,
            key: (0, Box::default()),
        }
    }

    /// Takes a whole message of the server, and writes the answer. True at ReadyForQuery.
    ///
    /// # Errors
    /// When the server refuses, does not follow the protocol, or asks for something that there is not.
    pub(super) fn take(
        &mut self,
        head: Head,
        message: Bytes,
        out: &mut BytesMut,
    ) -> Result<bool, LoginError> {
        let content = body(&message, head).ok_or(LoginError::Protocol("cut message"))?;
        let passed = matches!(self.state, State::Passed);
        match head.kind {
            backend::ERROR => {
                let sqlstate = String::from_utf8_lossy(Report::read(content).sqlstate).into_owned();
                return Err(LoginError::Refused { sqlstate, response: message });
            }
            backend::NOTICE => {}
            // Protocol 3.0 was asked for, which every server speaks: what it names are options that the client has given.
            backend::NEGOTIATE => drop(backend::negotiate(content)?),
            auth::REQUEST if !passed => self.answer(&Request::read(content)?, out)?,
            backend::PARAMETER if passed => {
                let (name, value) = backend::parameter(content)?;
                self.reported += 1;
                if self.reported > MOST_PARAMETERS {
                    return Err(LoginError::Protocol("too many parameters"));
                }
                self.parameters.report(name, value);
            }
            backend::KEY_DATA if passed => {
                let (process, secret) = backend::key_data(content)?;
                self.key = (process, secret.into());
            }
            backend::READY if passed && Status::read(content)? == Status::Idle => return Ok(true),
            _ => return Err(LoginError::Protocol("message out of turn")),
        }
        Ok(false)
    }

    fn answer(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<(), LoginError> {
        let state = std::mem::replace(&mut self.state, State::Sent);
        self.state = match (request, state) {
            // A server that trusts asks for nothing. One that has begun SCRAM has to prove itself to the end.
            (Request::Ok, State::Begun | State::Sent | State::Proved) => State::Passed,
            (Request::Cleartext, State::Begun) => {
                let Identity::Password(password) = &self.identity else {
                    return Err(LoginError::Credentials("the server asks for a password, and none is known"));
                };
                auth::put_password(out, password.bytes());
                State::Sent
            }
            (Request::Md5(salt), State::Begun) => {
                let response = match &self.identity {
                    Identity::Password(password) => {
                        super::Md5Hash::of_password(password.bytes(), &self.user).response(*salt)
                    }
                    Identity::Md5(hash) => hash.response(*salt),
                    Identity::Trust | Identity::Key(_) => {
                        return Err(LoginError::Credentials(
                            "the server asks for an MD5 hash, and none is known",
                        ));
                    }
                };
                auth::put_password(out, &response);
                State::Sent
            }
            (Request::Sasl(offered), State::Begun) => {
                let credentials = match &self.identity {
                    Identity::Password(password) => Credentials::Password(password.clone()),
                    Identity::Key(key) => Credentials::Key(key.clone()),
                    Identity::Trust | Identity::Md5(_) => {
                        return Err(LoginError::Credentials(
                            "the server asks for SCRAM, and neither password nor key is known",
                        ));
                    }
                };
                let offered: Vec<_> =
                    offered.iter().filter_map(|mechanism| std::str::from_utf8(mechanism).ok()).collect();
                let (client, mechanism) = Client::new(credentials, &offered, self.binding.as_deref())?;
                let first = client.first();
                SaslInitial { mechanism: mechanism.as_bytes(), response: Some(&first) }.write(out);
                State::First(client)
            }
            (Request::SaslContinue(data), State::First(mut client)) => {
                auth::sasl_response(out, &client.answer(data)?);
                State::Last(client)
            }
            (Request::SaslFinal(data), State::Last(client)) => {
                client.verify(data)?;
                State::Proved
            }
            (Request::Other(_), State::Begun) => {
                return Err(LoginError::Credentials("the server asks for an unknown kind of authentication"));
            }
            _ => return Err(LoginError::Protocol("authentication out of turn")),
        };
        Ok(())
    }

    /// What the session begins with.
    pub(super) fn finish(self) -> Session {
        let (process, secret) = self.key;
        Session { parameters: self.parameters, process, secret }
    }
}

/// The entry for fuzzing: whatever a server says, there is an answer or an error, in any pieces the same; and nobody gets in by SCRAM who
/// does not know the verifier.
///
/// # Panics
/// When an invariant is broken.
pub fn fuzz_login(bytes: &[u8]) {
    let password = super::Password::new(b"sesame");
    for identity in [Identity::Trust, Identity::Password(password.clone())] {
        let known = identity != Identity::Trust;
        let mut exchange = Exchange::new(b"ann", identity, None);
        let mut rest = bytes;
        let mut out = BytesMut::new();
        while let Ok(Some(head)) = auth::server_head(rest) {
            let Some(message) = rest.get(..head.len) else { break };
            let before = out.len();
            let taken = exchange.take(head, Bytes::copy_from_slice(message), &mut out);
            assert!(known || out.len() == before, "an answer without a secret");
            assert!(!matches!(exchange.state, State::Proved), "a server that knows nothing");
            if !matches!(taken, Ok(false)) {
                break;
            }
            rest = rest.get(head.len..).unwrap_or_default();
        }
        // Every answer is a message that a server reads.
        let mut answers = &out[..];
        while let Ok(Some(head)) = auth::client_head(answers) {
            assert!(answers.len() >= head.len, "a cut answer");
            answers = answers.get(head.len..).unwrap_or_default();
        }
        assert!(answers.is_empty(), "an answer that no server reads");
        assert!(!known || !out.windows(6).any(|part| part == b"sesame") || bytes.contains(&3), "unasked");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::scram::{SCRAM_SHA_256, Server, Verifier};
    use crate::auth::{Md5Hash, Password};
    use crate::wire::build;

    fn say(
        exchange: &mut Exchange,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<(bool, BytesMut), LoginError> {
        let (mut message, mut out) = (BytesMut::new(), BytesMut::new());
        write(&mut message);
        let head = auth::server_head(&message)?.unwrap();
        exchange.take(head, message.freeze(), &mut out).map(|ready| (ready, out))
    }

    fn ask(exchange: &mut Exchange, request: Request<'_>) -> Result<BytesMut, LoginError> {
        say(exchange, |out| request.write(out)).map(|(_, out)| out)
    }

    fn password() -> Identity {
        Identity::Password(Password::new(b"sesame"))
    }

    fn exchange(identity: Identity) -> Exchange {
        Exchange::new(b"ann", identity, None)
    }

    #[test]
    fn a_session_begins_after_everything_was_told() {
        let mut login = exchange(password());
        assert!(say(&mut login, |out| build::parameter(out, b"a", b"b")).is_err(), "before AuthenticationOk");
        let sent = ask(&mut login, Request::Cleartext).unwrap();
        assert_eq!(&sent[..], b"p\0\0\0\x0bsesame\0");
        assert!(ask(&mut login, Request::Ok).unwrap().is_empty());
        assert!(!say(&mut login, |out| build::parameter(out, b"TimeZone", b"UTC")).unwrap().0);
        assert!(!say(&mut login, |out| build::key_data(out, 7, b"1234")).unwrap().0);
        assert!(say(&mut login, |out| out.extend_from_slice(&build::ready(Status::Failed))).is_err());
        assert!(say(&mut login, |out| out.extend_from_slice(&build::ready(Status::Idle))).unwrap().0);
        let Session { parameters, process, secret } = login.finish();
        assert_eq!((parameters.get(b"TimeZone"), process, &*secret), (Some(&b"UTC"[..]), 7, &b"1234"[..]));
    }

    #[test]
    fn a_server_asks_once_and_in_turn() {
        for (first, second) in [
            (Request::Cleartext, Request::Cleartext),
            (Request::Md5([1; 4]), Request::Cleartext),
            (Request::Ok, Request::Cleartext),
            (Request::Cleartext, Request::SaslFinal(b"v=")),
        ] {
            let mut login = exchange(password());
            ask(&mut login, first.clone()).unwrap();
            assert!(matches!(ask(&mut login, second), Err(LoginError::Protocol(_))), "{first:?}");
        }
        assert!(matches!(ask(&mut exchange(password()), Request::Other(7)), Err(LoginError::Credentials(_))));
        let hash = Md5Hash::of_password(b"sesame", b"ann");
        let by_hash = ask(&mut exchange(Identity::Md5(hash)), Request::Md5([1; 4])).unwrap();
        assert_eq!(by_hash, ask(&mut exchange(password()), Request::Md5([1; 4])).unwrap());
    }

    #[test]
    fn a_server_that_has_begun_scram_proves_itself() {
        let offered = || Request::Sasl(vec![b"OTHER", SCRAM_SHA_256.as_bytes()]);
        let begun = |verifier: &Verifier| {
            let mut login = exchange(password());
            let mut server = Server::new(verifier.clone(), None).unwrap();
            let initial = ask(&mut login, offered()).unwrap();
            let initial = SaslInitial::read(&initial[5..]).unwrap();
            let first = server.first(SCRAM_SHA_256, initial.response.unwrap()).unwrap();
            let last = ask(&mut login, Request::SaslContinue(&first)).unwrap();
            (login, server.last(&last[5..]))
        };
        let verifier = Verifier::new(&Password::new(b"sesame")).unwrap();
        let (mut login, proved) = begun(&verifier);
        ask(&mut login, Request::SaslFinal(&proved.unwrap().0)).unwrap();
        ask(&mut login, Request::Ok).unwrap();
        // One that does not know the verifier, and one that says nothing.
        for lie in [Request::SaslFinal(b"v=AAAA"), Request::Ok] {
            let (mut login, _) = begun(&verifier);
            assert!(ask(&mut login, lie).is_err());
        }
        let mut login = exchange(password());
        ask(&mut login, offered()).unwrap();
        assert!(ask(&mut login, Request::Ok).is_err());
        assert!(ask(&mut exchange(password()), Request::Sasl(vec![b"OTHER"])).is_err());
    }

    #[test]
    fn what_the_server_refuses_is_kept_as_it_came() {
        let error = b"E\0\0\0\x1bSFATAL\0VFATAL\0C53300\0\0";
        let mut message = error.to_vec();
        message[4] = u8::try_from(error.len() - 1).unwrap();
        let refused = say(&mut exchange(Identity::Trust), |out| out.extend_from_slice(&message)).unwrap_err();
        let LoginError::Refused { sqlstate, response } = refused else { panic!("{refused}") };
        assert_eq!((&*sqlstate, &response[..]), ("53300", &message[..]));
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_there_is_an_answer(
            messages in prop::collection::vec((prop::sample::select(&b"RRRRSKZENv"[..]), prop_oneof![Just(0_u32), Just(3), Just(5), Just(10), Just(11), Just(12)],
                prop_oneof![Just(b"SCRAM-SHA-256\0\0".to_vec()), prop::collection::vec(any::<u8>(), 0..20)]), 0..6),
        ) {
            let mut bytes = Vec::new();
            for (kind, code, rest) in messages {
                bytes.push(kind);
                bytes.extend(u32::try_from(rest.len() + 8).unwrap().to_be_bytes());
                bytes.extend(code.to_be_bytes());
                bytes.extend(rest);
            }
            fuzz_login(&bytes);
        }
    }
}
