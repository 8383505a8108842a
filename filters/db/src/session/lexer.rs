//! PostgreSQL's tokens, as far as they are needed to find words outside of strings and comments (`scan.l`). The text may come in
//! pieces: a statement too long to be held is looked at while it passes.

/// The longest word that is told from others; longer ones are cut there. `NAMEDATALEN - 1`, where PostgreSQL cuts them as well.
pub(super) const WORD: usize = 63;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or identifier, in lower case; of a quoted one the content as it is.
    Word(&'a [u8]),
    /// A string, also in dollar quotes.
    String,
    /// An identifier or string with Unicode escapes, which is not decoded.
    Unicode,
    /// Any other byte that is not white space.
    Other(u8),
}

/// Where the text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Between,
    Dash,
    LineComment,
    Slash,
    /// Within so many nested comments.
    Comment(u32),
    CommentStar(u32),
    CommentSlash(u32),
    Word,
    Number,
    Quoted {
        unicode: bool,
    },
    QuotedEnd {
        unicode: bool,
    },
    String {
        escapes: bool,
    },
    Escape,
    StringEnd {
        escapes: bool,
    },
    /// After `$`, while it may become a dollar quote; the tag is in `tag`.
    Dollar,
    Parameter,
    DollarBody,
    /// So many bytes of the closing tag have been seen.
    DollarEnd(usize),
    /// After `U&` or the `U` of it.
    UnicodeU,
}

