//! A configuration file: every refusal has a reason, and what is accepted can be shown and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_sidecar::config::{parse, show};

fuzz_target!(|text: &str| {
    match parse(text) {
        Err(failure) => {
            assert!(!failure.problems.is_empty(), "refused without a reason");
            // A carriage return alone is a line break too (YAML 1.2, section 5.4).
            let lines = text.matches(['\n', '\r']).count() + 1;
            for problem in &failure.problems {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?}");
            }
            assert!(failure.lines().len() >= failure.problems.len());
            assert!(!failure.render(true).is_empty());
        }
        Ok(loaded) => {
            let shown = show(&loaded, false);
            let again = parse(&shown);
            let again = again.unwrap_or_else(|failure| panic!("shown, but refused: {failure}\n{shown}"));
            assert_eq!(again.config, loaded.config, "{shown}");
        }
    }
});
