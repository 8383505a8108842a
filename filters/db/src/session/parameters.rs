//! The parameters of a session: what a client has been told, and what a server has.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::text::{REPORTED, Reported};

/// Parameters by name, as ParameterStatus tells them, and such as a start-up packet gave. Names are the same in either case.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    reported: Reported,
}

#[derive(Clone, Debug)]
struct Parameter {
    name: Box<[u8]>,
    value: Box<[u8]>,
    /// Whether it is brought from one server to another.
    follows: bool,
}

impl Parameters {
    /// Takes a ParameterStatus.
    pub fn report(&mut self, name: &[u8], value: &[u8]) {
        self.reported.insert(name);
        let follows = REPORTED.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.put(name, value, follows);
    }

    /// Takes a parameter that a client's start-up packet gave; it follows the client to every server, also when the server does not
    /// report it.
    pub fn give(&mut self, name: &[u8], value: &[u8]) {
        self.put(name, value, true);
    }

    fn put(&mut self, name: &[u8], value: &[u8], follows: bool) {
        match self.list.iter_mut().find(|known| known.name.eq_ignore_ascii_case(name)) {
            Some(known) => {
                if *known.value != *value {
                    known.value = value.into();
                }
                known.follows |= follows;
            }
            None => self.list.push(Parameter { name: name.into(), value: value.into(), follows }),
        }
    }

    /// A value.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let known = self.list.iter().find(|known| known.name.eq_ignore_ascii_case(name));
        known.map(|known| &*known.value)
    }

    /// Writes a Query that asks how the server writes the values of what it reports and a client may set. Returns the names in the order
    /// of the columns.
    pub fn question(&self, out: &mut BytesMut) -> Vec<Box<[u8]>> {
        let asked = self.list.iter().filter(|known| known.follows && self.reported.contains(&known.name));
        let names: Vec<_> = asked.map(|known| known.name.clone()).collect();
        let mut text = BytesMut::from(&b"SELECT"[..]);
        for (place, name) in names.iter().enumerate() {
            text.put_slice(if place == 0 { b" " } else { b"," });
            text.put_slice(b"pg_catalog.current_setting(");
            literal(&mut text, name);
            text.put_u8(b')');
        }
        crate::wire::build::query(out, &text);
        names
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|known| (&*known.name, &*known.value))
    }

    /// What the server reports, for the ParameterStatus messages of a login.
    pub fn told(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let told = self.list.iter().filter(|known| !known.follows || self.reported.contains(&known.name));
        told.map(|known| (&*known.name, &*known.value))
    }

    pub(super) fn reported(&self) -> Reported {
        self.reported
    }

    /// Whether a backslash escapes in plain strings.
    pub(super) fn escapes(&self) -> bool {
        self.get(b"standard_conforming_strings").is_some_and(|value| !value.eq_ignore_ascii_case(b"on"))
    }

    /// Whether a byte below 0x80 is always an ASCII character, which the look at texts relies on. It is not in the encodings that
    /// only clients can have (PostgreSQL documentation, "Character Set Support").
    pub(super) fn is_ascii_safe(&self) -> bool {
        const UNSAFE: [&[u8]; 7] =
            [b"BIG5", b"GB18030", b"GBK", b"JOHAB", b"SJIS", b"SHIFT_JIS_2004", b"UHC"];
        self.get(b"client_encoding")
            .is_none_or(|value| UNSAFE.iter().all(|one| !one.eq_ignore_ascii_case(value)))
    }

    /// Writes the text of a Query that makes a server that has `self` one that has `wanted`; `defaults` is what it had at its login.
    /// Nothing is written when there is nothing to change.
    fn difference(&self, wanted: &Self, defaults: &Self, text: &mut BytesMut) {
        let mut sets = 0;
        for want in wanted.list.iter().filter(|want| want.follows) {
            if self.get(&want.name) != Some(&want.value) {
                set(text, &mut sets, &want.name, &want.value);
            }
        }
        let strange = |has: &&Parameter| has.follows && wanted.get(&has.name).is_none();
        for has in self.list.iter().filter(strange) {
            match defaults.get(&has.name) {
                Some(value) if *value == *has.value => {}
                Some(value) => set(text, &mut sets, &has.name, value),
                None => {}
            }
        }
        if sets > 0 {
            text.put_u8(b';');
        }
        for has in self.list.iter().filter(strange) {
            if defaults.get(&has.name).is_none() {
                text.put_slice(b"RESET ");
                for (place, part) in has.name.split(|byte| *byte == b'.').enumerate() {
                    text.put_slice(if place == 0 { b"\"" } else { b".\"" });
                    text.extend(part.iter().filter(|byte| **byte != b'"'));
                    text.put_u8(b'"');
                }
                text.put_u8(b';');
            }
        }
    }

    /// Like `difference`, and takes over that the server will have `wanted` when the Query has succeeded. Two that are the same
    /// become one, so that the next comparison is that of two addresses.
    pub(super) fn change(self: &mut Arc<Self>, wanted: &Arc<Self>, defaults: &Self, text: &mut BytesMut) {
        if Arc::ptr_eq(self, wanted) {
            return;
        }
        self.difference(wanted, defaults, text);
        if text.is_empty() && self.list.len() == wanted.list.len() {
            let same = |(name, value)| self.get(name) == Some(value);
            if wanted.iter().all(same) {
                *self = Arc::clone(wanted);
            }
            return;
        }
        if text.is_empty() {
            return;
        }
        let has = Arc::make_mut(self);
        has.list.retain(|known| {
            !known.follows || wanted.get(&known.name).is_some() || defaults.get(&known.name).is_some()
        });
        for want in wanted.list.iter().filter(|want| want.follows) {
            has.put(&want.name, &want.value, true);
        }
        for known in &mut has.list {
            if known.follows
                && wanted.get(&known.name).is_none()
                && let Some(value) = defaults.get(&known.name)
            {
                known.value = value.into();
            }
        }
    }
}