/// The tokeniser. [`Lexer::feed`] takes pieces of any length, [`Lexer::end`] the end of the text.
#[derive(Clone, Debug)]
pub(super) struct Lexer {
    at: At,
    /// Whether a backslash escapes in a plain string (`standard_conforming_strings = off`).
    escapes: bool,
    /// A string with escapes has ended, and nothing but white space and comments came since: a string that follows continues it
    /// (`quotecontinue` in `scan.l`), so that it has escapes too.
    continued: bool,
    word: [u8; WORD],
    len: usize,
    tag: [u8; WORD],
    tag_len: usize,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl Lexer {
    pub(super) fn new(escapes: bool) -> Self {
        Self {
            at: At::Between,
            escapes,
            continued: false,
            word: [0; WORD],
            len: 0,
            tag: [0; WORD],
            tag_len: 0,
        }
    }

    pub(super) fn feed(&mut self, text: &[u8], found: &mut impl FnMut(Token<'_>)) {
        for byte in text {
            self.byte(*byte, found);
        }
    }

    pub(super) fn end(&mut self, found: &mut impl FnMut(Token<'_>)) {
        // A line's end finishes whatever a following byte could have continued; what is open then is an error for the server.
        self.byte(b'\n', found);
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.word.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn word(&self) -> &[u8] {
        self.word.get(..self.len).unwrap_or_default()
    }

    fn tag(&self) -> &[u8] {
        self.tag.get(..self.tag_len).unwrap_or_default()
    }

    fn byte(&mut self, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        match self.at {
            At::Between => self.begin(byte, found),
            At::Dash if byte == b'-' => self.at = At::LineComment,
            At::Dash => self.again(Token::Other(b'-'), byte, found),
            At::LineComment if matches!(byte, b'\n' | b'\r') => self.at = At::Between,
            At::LineComment => {}
            At::Slash if byte == b'*' => self.at = At::Comment(1),
            At::Slash => self.again(Token::Other(b'/'), byte, found),
            At::Comment(depth) => {
                self.at = match byte {
                    b'*' => At::CommentStar(depth),
                    b'/' => At::CommentSlash(depth),
                    _ => At::Comment(depth),
                };
            }
            At::CommentStar(depth) => {
                self.at = match byte {
                    b'/' if depth <= 1 => At::Between,
                    b'/' => At::Comment(depth - 1),
                    b'*' => At::CommentStar(depth),
                    _ => At::Comment(depth),
                };
            }
            At::CommentSlash(depth) => {
                self.at = match byte {
                    b'*' => At::Comment(depth.saturating_add(1)),
                    b'/' => At::CommentSlash(depth),
                    _ => At::Comment(depth),
                };
            }
            At::Word if continues_word(byte) => self.push(byte.to_ascii_lowercase()),
            At::Word => self.end_of_word(byte, found),
            // `1e5`, `0x1f`, `1_000`: letters belong to it; what follows a sign or a point is a number again.
            At::Number if continues_word(byte) => {}
            At::Number => self.again(Token::Other(b'0'), byte, found),
            At::Quoted { unicode } if byte == b'"' => self.at = At::QuotedEnd { unicode },
            At::Quoted { .. } => self.push(byte),
            At::QuotedEnd { unicode } if byte == b'"' => {
                self.push(byte);
                self.at = At::Quoted { unicode };
            }
            At::QuotedEnd { unicode: true } => self.again(Token::Unicode, byte, found),
            At::QuotedEnd { unicode: false } => {
                found(Token::Word(self.word()));
                self.begin(byte, found);
            }
            At::String { escapes } => match byte {
                b'\'' => self.at = At::StringEnd { escapes },
                b'\\' if escapes => self.at = At::Escape,
                _ => {}
            },
            At::Escape => self.at = At::String { escapes: true },
            // Two quotes are one.
            At::StringEnd { escapes } if byte == b'\'' => self.at = At::String { escapes },
            At::StringEnd { escapes } => {
                self.continued = escapes;
                found(Token::String);
                self.begin(byte, found);
            }
            At::Dollar => self.dollar(byte, found),
            At::Parameter if continues_word(byte) => {}
            At::Parameter => self.again(Token::Other(b'$'), byte, found),
            At::DollarBody if byte == b'$' => self.at = At::DollarEnd(0),
            At::DollarBody => {}
            At::DollarEnd(seen) => self.dollar_end(seen, byte, found),
            At::UnicodeU => match byte {
                b'"' => self.open(At::Quoted { unicode: true }),
                // The quote's escapes cannot end the string: a quote in it is doubled.
                b'\'' => self.open(At::String { escapes: false }),
                _ => {
                    found(Token::Word(b"u"));
                    found(Token::Other(b'&'));
                    self.begin(byte, found);
                }
            },
        }
    }

    /// Reports a token that has just ended, and looks at the byte after it.
    fn again(&mut self, token: Token<'_>, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        self.continued = false;
        found(token);
        self.begin(byte, found);
    }

    fn open(&mut self, at: At) {
        self.len = 0;
        self.at = at;
    }

    fn begin(&mut self, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        let continued = self.continued;
        self.continued &= matches!(byte, b'-' | b'/' | b' ' | b'\t'..=b'\r');
        self.at = match byte {
            b'-' => At::Dash,
            b'/' => At::Slash,
            b'\'' => At::String { escapes: self.escapes || continued },
            b'$' => {
                self.tag_len = 0;
                At::Dollar
            }
            b'"' => return self.open(At::Quoted { unicode: false }),
            b'0'..=b'9' => At::Number,
            _ if starts_word(byte) => {
                self.open(At::Word);
                return self.push(byte.to_ascii_lowercase());
            }
            b' ' | b'\t'..=b'\r' => At::Between,
            _ => {
                found(Token::Other(byte));
                At::Between
            }
        };
    }

    fn end_of_word(&mut self, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        match (self.word(), byte) {
            (b"e", b'\'') => self.at = At::String { escapes: true },
            (b"n" | b"b" | b"x", b'\'') => self.at = At::String { escapes: self.escapes },
            (b"u", b'&') => self.at = At::UnicodeU,
            _ => {
                found(Token::Word(self.word()));
                self.begin(byte, found);
            }
        }
    }

    fn dollar(&mut self, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        match byte {
            b'$' => self.at = At::DollarBody,
            b'0'..=b'9' if self.tag_len == 0 => self.at = At::Parameter,
            _ if starts_word(byte) || byte.is_ascii_digit() => match self.tag.get_mut(self.tag_len) {
                Some(place) => {
                    *place = byte;
                    self.tag_len += 1;
                }
                // No tag is that long in earnest. What follows cannot be told from a string.
                None => self.again(Token::Unicode, byte, found),
            },
            _ => {
                // A lone `$` with a word after it, which PostgreSQL refuses. The word is still reported.
                found(Token::Other(b'$'));
                found(Token::Word(self.tag()));
                self.begin(byte, found);
            }
        }
    }

    fn dollar_end(&mut self, seen: usize, byte: u8, found: &mut impl FnMut(Token<'_>)) {
        self.at = match byte {
            b'$' if seen == self.tag_len => {
                found(Token::String);
                At::Between
            }
            b'$' => At::DollarEnd(0),
            _ if self.tag().get(seen) == Some(&byte) => At::DollarEnd(seen + 1),
            _ => At::DollarBody,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &[u8], pieces: &[usize], escapes: bool) -> Vec<String> {
        let mut seen = Vec::new();
        let mut found = |token: Token<'_>| {
            seen.push(match token {
                Token::Word(word) => String::from_utf8_lossy(word).into_owned(),
                Token::String => "'".to_owned(),
                Token::Unicode => "U&".to_owned(),
                Token::Other(byte) => (byte as char).to_string(),
            });
        };
        let mut lexer = Lexer::new(escapes);
        let mut rest = text;
        for piece in pieces {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            lexer.feed(now, &mut found);
            rest = later;
        }
        lexer.feed(rest, &mut found);
        lexer.end(&mut found);
        seen
    }

    fn of(text: &str) -> String {
        tokens(text.as_bytes(), &[], false).join(" ")
    }

    #[test]
    fn words_are_found_outside_of_strings_and_comments_only() {
        assert_eq!(of("SELECT a.B, 'listen', $1 FROM \"Te\"\"mp\";"), "select a . b , ' , $ from Te\"mp ;");
        assert_eq!(of("a--b\nc/*d/*e*/f*/g/h-i"), "a c g / h - i");
        assert_eq!(of("/*/**/x*/y /***/ z /* // */ w"), "y z w");
        assert_eq!(of("'a''b' E'it\\'s' c N'x' B'1' U&'\\0027' d"), "' ' c ' ' ' d");
        assert_eq!(of(r"'a\' b"), "' b");
        assert_eq!(tokens(br"'a\' b' c", &[], true), ["'", "c"]);
        assert_eq!(of("E'a'\n 'b\\'c' d"), "' ' d");
        assert_eq!(of("E'a' --x\n /*y*/ 'b\\'c' d 'e\\' f"), "' ' d ' f");
        assert_eq!(of("E'a' - 'b\\' c"), "' - ' c");
        assert_eq!(of("$$ listen $ x $$ a $t$ $$ $tt$ $t$ b $1$2"), "' a ' b $");
        assert_eq!(of("$a$b$a$ c $x d$y$ e"), "' c $ x d$y$ e");
        assert_eq!(of("U&\"l\\0069sten\" u&b"), "U& u & b");
        assert_eq!(of("1e5listen 0x1f 1.5 a1"), "0 0 0 . 0 a1");
        assert_eq!(of("ÄB listen"), "Äb listen");
        assert_eq!(of(&format!("{} b", "A".repeat(100))), format!("{} b", "a".repeat(63)));
        assert_eq!(of("a 'open"), "a");
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            text in "([a-cE$'\"/*\\-\\\\ \nU&1;(]|listen|\\$t\\$|/\\*|\\*/|--){0,60}",
            pieces in proptest::collection::vec(0_usize..9, 0..20), escapes: bool,
        ) {
            prop_assert_eq!(tokens(text.as_bytes(), &pieces, escapes), tokens(text.as_bytes(), &[], escapes));
        }

        #[test]
        fn what_is_quoted_is_one_token(inner in "[^'\\\\\\x00$\"*/]{0,40}") {
            for (text, token) in [
                (format!("a '{inner}' z"), "'"), (format!("a $q${inner}$q$ z"), "'"), (format!("a $${inner}$$ z"), "'"),
                (format!("a E'{inner}' z"), "'"), (format!("a U&\"{inner}\" z"), "U&"),
            ] {
                prop_assert_eq!(tokens(text.as_bytes(), &[], false), ["a", token, "z"]);
            }
            prop_assert_eq!(tokens(format!("a /*{inner}*/ z").as_bytes(), &[], false), ["a", "z"]);
        }
    }
}
