//! What a reply in the cache takes.

use super::question::Questions;
use super::resolvers::{Setting, Who};
use super::{Table, beside, upstream, warm};
use crate::Failure;
use crate::progress::Progress;
use crate::row::Row;

const ENTRIES: u32 = 100_000;

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let entries = if table.plan.is_quick() { ENTRIES / 2 } else { ENTRIES };
    let questions = Questions::new(0..entries);
    let progress = Progress::new("dns, memory", 1 + table.others.len() as u64);
    let mut figures: Vec<(Who, f64)> = Vec::new();
    for who in table.all() {
        progress.step(who.name());
        let upstream = upstream();
        let setting = |entries| Setting { entries, ..Setting::new([upstream.addr()]) };
        // dnsmasq takes all its memory at the start, so the empty one must be one with room for few.
        let before = table.start(who, &setting(200))?.memory();
        let resolver = table.start(who, &setting(entries as usize))?;
        warm(&resolver, &questions)?;
        let grown = resolver.memory().saturating_sub(before);
        // Another pass shows whether it has kept them all.
        upstream.forget();
        warm(&resolver, &questions)?;
        let again = upstream.total();
        if again > u64::from(entries / 50) {
            eprintln!("{} asked again for {again} of {entries} names, its memory says nothing", who.name());
            if who == Who::Sidecar {
                return Ok(Vec::new());
            }
            continue;
        }
        figures.push((who, grown as f64 / f64::from(1 << 20) * f64::from(ENTRIES) / f64::from(entries)));
    }
    Ok(beside("dns: memory for 100,000 entries", "MiB", &figures))
}
