//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), both sides, sans-io.
//!
//! The sidecar proves a client to be a user with what the server keeps of the user's password, a [`Verifier`], which is of no use to log in
//! with. The client's proof then gives away the user's client key ([`ClientKey`]), with which the sidecar logs in at the server, whose verifier is the same: no
//! password is kept anywhere, and none is needed (`pgbouncer` calls it SCRAM pass-through).
//!
//! ```text
//! client ── client-first ─▶ Server::first ── server-first ─▶ client ── client-final ─▶ Server::last ── server-final ─▶ client
//!                                                                                         └─ ClientKey ─▶ Client (at the server)
//! ```

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::pbkdf2;
use data_encoding::BASE64;
use zeroize::{Zeroize, Zeroizing};

use super::secret::Password;

/// The name of the mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The name of the mechanism with it.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only channel binding that PostgreSQL knows (RFC 5929 section 4).
const BINDING: &str = "tls-server-end-point";
/// What PostgreSQL hashes new passwords with (`scram_iterations`).
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
/// The most that is computed for a server that asks for it; more would be a way to keep the sidecar busy.
const MOST_ITERATIONS: u32 = 1_000_000;
/// The length of PostgreSQL's salts, and of nonces before their encoding.
const SALT: usize = 16;
const NONCE: usize = 18;
/// The longest message that is read.
const LONGEST: usize = 4096;

type Key = [u8; 32];

/// Why an exchange fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message does not follow the grammar of RFC 5802 section 7.
    #[error("malformed SCRAM message")]
    Malformed,
    /// The password is not the user's, or the server does not know it.
    #[error("password authentication failed")]
    Refused,
    /// One side wants a channel binding that the other one cannot have, or was talked out of it on the way (RFC 5802 section 6).
    #[error("SCRAM channel binding negotiation error")]
    Binding,
    /// An extension that must be understood and is not.
    #[error("unsupported SCRAM extension")]
    Extension,
    /// The server wants the password to be hashed absurdly often.
    #[error("too many SCRAM iterations")]
    Iterations,
    /// The key is for another verifier than the server has: the password was changed, or another salt was given to it.
    #[error("the server has another SCRAM verifier than the sidecar")]
    OtherVerifier,
}

fn sign(key: &[u8], data: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, key), data);
    first_key(tag.as_ref())
}

fn hash(data: &[u8]) -> Key {
    first_key(digest(&SHA256, data).as_ref())
}

/// The output of SHA-256, which has this length.
fn first_key(bytes: &[u8]) -> Key {
    let mut key = [0; 32];
    key.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    key
}

fn xor(a: &Key, b: &Key) -> Key {
    let mut out = *a;
    out.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    out
}

/// `SaltedPassword` of RFC 5802 section 3, of a password that was prepared with SASLprep (RFC 4013) where that is possible: PostgreSQL takes others
/// as they are.
fn salted(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Zeroizing<Key> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    let prepared = prepared.map(|text| Zeroizing::new(text.into_owned()));
    let password = prepared.as_ref().map_or(password, |text| text.as_bytes());
    let mut out = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut *out);
    out
}

/// What a server keeps of a password, as in `pg_authid.rolpassword`: it tells a right proof from a wrong one, and can make none.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored: Key,
    server: Key,
}

impl Verifier {
    /// That of a password, with a salt that should be new.
    pub fn of_password(password: &Password, salt: &[u8]) -> Self {
        let salted = salted(password.bytes(), salt, ITERATIONS);
        let client = Zeroizing::new(sign(&*salted, b"Client Key"));
        let server = sign(&*salted, b"Server Key");
        Self { iterations: ITERATIONS, salt: salt.to_vec(), stored: hash(&*client), server }
    }

    /// That of a password, with a new salt.
    ///
    /// # Errors
    /// Where there is no randomness.
    pub fn new(password: &Password) -> Result<Self, ScramError> {
        let mut salt = [0; SALT];
        random(&mut salt)?;
        Ok(Self::of_password(password, &salt))
    }

    /// Whether a password is that of which it was made. Takes as long as its iterations do.
    pub fn verify(&self, password: &Password) -> bool {
        if self.iterations.get() > MOST_ITERATIONS {
            return false;
        }
        let salted = salted(password.bytes(), &self.salt, self.iterations);
        verify_slices_are_equal(&sign(&*salted, b"Server Key"), &self.server).is_ok()
    }

