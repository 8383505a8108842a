//! From YAML text to the [tree](super::tree), with bounds on size, depth and aliases.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, Span};

use super::problem::Problem;
use super::tree::{Entry, Node, Origin, Place, Value};

/// The largest file, in bytes.
pub(super) const LARGEST_FILE: usize = 1 << 20;
/// The deepest nesting of maps and lists.
const DEEPEST: usize = 64;
/// How many values a file may have, those that aliases repeat counted each time.
const MOST_NODES: usize = 50_000;

/// Reads one YAML document. A problem that does not hinder reading on (a key that is written twice) leaves a tree; a
/// syntax error leaves none.
///
/// With an origin, everything is marked as coming from there; otherwise from its place in the text.
pub(super) fn read(text: &str, elsewhere: Option<&Origin>) -> (Option<Node>, Vec<Problem>) {
    let mut reader = Reader {
        text,
        elsewhere,
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        documents: 0,
        root: None,
        problems: Vec::new(),
    };
    match reader.run() {
        Ok(()) => {}
        Err(problem) => {
            reader.problems.push(*problem);
            return (None, reader.problems);
        }
    }
    let root = reader.root.take().unwrap_or_else(|| {
        Node::new(Value::Null, reader.origin(Place { line: 1, column: 1, length: 1, ..Place::default() }))
    });
    (Some(root), reader.problems)
}

/// A list or a map that is being read.
struct Open {
    at: Place,
    anchor: Option<usize>,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Place)> },
}

struct Reader<'a> {
    text: &'a str,
    elsewhere: Option<&'a Origin>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
    problems: Vec<Problem>,
}

type Step = Result<(), Box<Problem>>;

