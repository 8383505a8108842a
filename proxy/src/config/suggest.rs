//! "Did you mean": hints from what would have been right.

/// How many names a hint lists.
const MOST: usize = 24;

/// A hint for a name that is not among `known`: the nearest one, and all.
pub(super) fn hint<'a>(written: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(written, known.clone()) {
        Some(near) => format!("did you mean `{near}`? {}", list(known)),
        None => list(known),
    }
}

/// A list of what is possible.
pub(super) fn list<'a>(known: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return "nothing is expected here".to_owned();
    }
    if names.len() > MOST {
        let more = names.len() - MOST;
        names.truncate(MOST);
        names.push(format!("{more} more"));
    }
    format!("expected {}", names.join(", "))
}

/// The name that was probably meant.
fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase().replace('-', "_");
    known
        .map(|name| (strsim::jaro_winkler(&written, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_and_strangers_are_not() {
        let known = ["max_ttl", "min_ttl", "capacity"];
        let hint = |written| hint(written, known.into_iter());
        assert_eq!(hint("max_tll"), "did you mean `max_ttl`? expected `max_ttl`, `min_ttl`, `capacity`");
        assert!(hint("Max-TTL").starts_with("did you mean `max_ttl`?"));
        assert!(hint("zebra").starts_with("expected"));
        assert_eq!(list(std::iter::empty()), "nothing is expected here");
        let many: Vec<String> = (0..30).map(|n| format!("k{n}")).collect();
        assert!(list(many.iter().map(String::as_str)).ends_with("6 more"));
    }
}
