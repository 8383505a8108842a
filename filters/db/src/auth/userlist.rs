//! A file of users in the form of PgBouncer's `auth_file`: each line `"user" "secret"`, a quote within quotes is doubled, what follows the
//! secret is ignored, and a line that begins with `;` is a comment.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qudag_filter_common::{Source, read_file};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::secret::Stored;
use super::tls::count_reload;

/// Larger files are refused.
const MAX_FILE: u64 = 32 << 20;

/// Users and what is known of them. A user without a secret is known, and cannot log in.
#[derive(Debug, Default, PartialEq)]
pub(super) struct UserList(HashMap<Box<[u8]>, Option<Arc<Stored>>>);

/// Why a file is no list of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListError {
    /// Something stands where a quote has to.
    #[error("line {0}: a line is \"user\" \"secret\"")]
    Quote(usize),
    /// The name is empty, or has a zero byte.
    #[error("line {0}: no name of a user")]
    Name(usize),
    /// It begins as a SCRAM verifier, and is none.
    #[error("line {0}: the secret begins as a SCRAM verifier and is none")]
    Verifier(usize),
}

impl UserList {
    /// Reads a text. The last line of a user counts.
    ///
    /// # Errors
    /// When a line makes no sense; a list that lacks users is not used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ListError> {
        let mut users = HashMap::new();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let (number, line) = (number + 1, line.trim_ascii());
            if line.is_empty() || line.starts_with(b";") {
                continue;
            }
            let (name, rest) = quoted(line).ok_or(ListError::Quote(number))?;
            let (secret, _) = quoted(rest.trim_ascii_start()).ok_or(ListError::Quote(number))?;
            if name.is_empty() || name.contains(&0) {
                return Err(ListError::Name(number));
            }
            let secret = Stored::read(&secret).map_err(|_| ListError::Verifier(number))?;
            users.insert(name.as_slice().into(), secret.map(Arc::new));
        }
        Ok(Self(users))
    }

    /// What is known of a user: nothing, that there is one without a secret, or the secret.
    pub(super) fn get(&self, user: &[u8]) -> Option<Option<Arc<Stored>>> {
        self.0.get(user).cloned()
    }
}

/// The quoted string at the start of the bytes, and what follows it.
fn quoted(bytes: &[u8]) -> Option<(Zeroizing<Vec<u8>>, &[u8])> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    // As long as it can be, so that it does not move and leave a copy behind.
    let mut string = Zeroizing::new(Vec::with_capacity(rest.len()));
    loop {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        string.extend_from_slice(rest.get(..end)?);
        rest = rest.get(end + 1..)?;
        match rest.strip_prefix(b"\"") {
            Some(further) => {
                string.push(b'"');
                rest = further;
            }
            None => return Some((string, rest)),
        }
    }
}

/// The file.
pub(super) struct UserFile(pub(super) PathBuf);

/// Reads a file.
///
/// # Errors
/// When it cannot be read, or is no list of users.
pub(super) fn read(path: &Path) -> io::Result<UserList> {
    let text = Zeroizing::new(read_file(path, MAX_FILE)?);
    UserList::parse(&text).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

impl Source for UserFile {
    type Contents = UserList;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.0.clone()]
    }

    fn read(&self) -> io::Result<UserList> {
        read(&self.0)
    }

    fn loaded(&self, list: &UserList) {
        count_reload("users", "ok");
        info!(file = %self.0.display(), users = list.0.len(), "the users of PostgreSQL were loaded");
    }

    fn failed(&self, why: &io::Error) {
        count_reload("users", "error");
        warn!(file = %self.0.display(), "the new users of PostgreSQL cannot be used, the old ones go on: {why}");
    }
}

/// The entry for fuzzing: any bytes are a list of users or none, and a list that is written is read as it was.
///
/// # Panics
/// When an invariant is broken.
pub fn fuzz_users(bytes: &[u8]) {
    let _ = UserList::parse(bytes);
    let mut words = bytes.splitn(2, |byte| *byte == b'\n');
    let mut word = || {
        let word = words.next().unwrap_or_default().iter();
        word.copied().filter(|byte| !matches!(byte, 0 | b'\n')).collect::<Vec<_>>()
    };
    let (user, secret) = (word(), word());
    let mut line = Vec::new();
    for word in [&user, &secret] {
        line.push(b'"');
        for byte in word {
            line.push(*byte);
            line.extend((*byte == b'"').then_some(b'"'));
        }
        line.extend(b"\" ");
    }
    if let Ok(list) = UserList::parse(&line) {
        let stored = Stored::read(&secret).ok().flatten().map(Arc::new);
        assert!(!user.is_empty() && list.get(&user) == Some(stored), "not as it was written");
    } else {
        assert!(user.is_empty() || Stored::read(&secret).is_err(), "a line that is right");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::secret::{Identity, Password};
    use proptest::prelude::*;

    fn password(list: &UserList, user: &str) -> Option<Identity> {
        list.get(user.as_bytes()).flatten().and_then(|stored| stored.identity())
    }

    #[test]
    fn lists_are_read_as_pgbouncer_reads_them() {
        let text = "; users\n\n \"ann\" \"sesame\" ignored\r\n\"b\"\"ob\"\t\"say \"\"friend\"\"\"\n;\"eve\" \"x\"\n\"ann\" \"later\"\n\"none\" \"\"";
        let list = UserList::parse(text.as_bytes()).unwrap();
        let of = |text: &str| Some(Identity::Password(Password::new(text.as_bytes())));
        assert_eq!(password(&list, "ann"), of("later"));
        assert_eq!(password(&list, "b\"ob"), of("say \"friend\""));
        assert_eq!((list.get(b"eve"), list.get(b"none")), (None, Some(None)));
        assert!(!format!("{list:?}").contains("later"));
    }

    #[test]
    fn a_broken_line_is_named_and_not_shown() {
        for (text, why) in [
            ("\"a\" \"b\"\nann sesame", ListError::Quote(2)),
            ("\"a\" \"b", ListError::Quote(1)),
            ("\"a\"", ListError::Quote(1)),
            ("\"\" \"b\"", ListError::Name(1)),
            ("\n\"a\" \"SCRAM-SHA-256$4096:x\"", ListError::Verifier(2)),
        ] {
            assert_eq!(UserList::parse(text.as_bytes()), Err(why), "{text}");
        }
        assert!(!ListError::Quote(2).to_string().contains("sesame"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_none(bytes in "[\"a;\n $:]{0,40}", words in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzz_users(bytes.as_bytes());
            fuzz_users(&words);
        }
    }
}
