//! Cancel keys of clients: each has its own, so that a CancelRequest names a client and never a server.

use std::collections::HashMap;

use subtle::ConstantTimeEq;

/// The keys of the clients of a process, with what each leads to.
#[derive(Debug)]
pub struct CancelKeys<T> {
    by_process: HashMap<u32, Entry<T>>,
}

struct Entry<T> {
    secret: Box<[u8]>,
    session: T,
}

impl<T> std::fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(_)")
    }
}

impl<T> Default for CancelKeys<T> {
    fn default() -> Self {
        Self { by_process: HashMap::new() }
    }
}

impl<T> CancelKeys<T> {
    /// Registers a client under a random process id and secret, which must come from a cryptographic source. `Err` gives the session
    /// back when the process id is taken; then another one is tried.
    pub fn insert(&mut self, process: u32, secret: &[u8], session: T) -> Result<(), T> {
        match self.by_process.entry(process) {
            std::collections::hash_map::Entry::Occupied(_) => Err(session),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Entry { secret: secret.into(), session });
                Ok(())
            }
        }
    }

    /// Forgets a client.
    pub fn remove(&mut self, process: u32) {
        self.by_process.remove(&process);
    }

    /// The client that a CancelRequest names.
    pub fn find(&self, process: u32, secret: &[u8]) -> Option<&T> {
        let entry = self.by_process.get(&process)?;
        bool::from(entry.secret.ct_eq(secret)).then_some(&entry.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_names_a_client() {
        let mut keys = CancelKeys::default();
        assert_eq!(keys.insert(7, b"abcd", "one"), Ok(()));
        assert_eq!(keys.insert(7, b"efgh", "two"), Err("two"));
        assert_eq!(keys.find(7, b"abcd"), Some(&"one"));
        for (process, secret) in [(7, &b"abce"[..]), (7, b"abc"), (7, b""), (8, b"abcd")] {
            assert_eq!(keys.find(process, secret), None);
        }
        assert!(!format!("{keys:?}").contains("97"));
        keys.remove(7);
        assert_eq!(keys.find(7, b"abcd"), None);
    }
}