    /// One that no proof is right for, of a user that does not exist: its salt is the same each time, so that nobody can tell.
    pub fn decoy(user: &[u8], secret: &[u8]) -> Self {
        let of = |label: &[u8]| sign(secret, &[label, b"\0", user].concat());
        let salt = of(b"salt").iter().copied().take(SALT).collect();
        Self { iterations: ITERATIONS, salt, stored: of(b"stored"), server: of(b"server") }
    }
}

/// Never with its keys: whoever has the server's could pass for the server.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// As PostgreSQL writes it: `SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY`, the last three in base 64.
impl FromStr for Verifier {
    type Err = ScramError;

    fn from_str(text: &str) -> Result<Self, ScramError> {
        let parts = || {
            let (iterations, rest) = text.strip_prefix(SCRAM_SHA_256)?.strip_prefix('$')?.split_once(':')?;
            let (salt, keys) = rest.split_once('$')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text: &str| BASE64.decode(text.as_bytes()).ok()?.try_into().ok();
            Some(Self {
                iterations: iterations.parse().ok()?,
                salt: BASE64.decode(salt.as_bytes()).ok().filter(|salt| !salt.is_empty())?,
                stored: key(stored)?,
                server: key(server)?,
            })
        };
        parts().ok_or(ScramError::Malformed)
    }
}

/// What logs in as a user at a server that has the same verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey {
    key: Key,
    verifier: Verifier,
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").finish_non_exhaustive()
    }
}

/// Overwritten, since it logs in.
impl Drop for ClientKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Fills with random bytes. Fails only where the operating system has none, and nobody can log in then.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), ScramError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| ScramError::Refused)
}

/// A random nonce, printable and without commas.
fn nonce() -> Result<String, ScramError> {
    let mut bytes = [0; NONCE];
    random(&mut bytes)?;
    Ok(BASE64.encode(&bytes))
}

/// The value of an attribute that has to come next, and what is behind it.
fn attribute(text: &str, name: char) -> Result<(&str, &str), ScramError> {
    let (first, rest) = text.split_once(',').unwrap_or((text, ""));
    let value = first.strip_prefix(name).and_then(|value| value.strip_prefix('='));
    value.map(|value| (value, rest)).ok_or(ScramError::Malformed)
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    let short = Some(message).filter(|message| message.len() <= LONGEST);
    short.and_then(|message| std::str::from_utf8(message).ok()).ok_or(ScramError::Malformed)
}

/// What a client said of channel binding, `gs2-cbind-flag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    /// `n`: it has none.
    None,
    /// `y`: it has, and believes that the server has none.
    NotOffered,
    /// `p`: it uses it.
    Used,
}

/// The server's side of an exchange. What the user is called in it does not matter: PostgreSQL goes by the StartupMessage.
pub struct Server {
    verifier: Verifier,
    /// The hash of the certificate that the client has seen.
    binding: Option<Vec<u8>>,
    nonce: String,
    state: Option<Begun>,
}

struct Begun {
    /// `gs2-header`, with the hash behind it where it is bound.
    bound: Vec<u8>,
    /// `client-first-message-bare`, and the answer.
    said: String,
    /// Both nonces.
    nonce: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl Server {
    /// For a client that proves itself to be who this verifier is of. `binding` is what [`SCRAM_SHA_256_PLUS`] binds to, the hash of the
    /// certificate in use (RFC 5929 section 4.1), where there is TLS.
    ///
    /// # Errors
    /// Where there is no randomness.
    pub fn new(verifier: Verifier, binding: Option<Vec<u8>>) -> Result<Self, ScramError> {
        Ok(Self { verifier, binding, nonce: nonce()?, state: None })
    }

    /// The mechanisms that are offered, the best one first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
    }