impl Reader<'_> {
    fn run(&mut self) -> Step {
        if self.text.len() > LARGEST_FILE {
            let start = Place { line: 1, column: 1, length: 1, ..Place::default() };
            return Err(self.fatal(start, "the file is larger than 1 MiB", None));
        }
        let mut options = granit_parser::options! {
            flow_nesting_limit: DEEPEST,
            block_nesting_limit: DEEPEST,
        };
        options.set_emit_comments(false);
        for event in Parser::new_from_str_with_options(self.text, options) {
            match event {
                Ok((event, span)) => self.event(&event, span)?,
                Err(error) => {
                    let at = self.place(*error.marker(), *error.marker());
                    let hint = syntax_hint(error.kind(), self.text, at);
                    let what = match error.kind() {
                        ErrorKind::RecursionLimitExceeded => {
                            format!("more than {DEEPEST} levels of nesting")
                        }
                        kind => format!("not valid YAML: {kind}"),
                    };
                    return Err(self.fatal(at, &what, hint));
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>, span: Span) -> Step {
        let at = self.place(span.start, span.end);
        let anchor = event.anchor_id();
        if let Some(tag) = event.tag()
            && !(tag.is_yaml_core_schema_tag("str") && matches!(event, Event::Scalar(..)))
        {
            let at = span.tag_span().map_or(at, |tag| self.place(tag.start, tag.end));
            let what = format!("tag `{}` is not supported", tag.original());
            return Err(self.fatal(at, &what, Some("remove the tag".to_owned())));
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let hint = "keep one document and remove the line `---`".to_owned();
                    return Err(self.fatal(at, "a second document in the file", Some(hint)));
                }
                Ok(())
            }
            Event::Scalar(written, style, _, tag) => {
                if self.wants_key() {
                    return self.key(written, *style, at);
                }
                let value = if *style == ScalarStyle::Plain && tag.is_none() {
                    core(written)
                } else {
                    Value::Text(written.to_string())
                };
                self.finished(Node::new(value, self.origin(at)), anchor, at)
            }
            Event::SequenceStart(..) => self.start(at, anchor, Inside::List(Vec::new())),
            Event::MappingStart(..) => self.start(at, anchor, Inside::Map { entries: Vec::new(), key: None }),
            Event::SequenceEnd | Event::MappingEnd => self.end(span.end),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(id).cloned() else {
                    return Err(self.fatal(at, "the alias is inside what it stands for", None));
                };
                self.count(size(&node), at)?;
                self.finished(node, None, at)
            }
            _ => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { inside: Inside::Map { key: None, .. }, .. }))
    }

    fn start(&mut self, at: Place, anchor: Option<usize>, inside: Inside) -> Step {
        if self.wants_key() {
            return Err(self.fatal(at, "a list or map cannot be a key", Some("write a name".to_owned())));
        }
        if self.open.len() >= DEEPEST {
            return Err(self.fatal(at, &format!("more than {DEEPEST} levels of nesting"), None));
        }
        self.open.push(Open { at, anchor, inside });
        Ok(())
    }

    fn key(&mut self, written: &str, style: ScalarStyle, at: Place) -> Step {
        if style == ScalarStyle::Plain && core(written) == Value::Null {
            return Err(self.fatal(at, "a value without a key", Some("write `key: value`".to_owned())));
        }
        if let Some(Open { inside: Inside::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((written.to_owned(), at));
        }
        Ok(())
    }

    fn end(&mut self, end: Marker) -> Step {
        let Some(Open { mut at, anchor, inside }) = self.open.pop() else { return Ok(()) };
        if let Some(end) = end.byte_offset()
            && let Some(written) = self.text.get(at.offset..end)
            && !written.contains('\n')
        {
            at.bytes = written.len();
            at.length = written.chars().count().max(1);
        }
        let value = match inside {
            Inside::List(items) => Value::List(items),
            Inside::Map { entries, .. } => Value::Map(entries),
        };
        self.finished(Node::new(value, self.origin(at)), anchor, at)
    }

    /// Puts a finished node into what is open.
    fn finished(&mut self, mut node: Node, anchor: Option<usize>, at: Place) -> Step {
        self.count(1, at)?;
        if let Some(anchor) = anchor {
            self.count(size(&node), at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let path = self.path();
        let origin = |elsewhere: Option<&Origin>, place| elsewhere.cloned().unwrap_or(Origin::File(place));
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { inside: Inside::List(items), .. }) => items.push(node),
            Some(Open { inside: Inside::Map { entries, key }, .. }) => {
                let Some((key, place)) = key.take() else {
                    return Err(self.fatal(at, "an alias cannot be a key", Some("write a name".to_owned())));
                };
                let key_origin = origin(self.elsewhere, place);
                if at.bytes == 0 && node.value == Value::Null {
                    // Nothing was written; the key is the best place for it.
                    node.origin = key_origin.clone();
                }
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    let first_line = first.origin.place().map_or(0, |place| place.line);
                    node.dropped = true;
                    self.problems.push(
                        Problem::new(path, format!("key `{key}` is given twice"))
                            .at(&key_origin)
                            .hint(format!("remove one; the first is in line {first_line}")),
                    );
                }
                entries.push(Entry { key, origin: key_origin, node });
            }
        }
        Ok(())
    }

    fn count(&mut self, more: usize, at: Place) -> Step {
        self.nodes += more;
        if self.nodes > MOST_NODES {
            let what = format!("more than {MOST_NODES} values, those that aliases repeat included");
            return Err(self.fatal(at, &what, None));
        }
        Ok(())
    }

    /// The path of what is read now.
    fn path(&self) -> Vec<String> {
        let step = |open: &Open| match &open.inside {
            Inside::List(items) => Some(items.len().to_string()),
            Inside::Map { key, .. } => key.as_ref().map(|(key, _)| key.clone()),
        };
        self.open.iter().filter_map(step).collect()
    }

    fn fatal(&self, at: Place, what: &str, hint: Option<String>) -> Box<Problem> {
        let problem = Problem::new(self.path(), what).at(&self.origin(at));
        Box::new(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        })
    }

    fn origin(&self, place: Place) -> Origin {
        self.elsewhere.cloned().unwrap_or(Origin::File(place))
    }

    fn place(&self, start: Marker, end: Marker) -> Place {
        let offset = start.byte_offset().unwrap_or(0).min(self.text.len());
        let end = end.byte_offset().unwrap_or(offset).clamp(offset, self.text.len());
        let written = self.text.get(offset..end).unwrap_or_default();
        // The parser ends a block scalar or an empty value somewhere in the white space behind it.
        let written = written.trim_end();
        let first_line = written.lines().next().unwrap_or_default();
        Place {
            line: start.line().max(1),
            column: start.col() + 1,
            length: first_line.chars().count().max(1),
            offset,
            bytes: written.len(),
        }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum::<usize>(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
        _ => 0,
    }
}

