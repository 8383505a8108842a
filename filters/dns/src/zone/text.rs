//! Zone files (RFC 1035 section 5, RFC 2308 section 4, RFC 3597 section 5).

use hickory_proto::serialize::txt::parse_ttl;

use super::data;
use super::{Record, Zone, ZoneError};
use crate::dns_cache::parse_type;
use crate::wire::Name;

/// A line of a zone file, counted from 1.
pub type Line = usize;

/// What is wrong with a zone file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct TextError {
    /// The line on which the entry begins.
    pub line: Line,
    /// What is wrong.
    pub why: String,
}

/// A word of an entry, with its escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) quoted: bool,
}

/// A line, or several in parentheses.
struct Entry {
    line: Line,
    /// It begins with white space, so its owner is that of the entry before.
    continued: bool,
    words: Vec<Word>,
}

impl Zone {
    /// Reads the text of a zone file. Names without a dot at their end are below `origin`, or what `$ORIGIN` says; records
    /// without a time to live have that of the record before, of `$TTL`, or `ttl` seconds. `$INCLUDE` is refused.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_text(origin: Name, text: &str, ttl: u32) -> Result<Self, TextError> {
        let mut zone = Self::new(origin.clone(), 1, 60);
        read(&origin, text, ttl, |line, record| {
            zone.add(record).map_err(|why: ZoneError| TextError { line, why: why.to_string() })
        })?;
        Ok(zone)
    }

    /// Adds the records of a text that is written as a zone file is, below the zone's own name.
    ///
    /// # Errors
    /// The first thing that is wrong. Records before it have been added.
    pub fn add_text(&mut self, text: &str, ttl: u32) -> Result<(), TextError> {
        read(&self.origin.clone(), text, ttl, |line, record| {
            self.add(record).map_err(|why| TextError { line, why: why.to_string() })
        })
    }
}

fn read(
    zone: &Name,
    text: &str,
    default_ttl: u32,
    mut record: impl FnMut(Line, Record) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let mut origin = zone.clone();
    let mut owner: Option<Name> = None;
    let mut ttl = default_ttl;
    let mut fixed_ttl = false;
    let mut lexer = Lexer { rest: text, line: 1 };
    while let Some(entry) = lexer.entry()? {
        let Entry { line, continued, words } = entry;
        let fail = |why: String| TextError { line, why };
        let mut words = words.as_slice();
        if let Some((first, rest)) = words.split_first()
            && !continued
            && !first.quoted
            && first.text.starts_with('$')
        {
            let value = || match rest {
                [value] => Ok(value.text.as_str()),
                _ => Err(fail(format!("{} has one value", first.text))),
            };
            match first.text.to_ascii_uppercase().as_str() {
                "$ORIGIN" => origin = name(value()?, &origin).map_err(fail)?,
                "$TTL" => {
                    ttl = parse_ttl(value()?).map_err(|_| fail("$TTL has a time: 60, 5m".to_owned()))?;
                    fixed_ttl = true;
                }
                other => {
                    return Err(fail(format!("{other} is not supported; write the records into this file")));
                }
            }
            continue;
        }
        if !continued && let Some((first, rest)) = words.split_first() {
            owner = Some(name(&first.text, &origin).map_err(fail)?);
            words = rest;
        }
        let Some(owner) = &owner else { return Err(fail("the first record has no name".to_owned())) };
        let mut own_ttl = None;
        let rtype = loop {
            let Some((word, rest)) = words.split_first() else {
                return Err(fail("a record has a type and data".to_owned()));
            };
            words = rest;
            let upper = word.text.to_ascii_uppercase();
            if let Ok(time) = parse_ttl(&upper).map_err(drop) {
                own_ttl = Some(time);
            } else if matches!(upper.as_str(), "CH" | "HS" | "CS") {
                return Err(fail("only the class IN is served".to_owned()));
            } else if upper != "IN" {
                break parse_type(&upper)
                    .ok_or_else(|| fail(format!("{:?} is not a record type", word.text)))?;
            }
        };
        let used = own_ttl.unwrap_or(ttl);
        if !fixed_ttl {
            // RFC 1035 section 5.1: the last stated one, where no `$TTL` (RFC 2308 section 4) says otherwise.
            ttl = used;
        }
        let data = data::parse(rtype, words, &origin).map_err(fail)?;
        record(line, Record { owner: owner.clone(), rtype, ttl: used, data })?;
    }
    Ok(())
}

/// A name as zone files have it: relative to the origin without a dot at its end; `@` is the origin.
pub(super) fn name(text: &str, origin: &Name) -> Result<Name, String> {
    if text == "@" {
        return Ok(origin.clone());
    }
    let ends_in_dot = text.strip_suffix('.').is_some_and(|rest| {
        let slashes = rest.bytes().rev().take_while(|byte| *byte == b'\\').count();
        slashes % 2 == 0
    });
    let whole = if ends_in_dot { text.to_owned() } else { format!("{text}.{origin}") };
    // Below the root the origin is but a dot.
    let whole = whole.strip_suffix("..").map_or(whole.clone(), |rest| format!("{rest}."));
    Name::from_text(&whole).map_err(|why| why.to_string())
}