    /// Answers `client-first-message` with `server-first-message`.
    ///
    /// # Errors
    /// When it is malformed, or the sides do not agree on channel binding.
    pub fn first(&mut self, mechanism: &str, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        if !self.mechanisms().contains(&mechanism) {
            return Err(ScramError::Malformed);
        }
        let message = text(message)?;
        let mut parts = message.splitn(3, ',');
        let (flag, identity, bare) = (parts.next(), parts.next(), parts.next());
        let (flag, kind) = match flag.ok_or(ScramError::Malformed)?.split_at_checked(1) {
            Some(("n", "")) => (Flag::None, None),
            Some(("y", "")) => (Flag::NotOffered, None),
            Some(("p", kind)) => (Flag::Used, kind.strip_prefix('=')),
            _ => return Err(ScramError::Malformed),
        };
        // No user may act for another one.
        let (Some(""), Some(bare)) = (identity, bare) else { return Err(ScramError::Malformed) };
        let plus = mechanism == SCRAM_SHA_256_PLUS;
        let agreed = match flag {
            Flag::Used => plus && kind == Some(BINDING),
            Flag::None => !plus,
            // It was offered: somebody between the two has taken the offer away.
            Flag::NotOffered => !plus && self.binding.is_none(),
        };
        if !agreed {
            return Err(ScramError::Binding);
        }
        if bare.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let (_, rest) = attribute(bare, 'n')?;
        let (theirs, _) = attribute(rest, 'r')?;
        if theirs.is_empty() || !theirs.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            return Err(ScramError::Malformed);
        }
        let Verifier { iterations, salt, .. } = &self.verifier;
        let nonce = format!("{theirs}{}", self.nonce);
        let answer = format!("r={nonce},s={},i={iterations}", BASE64.encode(salt));
        let header =
            message.len().checked_sub(bare.len()).and_then(|end| message.get(..end)).unwrap_or_default();
        let mut bound = header.as_bytes().to_vec();
        if flag == Flag::Used {
            bound.extend(self.binding.iter().flatten());
        }
        self.state = Some(Begun { bound, said: format!("{bare},{answer}"), nonce });
        Ok(answer.into_bytes())
    }

    /// Answers `client-final-message` with `server-final-message`, and says what the client's proof gives away.
    ///
    /// # Errors
    /// When the proof is wrong.
    pub fn last(self, message: &[u8]) -> Result<(Vec<u8>, ClientKey), ScramError> {
        let Begun { bound, said, nonce } = self.state.ok_or(ScramError::Malformed)?;
        let message = text(message)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let (channel, rest) = attribute(without_proof, 'c')?;
        let (both, _) = attribute(rest, 'r')?;
        let decoded = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| ScramError::Malformed);
        if decoded(channel)? != bound {
            return Err(ScramError::Binding);
        }
        if both != nonce {
            return Err(ScramError::Malformed);
        }
        let proof: Key = decoded(proof)?.try_into().map_err(|_| ScramError::Malformed)?;
        let said = format!("{said},{without_proof}");
        let key = xor(&proof, &sign(&self.verifier.stored, said.as_bytes()));
        verify_slices_are_equal(&hash(&key), &self.verifier.stored).map_err(|_| ScramError::Refused)?;
        let signature = sign(&self.verifier.server, said.as_bytes());
        let answer = format!("v={}", BASE64.encode(&signature));
        Ok((answer.into_bytes(), ClientKey { key, verifier: self.verifier }))
    }
}

/// What a client has to log in with.
#[derive(Clone)]
pub enum Credentials {
    /// The password itself.
    Password(Password),
    /// What another exchange gave away.
    Key(ClientKey),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password",
            Self::Key(_) => "Key",
        })
    }
}

/// The client's side of an exchange.
pub struct Client {
    credentials: Credentials,
    /// `gs2-header`, with the hash of the server's certificate behind it where it is bound.
    bound: Vec<u8>,
    header: String,
    bare: String,
    nonce: String,
    /// What the server has to say at the end.
    expected: Option<Key>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Client {
    /// For a server that offers these mechanisms. `binding` is the hash of its certificate, where there is TLS. Returns the mechanism too.
    ///
    /// # Errors
    /// When it offers none that is known, or there is no randomness.
    pub fn new(
        credentials: Credentials,
        offered: &[&str],
        binding: Option<&[u8]>,
    ) -> Result<(Self, &'static str), ScramError> {
        let (mechanism, header, hash) = match binding {
            Some(hash) if offered.contains(&SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, format!("p={BINDING},,"), hash)
            }
            // Tells a server that did offer it that the offer did not arrive.
            Some(_) => (SCRAM_SHA_256, "y,,".to_owned(), &[][..]),
            None => (SCRAM_SHA_256, "n,,".to_owned(), &[][..]),
        };
        if !offered.contains(&mechanism) {
            return Err(ScramError::Refused);
        }
        let nonce = nonce()?;
        // PostgreSQL takes the user of the StartupMessage.
        let bare = format!("n=,r={nonce}");
        let bound = [header.as_bytes(), hash].concat();
        Ok((Self { credentials, bound, header, bare, nonce, expected: None }, mechanism))
    }

