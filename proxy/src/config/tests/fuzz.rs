//! Arbitrary text never panics, and what is refused has a place inside the text.

use proptest::prelude::*;

use super::load_with;
use crate::config::{QUICKSTART, parse};

fn survives(text: &str) {
    if let Err(failure) = parse(text) {
        // YAML counts a lone carriage return as a line break.
        let lines = text.matches(['\n', '\r']).count() + 1;
        for problem in &failure.problems {
            assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?} in {text:?}");
        }
        failure.render(false);
        failure.render(true);
        failure.to_string();
    }
}

/// Pieces of which broken configurations are made.
fn piece() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "version: 1\n",
        "node:",
        "  name: ",
        "listeners:",
        "filters:",
        "  dns:",
        "    dns_cache:",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "\n",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!!str ",
        "|\n",
        ">\n",
        "\"",
        "'",
        "\t",
        "~",
        "#",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "true",
        "300s",
        "é",
        "\u{feff}",
        "\u{85}",
        "\r\n",
        "\r",
        "<<: *a\n",
        "0x1F",
        "admin: { token: ",
    ]);
    prop_oneof![4 => words.prop_map(str::to_owned), 1 => ".{0,4}"]
}

proptest! {
    #[test]
    fn arbitrary_text_is_survived(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn text_made_of_yaml_is_survived(pieces in prop::collection::vec(piece(), 0..40)) {
        survives(&pieces.concat());
    }

    #[test]
    fn a_damaged_configuration_is_survived(at in any::<prop::sample::Index>(), length in 0..40usize, new in piece()) {
        let mut text = QUICKSTART.to_owned();
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let first = at.index(ends.len());
        let last = (first + length).min(ends.len() - 1);
        text.replace_range(ends[first]..ends[last], &new);
        survives(&text);
    }

    #[test]
    fn arbitrary_variables_are_survived(name in "[A-Z_0-9]{0,30}", value in "\\PC{0,60}") {
        if let Err(failure) = load_with("version: 1\n", &[(&name, &value)]) {
            prop_assert!(!failure.problems.is_empty());
            failure.render(false);
        }
    }
}