struct Lexer<'a> {
    rest: &'a str,
    line: Line,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let char = self.rest.chars().next()?;
        self.rest = self.rest.get(char.len_utf8()..).unwrap_or_default();
        if char == '\n' {
            self.line += 1;
        }
        Some(char)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// The next entry that has words; `None` at the end.
    fn entry(&mut self) -> Result<Option<Entry>, TextError> {
        let (mut words, mut depth) = (Vec::new(), 0_u32);
        let mut line = self.line;
        let mut continued = self.peek().is_some_and(char::is_whitespace);
        while let Some(char) = self.next() {
            match char {
                '\n' if depth == 0 && words.is_empty() => {
                    line = self.line;
                    continued = self.peek().is_some_and(char::is_whitespace);
                }
                '\n' if depth == 0 => return Ok(Some(Entry { line, continued, words })),
                '(' => depth += 1,
                ')' if depth > 0 => depth -= 1,
                ')' => {
                    return Err(TextError {
                        line: self.line,
                        why: "a parenthesis that nobody opened".to_owned(),
                    });
                }
                ';' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = self.rest.get(end..).unwrap_or_default();
                }
                '"' => words.push(self.quoted()?),
                char if char.is_whitespace() => {}
                char => words.push(self.word(char)),
            }
        }
        if depth > 0 {
            return Err(TextError { line, why: "a parenthesis that nobody closed".to_owned() });
        }
        Ok((!words.is_empty()).then_some(Entry { line, continued, words }))
    }

    fn quoted(&mut self) -> Result<Word, TextError> {
        let line = self.line;
        let mut text = String::new();
        while let Some(char) = self.next() {
            match char {
                '"' => return Ok(Word { text, quoted: true }),
                '\\' => {
                    text.push(char);
                    text.extend(self.next());
                }
                char => text.push(char),
            }
        }
        Err(TextError { line, why: "a quotation mark that nobody closed".to_owned() })
    }

    fn word(&mut self, first: char) -> Word {
        let mut text = String::from(first);
        if first == '\\' {
            text.extend(self.next());
        }
        while let Some(char) = self.peek() {
            if char.is_whitespace() || matches!(char, ';' | '(' | ')' | '"') {
                break;
            }
            text.extend(self.next());
            if char == '\\' {
                text.extend(self.next());
            }
        }
        Word { text, quoted: false }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(text: &str) -> Result<Vec<String>, TextError> {
        let mut found = Vec::new();
        let origin = Name::from_text("example").unwrap();
        read(&origin, text, 60, |_, record| {
            found.push(format!("{} {} {} {:02x?}", record.owner, record.ttl, record.rtype, record.data));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn the_forms_of_rfc_1035_are_read() {
        let text = "\
; a comment
a        A 192.0.2.1 ; and another
   5m IN A 192.0.2.2
b.example. in 10 a ( 192.0.2.3
)
@ A 192.0.2.4
$ORIGIN sub
c A 192.0.2.5
$TTL 1h
d A 192.0.2.6
e 7 A 192.0.2.7
f A 192.0.2.8
$ORIGIN .
g.example A 192.0.2.9
";
        let expected = [
            "a.example 60 1 [c0, 00, 02, 01]",
            "a.example 300 1 [c0, 00, 02, 02]",
            "b.example 10 1 [c0, 00, 02, 03]",
            "example 10 1 [c0, 00, 02, 04]",
            "c.sub.example 10 1 [c0, 00, 02, 05]",
            "d.sub.example 3600 1 [c0, 00, 02, 06]",
            "e.sub.example 7 1 [c0, 00, 02, 07]",
            "f.sub.example 3600 1 [c0, 00, 02, 08]",
            "g.example 3600 1 [c0, 00, 02, 09]",
        ];
        assert_eq!(records(text).unwrap(), expected);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, why) in [
            ("a A 192.0.2.1\n\nb A 1.2.3\n", 3, "IPv4"),
            ("  A 192.0.2.1\n", 1, "no name"),
            ("a A (\n192.0.2.1\n", 1, "nobody closed"),
            ("a A )\n", 1, "nobody opened"),
            ("a TXT \"x\n", 1, "nobody closed"),
            ("a CH A 192.0.2.1", 1, "class IN"),
            ("a NOTYPE x", 1, "record type"),
            ("a A", 1, "IPv4"),
            ("a", 1, "type and data"),
            ("$INCLUDE other", 1, "not supported"),
            ("a..b A 192.0.2.1", 1, "label"),
        ] {
            let error = records(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.why.contains(why), "{text}: {error}");
        }
        let zone = |text| Zone::from_text(Name::from_text("example").unwrap(), text, 60).unwrap_err().why;
        assert!(zone("a.elsewhere. A 192.0.2.1").contains("not in the zone"));
        assert!(zone("a CNAME b\na A 192.0.2.1").contains("CNAME"));
        assert!(zone("a A 192.0.2.1\na CNAME b").contains("CNAME"));
        assert!(zone("@ CNAME b").contains("CNAME"));
        assert!(zone("a SOA a b 1 2 3 4 5").contains("SOA"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s)[a-z0-9 \t\n\\\\\"();$@.]{0,120}|(?s).{0,120}") {
            let _ = Zone::from_text(Name::from_text("example").unwrap(), &text, 60);
        }
    }
}