/// What the writer probably meant.
fn syntax_hint(kind: &ErrorKind, text: &str, at: Place) -> Option<String> {
    let line = text.lines().nth(at.line.saturating_sub(1)).unwrap_or_default();
    let above = text.lines().nth(at.line.saturating_sub(2)).unwrap_or_default();
    let open_quote = |line: &str| line.matches('"').count() % 2 == 1;
    let tab = matches!(
        kind,
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabInPlainScalar
            | ErrorKind::TabAtBlockScalarStart
    );
    if tab || line.trim_start_matches(' ').starts_with('\t') {
        return Some("indent with spaces; YAML forbids tabs there".to_owned());
    }
    if line.contains("]:") {
        return Some("put an IPv6 address and its port in quotes: \"[::1]:53\"".to_owned());
    }
    match kind {
        ErrorKind::UnclosedQuotedScalar => Some("close the quotation mark".to_owned()),
        _ if open_quote(line) || open_quote(above) => Some("close the quotation mark".to_owned()),
        ErrorKind::UnclosedFlowCollection { open } => Some(format!("close the bracket `{open}`")),
        ErrorKind::UnknownAnchor => Some("a text that begins with `*` needs quotes".to_owned()),
        ErrorKind::MappingValueNotAllowed => {
            Some("check the indentation; a value with `: ` in it needs quotes".to_owned())
        }
        ErrorKind::InvalidIndentation | ErrorKind::ExpectedBlockMappingKey | ErrorKind::SimpleKeyExpected => {
            Some("check the indentation, and that each key is followed by `: `".to_owned())
        }
        _ => None,
    }
}