/// `set_config` takes the value as it was reported, also where SET would want a list.
fn set(text: &mut BytesMut, sets: &mut u32, name: &[u8], value: &[u8]) {
    text.put_slice(if *sets == 0 { b"SELECT " } else { b"," });
    *sets += 1;
    text.put_slice(b"pg_catalog.set_config(");
    literal(text, name);
    text.put_u8(b',');
    literal(text, value);
    text.put_slice(b",false)");
}

/// A string constant that means the same under every setting and in every encoding: all but harmless characters are octal escapes.
fn literal(text: &mut BytesMut, value: &[u8]) {
    text.put_slice(b"E'");
    for byte in value {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'_'
            | b' '
            | b','
            | b'.'
            | b'/'
            | b'-'
            | b'+'
            | b':' => {
                text.put_u8(*byte);
            }
            _ => {
                let digit = |shift: u8| b'0' + (byte >> shift & 7);
                text.put_slice(&[b'\\', digit(6), digit(3), digit(0)]);
            }
        }
    }
    text.put_u8(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parameters(reported: &[(&str, &str)], given: &[(&str, &str)]) -> Arc<Parameters> {
        let mut parameters = Parameters::default();
        for (name, value) in reported {
            parameters.report(name.as_bytes(), value.as_bytes());
        }
        for (name, value) in given {
            parameters.give(name.as_bytes(), value.as_bytes());
        }
        Arc::new(parameters)
    }

    fn change(has: &mut Arc<Parameters>, wanted: &Arc<Parameters>, defaults: &Parameters) -> String {
        let mut text = BytesMut::new();
        has.change(wanted, defaults, &mut text);
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn only_differences_are_set_and_what_nobody_wants_goes_back() {
        let defaults =
            parameters(&[("TimeZone", "UTC"), ("server_version", "15.1"), ("application_name", "")], &[]);
        let mut has = Arc::clone(&defaults);
        let one = parameters(&[("TimeZone", "UTC"), ("application_name", "it's")], &[("work_mem", "1MB")]);
        assert_eq!(
            change(&mut has, &one, &defaults),
            "SELECT pg_catalog.set_config(E'application_name',E'it\\047s',false),\
             pg_catalog.set_config(E'work_mem',E'1MB',false);"
        );
        assert_eq!(change(&mut has, &one, &defaults), "");
        assert_eq!(
            change(&mut has, &defaults, &defaults),
            "SELECT pg_catalog.set_config(E'application_name',E'',false);RESET \"work_mem\";"
        );
        assert_eq!(change(&mut has, &defaults, &defaults), "");
        assert!(Arc::ptr_eq(&has, &defaults));
    }

    proptest! {
        #[test]
        fn after_a_change_nothing_is_left_to_change(
            steps in proptest::collection::vec(proptest::collection::vec(("(TimeZone|application_name|DateStyle|a\\.b|c)", "[a-c'\\\\\u{e4}]{0,3}"), 0..5), 1..6),
        ) {
            let defaults = parameters(&[("TimeZone", "UTC"), ("application_name", ""), ("server_version", "x")], &[]);
            let mut has = Arc::clone(&defaults);
            for step in steps {
                let mut wanted = Parameters::clone(&defaults);
                for (name, value) in &step {
                    if name.contains('.') || name == "c" {
                        wanted.give(name.as_bytes(), value.as_bytes());
                    } else {
                        wanted.report(name.as_bytes(), value.as_bytes());
                    }
                }
                let wanted = Arc::new(wanted);
                let text = change(&mut has, &wanted, &defaults);
                prop_assert!(text.is_ascii());
                for (name, value) in wanted.iter() {
                    prop_assert_eq!(has.get(name), Some(value));
                }
                prop_assert_eq!(change(&mut has, &wanted, &defaults), "");
            }
        }
    }
}