    /// `client-first-message`.
    pub fn first(&self) -> Vec<u8> {
        format!("{}{}", self.header, self.bare).into_bytes()
    }

    /// Answers `server-first-message` with `client-final-message`.
    ///
    /// # Errors
    /// When it is malformed, or the key is not for this server.
    pub fn answer(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let message = text(message)?;
        if message.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let (nonce, rest) = attribute(message, 'r')?;
        let (salt, rest) = attribute(rest, 's')?;
        let (iterations, _) = attribute(rest, 'i')?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Malformed);
        }
        let salt = BASE64.decode(salt.as_bytes()).map_err(|_| ScramError::Malformed)?;
        let iterations: NonZeroU32 = iterations.parse().map_err(|_| ScramError::Malformed)?;
        if iterations.get() > MOST_ITERATIONS {
            return Err(ScramError::Iterations);
        }
        let (client, server) = match &self.credentials {
            Credentials::Password(password) => {
                let salted = salted(password.bytes(), &salt, iterations);
                (Zeroizing::new(sign(&*salted, b"Client Key")), sign(&*salted, b"Server Key"))
            }
            Credentials::Key(ClientKey { key, verifier })
                if verifier.salt == salt && verifier.iterations == iterations =>
            {
                (Zeroizing::new(*key), verifier.server)
            }
            Credentials::Key(_) => return Err(ScramError::OtherVerifier),
        };
        let without_proof = format!("c={},r={nonce}", BASE64.encode(&self.bound));
        let said = format!("{},{message},{without_proof}", self.bare);
        let proof = xor(&client, &sign(&hash(&*client), said.as_bytes()));
        self.expected = Some(sign(&server, said.as_bytes()));
        Ok(format!("{without_proof},p={}", BASE64.encode(&proof)).into_bytes())
    }

    /// Looks at `server-final-message`: whether the server knows the user's verifier, and is not somebody in its place.
    ///
    /// # Errors
    /// When it does not.
    pub fn verify(self, message: &[u8]) -> Result<(), ScramError> {
        let message = text(message)?;
        if message.starts_with("e=") {
            return Err(ScramError::Refused);
        }
        let (signature, _) = attribute(message, 'v')?;
        let signature = BASE64.decode(signature.as_bytes()).map_err(|_| ScramError::Malformed)?;
        let expected = self.expected.ok_or(ScramError::Malformed)?;
        verify_slices_are_equal(&signature, &expected).map_err(|_| ScramError::Refused)
    }
}

/// The entry for fuzzing: whatever the other side says, there is an answer or an error.
///
/// # Panics
/// When a proof that nobody made is taken for right.
pub fn fuzz_scram(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (first, second, third) = (part(), part(), part());
    let verifier = Verifier::decoy(b"user", b"secret");
    for (mechanism, binding) in [(SCRAM_SHA_256, None), (SCRAM_SHA_256_PLUS, Some(vec![7; 32]))] {
        if let Ok(mut server) = Server::new(verifier.clone(), binding)
            && server.first(mechanism, first).is_ok()
        {
            assert!(server.last(second).is_err(), "a proof for nobody's password");
        }
    }
    let credentials = Credentials::Key(ClientKey { key: [1; 32], verifier });
    if let Ok((mut client, _)) = Client::new(credentials, &[SCRAM_SHA_256], None) {
        let _ = client.answer(second);
        assert!(client.verify(third).is_err(), "a server that knows nothing");
    }
    let _ = text(bytes).map(Verifier::from_str);
}

#[cfg(test)]
#[path = "scram_tests.rs"]
mod tests;