/// A plain scalar by the YAML 1.2 core schema, section 10.3.2.
fn core(written: &str) -> Value {
    match written {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    let radix = |digits: &str, radix| {
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        i128::from_str_radix(digits, radix).ok().filter(|_| plain)
    };
    let prefixed = written
        .strip_prefix("0x")
        .and_then(|digits| radix(digits, 16))
        .or_else(|| written.strip_prefix("0o").and_then(|digits| radix(digits, 8)));
    if let Some(number) = prefixed {
        return Value::Int(number);
    }
    let (sign, unsigned) = match written.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, written.strip_prefix('+').unwrap_or(written)),
    };
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Value::Float(sign * f64::INFINITY);
    }
    let digit_first =
        unsigned.strip_prefix('.').unwrap_or(unsigned).starts_with(|c: char| c.is_ascii_digit());
    let number_like = digit_first
        && unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !number_like {
        return Value::Text(written.to_owned());
    }
    if let Ok(number) = written.parse::<i128>() {
        return Value::Int(number);
    }
    written.parse().map_or_else(|_| Value::Text(written.to_owned()), Value::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Problem {
        let (_, mut problems) = read(text, None);
        assert_eq!(problems.len(), 1, "{text:?}: {problems:?}");
        problems.remove(0)
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        for (written, value) in [
            ("1", Value::Int(1)),
            ("-7", Value::Int(-7)),
            ("+7", Value::Int(7)),
            ("0x1F", Value::Int(31)),
            ("0o17", Value::Int(15)),
            ("1.5", Value::Float(1.5)),
            (".5", Value::Float(0.5)),
            ("1e3", Value::Float(1000.0)),
            ("-.inf", Value::Float(f64::NEG_INFINITY)),
            ("99999999999999999999999999999999999999999", Value::Float(1e41)),
            ("true", Value::Bool(true)),
            ("yes", Value::Text("yes".into())),
            ("off", Value::Text("off".into())),
            ("~", Value::Null),
            ("0x", Value::Text("0x".into())),
            ("0x-1", Value::Text("0x-1".into())),
            ("1.2.3", Value::Text("1.2.3".into())),
            ("127.0.0.1:53", Value::Text("127.0.0.1:53".into())),
            ("5s", Value::Text("5s".into())),
            ("infinity", Value::Text("infinity".into())),
            ("inf", Value::Text("inf".into())),
            ("nan", Value::Text("nan".into())),
        ] {
            assert_eq!(core(written), value, "{written}");
        }
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let (root, problems) = read("a: 1\nb:\n  - x\n  - { cé: \"d e\" }\n", None);
        assert!(problems.is_empty());
        let root = root.unwrap();
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let found = root.find(&path("b.1.cé")).unwrap();
        let (key, value) = (found.key.unwrap().place().unwrap(), found.node.origin.place().unwrap());
        assert_eq!((key.line, key.column, key.length), (4, 7, 2));
        assert_eq!((value.line, value.column, value.length), (4, 11, 5));
        assert_eq!(found.node.value, Value::Text("d e".into()));
        let list = root.find(&path("b.1")).unwrap().node.origin.place().unwrap();
        assert_eq!((list.line, list.column, list.length), (4, 5, 13));
    }

    #[test]
    fn a_key_given_twice_does_not_hide_the_rest() {
        let (root, problems) = read("a: 1\na: 2\nb: 3\nb: 4\n", None);
        let places: Vec<_> =
            problems.iter().map(|p| (p.path.clone(), p.line.unwrap(), p.column.unwrap())).collect();
        assert_eq!(places, [("a".to_owned(), 2, 1), ("b".to_owned(), 4, 1)]);
        assert_eq!(root.unwrap().get("a").unwrap().node.value, Value::Int(1));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for (text, line, column, what) in [
            ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
            ("a: !!binary x\n", 1, 4, "tag"),
            ("a: [1, 2\n", 1, 4, "unclosed bracket"),
            ("a:\n\tb: 1\n", 2, 2, "tab"),
            ("? [a]\n: b\n", 1, 3, "cannot be a key"),
            ("a: &x [*x]\n", 1, 8, "alias"),
            ("a: *nobody\n", 1, 4, "anchor"),
            ("~: 1\n", 1, 1, "without a key"),
        ] {
            let problem = problem(text);
            assert_eq!((problem.line, problem.column), (Some(line), Some(column)), "{text:?}: {problem:?}");
            assert!(problem.message.contains(what), "{text:?}: {problem:?}");
        }
        assert!(problem("a:\n\tb: 1\n").hint.unwrap().contains("spaces"));
        assert!(problem("a: [::1]:53\n").hint.unwrap().contains("quotes"));
    }

    #[test]
    fn bombs_are_refused() {
        assert!(problem(&"[".repeat(10_000)).message.contains("levels of nesting"));
        let block: String = (0..200).map(|depth| format!("{}a:\n", "  ".repeat(depth))).collect();
        assert!(problem(&block).message.contains("levels of nesting"));
        assert!(problem(&" ".repeat(LARGEST_FILE + 1)).message.contains("1 MiB"));

        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let alias = format!("*a{}", level - 1);
            laughs += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
        }
        assert!(problem(&laughs).message.contains("values"));
        assert!(problem(&format!("a: [{}]", "x, ".repeat(MOST_NODES + 1))).message.contains("values"));
    }

    #[test]
    fn aliases_repeat_their_anchor() {
        let (root, problems) = read("a: &x [1, 2]\nb: *x\n", None);
        assert!(problems.is_empty());
        let root = root.unwrap();
        assert_eq!(root.get("a").unwrap().node.value, root.get("b").unwrap().node.value);
    }

    #[test]
    fn the_style_of_a_collection_does_not_matter() {
        let strip = |text: &str| {
            fn plain(node: &Node) -> serde_json::Value {
                match &node.value {
                    Value::List(items) => items.iter().map(plain).collect(),
                    Value::Map(entries) => {
                        entries.iter().map(|entry| (entry.key.clone(), plain(&entry.node))).collect()
                    }
                    Value::Text(text) => text.clone().into(),
                    other => format!("{other:?}").into(),
                }
            }
            plain(&read(text, None).0.unwrap())
        };
        let flow = strip("{a: [1, x], b: {c: true}}");
        assert_eq!(flow, strip("a:\n- 1\n- x\nb:\n  c: true\n"));
        assert_eq!(flow, strip("a: [\n  1,\n  x,\n]\nb: {\n  c: true\n}\n"));
    }
}
