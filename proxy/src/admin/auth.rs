//! Who asks, and what they may do.

use std::fmt;
use std::net::SocketAddr;

use subtle::ConstantTimeEq;

use super::host::Authority;

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// GET only.
    Read,
    /// Everything.
    Write,
}

impl Role {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Tokens with their roles, and names under which the API is reached besides its address.
///
/// Without a token nobody may do anything over TCP but read the probes and metrics on a loopback address.
#[derive(Default)]
pub struct Auth {
    tokens: Vec<(blake3::Hash, Role)>,
    names: Vec<Authority>,
}

impl Auth {
    /// Adds a token. An empty one is ignored: it would let in a client with an empty variable.
    #[must_use]
    pub fn token(mut self, role: Role, token: &str) -> Self {
        if !token.is_empty() {
            self.tokens.push((blake3::hash(token.as_bytes()), role));
        }
        self
    }

    /// Also accepts a Host header with this name, at the port of the listener.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.extend(Authority::parse(name));
        self
    }

    pub(super) fn names(&self) -> &[Authority] {
        &self.names
    }

    /// The highest role that a token gives. Hashes are compared, each in full and all of them, so that the time taken
    /// tells nothing of a token.
    fn role_of(&self, token: &str) -> Option<Role> {
        let offered = blake3::hash(token.as_bytes());
        self.tokens
            .iter()
            .filter(|(known, _)| bool::from(known.as_bytes().ct_eq(offered.as_bytes())))
            .map(|(_, role)| *role)
            .max()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens, names {:?}", self.tokens.len(), self.names)
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// The client's address and ours; `None` on a Unix socket.
    pub(super) tcp: Option<(SocketAddr, SocketAddr)>,
    /// Who the kernel says is at the other end of a Unix socket: user and process id.
    pub(super) user: Option<(u32, Option<i32>)>,
    /// Whether the listener is bound to a loopback address.
    pub(super) loopback: bool,
}

impl Peer {
    /// The role of a request with this Authorization header.
    pub(super) fn role(&self, authorization: Option<&[u8]>, auth: &Auth) -> Option<Role> {
        let by_token = authorization.and_then(bearer).and_then(|token| auth.role_of(token));
        let by_user = self.user.and_then(|(uid, _)| {
            let own = rustix::process::geteuid().as_raw();
            (uid == own || uid == 0).then_some(Role::Write)
        });
        by_token.max(by_user)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tcp, self.user) {
            (Some((client, _)), _) => client.fmt(f),
            (None, Some((uid, Some(pid)))) => write!(f, "uid={uid} pid={pid}"),
            (None, Some((uid, None))) => write!(f, "uid={uid}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// The token of `Bearer TOKEN` (RFC 6750, section 2.1).
fn bearer(authorization: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(authorization).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> Peer {
        let address = "127.0.0.1:1".parse().unwrap();
        Peer { tcp: Some((address, address)), user: None, loopback: true }
    }

    #[test]
    fn a_token_gives_its_role_and_nothing_else_gives_one() {
        let auth = Auth::default().token(Role::Read, "r").token(Role::Write, "w").token(Role::Write, "");
        let role = |header: &str| tcp().role(Some(header.as_bytes()), &auth);
        assert_eq!(role("Bearer r"), Some(Role::Read));
        assert_eq!(role("bearer w"), Some(Role::Write));
        for header in ["Bearer x", "Bearer", "Bearer ", "Basic w", "w", "Bearer rw", "Bearer r w", ""] {
            assert_eq!(role(header), None, "{header:?}");
        }
        assert_eq!(tcp().role(None, &auth), None);
        assert_eq!(tcp().role(Some(b"Bearer \xff"), &auth), None);
    }

    #[test]
    fn without_tokens_no_token_is_right() {
        assert_eq!(tcp().role(Some(b"Bearer "), &Auth::default()), None);
    }

    #[test]
    fn a_token_with_both_roles_may_write() {
        let auth = Auth::default().token(Role::Write, "t").token(Role::Read, "t");
        assert_eq!(tcp().role(Some(b"Bearer t"), &auth), Some(Role::Write));
    }

    #[test]
    fn the_own_user_and_root_may_write_on_a_unix_socket() {
        let own = rustix::process::geteuid().as_raw();
        let peer = |uid| Peer { tcp: None, user: Some((uid, Some(1))), loopback: false };
        let auth = Auth::default();
        assert_eq!(peer(own).role(None, &auth), Some(Role::Write));
        assert_eq!(peer(0).role(None, &auth), Some(Role::Write));
        assert_eq!(peer(own.wrapping_add(4242)).role(None, &auth), None);
    }

    #[test]
    fn printing_it_shows_no_token() {
        let auth = Auth::default().token(Role::Read, "hunter2");
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
