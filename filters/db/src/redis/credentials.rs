//! What a connection logs in with.

use std::fmt;
use std::hash::{Hash, Hasher};

use zeroize::Zeroizing;

/// A user and a password.
#[derive(PartialEq, Eq)]
pub(crate) struct Credentials {
    /// `None` for the server's default user, by AUTH with a password only.
    pub(crate) user: Option<Box<[u8]>>,
    password: Zeroizing<Vec<u8>>,
}

impl Credentials {
    pub(crate) fn new(user: Option<&[u8]>, password: Vec<u8>) -> Self {
        Self { user: user.map(Into::into), password: Zeroizing::new(password) }
    }

    /// AUTH with these.
    pub(crate) fn command(&self) -> Zeroizing<Vec<u8>> {
        let words: Vec<&[u8]> =
            [&b"AUTH"[..]].into_iter().chain(self.user.as_deref()).chain([&self.password[..]]).collect();
        Zeroizing::new(command(&words))
    }
}

impl Hash for Credentials {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.user.hash(state);
        self.password[..].hash(state);
    }
}

/// Not the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_deref().map(|user| user.escape_ascii().to_string());
        f.debug_struct("Credentials").field("user", &user).finish_non_exhaustive()
    }
}

/// A command on the wire.
pub(crate) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(words.iter().map(|word| word.len() + 16).sum::<usize>() + 16);
    bytes.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_sent_and_never_shown() {
        let known = Credentials::new(Some(b"ann"), b"sesame".to_vec());
        assert_eq!(&known.command()[..], b"*3\r\n$4\r\nAUTH\r\n$3\r\nann\r\n$6\r\nsesame\r\n");
        assert_eq!(&Credentials::new(None, b"x".to_vec()).command()[..], b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n");
        assert!(!format!("{known:?}").contains("sesame"));
    }
}
