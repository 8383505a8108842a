//! The flushes of the fleet, in one order for all: which entries of Redis they leave valid. No I/O.
//!
//! A flush is a record in a Redis stream, whose ids only grow. Each entry carries the id of the last flush that its writer knew *before*
//! it asked a server; a reader asks for the stream's last id together with the entry. So an entry is older than a flush exactly when
//! its id is smaller, whoever writes it and however late, and a flush needs to find and delete nothing.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use super::rules::Asked;
use crate::FlushSelector;
use crate::wire::Name;

/// How many flushes are remembered, here and in Redis. Entries from before the oldest are not served.
pub(super) const REMEMBERED: usize = 1024;
/// How many flushes wait for Redis before they become one of everything.
const MAX_WAITING: usize = 64;

/// The id of a record in a Redis stream: `MILLISECONDS-NUMBER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlushId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl fmt::Display for FlushId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for FlushId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, seq) = text.split_once('-').ok_or(())?;
        Ok(Self { ms: ms.parse().map_err(|_| ())?, seq: seq.parse().map_err(|_| ())? })
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "there is one kind that matters; the other is rare")]
pub(super) enum What {
    /// The stream begins here, or again after data were lost: what is in Redis is not trusted, but nothing was flushed.
    Start,
    /// A flush.
    Flush(FlushSelector),
}

impl What {
    /// As it stands in the stream.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Start => "start".to_owned(),
            Self::Flush(FlushSelector::All) => "all".to_owned(),
            Self::Flush(FlushSelector::Name(name)) => format!("name {name}"),
            Self::Flush(FlushSelector::Suffix(name)) => format!("suffix {name}"),
            Self::Flush(FlushSelector::Type(rtype)) => format!("type {rtype}"),
        }
    }

    /// What cannot be read is taken for a flush of everything: too much is gone then, but nothing stays that should not.
    pub(super) fn read(text: &str) -> Self {
        if text == "start" {
            return Self::Start;
        }
        let selector = match text.split_once(' ') {
            Some(("name", name)) => Name::from_text(name).ok().map(FlushSelector::Name),
            Some(("suffix", name)) => Name::from_text(name).ok().map(FlushSelector::Suffix),
            Some(("type", rtype)) => rtype.parse().ok().map(FlushSelector::Type),
            _ => None,
        };
        Self::Flush(selector.unwrap_or(FlushSelector::All))
    }

    fn concerns(&self, asked: &Asked) -> bool {
        match self {
            Self::Start => true,
            Self::Flush(selector) => asked.is_in(selector),
        }
    }
}

/// A record of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: FlushId,
    pub(super) what: What,
    /// Which sidecar wrote it.
    pub(super) origin: u64,
}

/// Whether an entry may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No flush since concerns it.
    Valid,
    /// A flush concerns it, or may do so.
    Flushed,
    /// There were flushes that are not known here yet.
    Behind,
}

/// What is known of the stream, and the flushes that are not in it yet.
#[derive(Debug, Default)]
pub(super) struct FlushLog {
    /// In order. The first one's id is the oldest from which on everything is known.
    records: VecDeque<Record>,
    /// Flushes of this sidecar that Redis has not taken yet, with their numbers.
    waiting: VecDeque<(u64, FlushSelector)>,
    asked: u64,
}

impl FlushLog {
    /// The last flush that is known; `None` before the stream was read.
    pub(super) fn known(&self) -> Option<FlushId> {
        self.records.back().map(|record| record.id)
    }

    /// Forgets what was known of the stream and begins with these records, which are in order.
    pub(super) fn restart(&mut self, records: impl IntoIterator<Item = Record>) {
        self.records.clear();
        records.into_iter().for_each(|record| self.add(record));
    }

    /// A further record. One that is not newer than the last is known already.
    pub(super) fn add(&mut self, record: Record) {
        if self.known().is_some_and(|known| record.id <= known) {
            return;
        }
        self.records.push_back(record);
        if self.records.len() > REMEMBERED {
            self.records.pop_front();
        }
    }

    /// A flush of this sidecar: from now on nothing that it concerns is valid here. Returns its number.
    pub(super) fn ask(&mut self, selector: &FlushSelector) -> u64 {
        self.asked += 1;
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back((self.asked, selector.clone()));
        } else {
            self.waiting.clear();
            self.waiting.push_back((self.asked, FlushSelector::All));
        }
        self.asked
    }

    /// The flushes that Redis has not taken yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &FlushSelector> {
        self.waiting.iter().map(|(_, selector)| selector)
    }

    /// The next flush that is to be written to the stream.
    pub(super) fn next(&self) -> Option<(u64, FlushSelector)> {
        self.waiting.front().cloned()
    }

    /// The stream has every flush up to this number.
    pub(super) fn written(&mut self, number: u64) {
        self.waiting.retain(|(waiting, _)| *waiting > number);
    }

    /// Whether an entry may be served that was asked for when `flush` was the last one, while `current` is the last one of the
    /// stream.
    pub(super) fn verdict(&self, asked: &Asked, flush: FlushId, current: FlushId) -> Verdict {
        if self.waiting.iter().any(|(_, selector)| asked.is_in(selector)) {
            return Verdict::Flushed;
        }
        // Redis has lost records when its last one is older than what is known: it was restored from a copy, with entries that a lost
        // flush concerned.
        let Some(known) = self.known().filter(|known| *known <= current) else { return Verdict::Behind };
        if flush == current {
            return Verdict::Valid;
        }
        let oldest = self.records.front().map_or(current, |record| record.id);
        if flush > current || flush < oldest {
            return Verdict::Flushed;
        }
        let since = self.records.iter().rev().take_while(|record| record.id > flush);
        if since.into_iter().any(|record| record.what.concerns(asked)) {
            return Verdict::Flushed;
        }
        if known < current { Verdict::Behind } else { Verdict::Valid }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::query;
    use crate::wire::rtype;

    fn key(name: &str) -> Asked {
        Asked::of(&query(name, rtype::A)).unwrap()
    }

    fn id(ms: u64) -> FlushId {
        FlushId { ms, seq: 0 }
    }

    fn record(ms: u64, text: &str) -> Record {
        Record { id: id(ms), what: What::read(text), origin: 0 }
    }

    fn log(records: &[(u64, &str)]) -> FlushLog {
        let mut log = FlushLog::default();
        log.restart(records.iter().map(|(ms, text)| record(*ms, text)));
        log
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        for text in
            ["start", "all", "name a.example", "suffix example", "suffix .", "type 28", "name a\\.b.c"]
        {
            assert_eq!(What::read(text).text(), text);
        }
        for text in ["", "name", "name a..b", "type x", "zone a.example", "ALL"] {
            assert_eq!(What::read(text), What::Flush(FlushSelector::All), "{text:?}");
        }
        assert_eq!("12-3".parse(), Ok(FlushId { ms: 12, seq: 3 }));
        for text in ["", "12", "12-", "-3", "a-b", "1-2-3"] {
            assert_eq!(text.parse::<FlushId>(), Err(()), "{text:?}");
        }
        assert!(id(9) < FlushId { ms: 9, seq: 1 } && FlushId { ms: 9, seq: 1 } < id(10));
    }

    #[test]
    fn a_flush_ends_what_was_asked_for_before_it_and_nothing_else() {
        let log = log(&[(10, "start"), (20, "suffix example"), (30, "type 28")]);
        let verdict = |name, flush, current| log.verdict(&key(name), id(flush), id(current));
        assert_eq!(verdict("a.example", 10, 30), Verdict::Flushed);
        assert_eq!(verdict("a.example", 20, 30), Verdict::Valid);
        assert_eq!(verdict("a.test", 10, 30), Verdict::Valid);
        assert_eq!(verdict("a.test", 9, 30), Verdict::Flushed, "from before what is known");
        // There is a flush that is not known here: only who knew it is trusted.
        assert_eq!(verdict("a.test", 30, 40), Verdict::Behind);
        assert_eq!(verdict("a.example", 10, 40), Verdict::Flushed);
        assert_eq!(verdict("a.test", 40, 40), Verdict::Valid);
        // Redis lost the last one.
        assert_eq!(verdict("a.test", 20, 20), Verdict::Behind);
        assert_eq!(verdict("a.test", 50, 30), Verdict::Flushed);
        assert_eq!(FlushLog::default().verdict(&key("a.test"), id(1), id(1)), Verdict::Behind);
    }

    #[test]
    fn a_flush_counts_here_before_redis_has_it() {
        let mut log = log(&[(10, "start")]);
        let number = log.ask(&FlushSelector::name("a.example").unwrap());
        assert_eq!(log.verdict(&key("a.example"), id(10), id(10)), Verdict::Flushed);
        assert_eq!(log.verdict(&key("b.example"), id(10), id(10)), Verdict::Valid);
        assert_eq!(log.next().unwrap().0, number);
        log.written(number);
        assert_eq!(log.next(), None);
        for _ in 0..1000 {
            log.ask(&FlushSelector::name("a.example").unwrap());
        }
        assert!(log.waiting.len() <= MAX_WAITING);
        assert_eq!(
            log.verdict(&key("b.example"), id(10), id(10)),
            Verdict::Flushed,
            "too many are one of all"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut log = log(&[(1, "start")]);
        for ms in 2..3000 {
            log.add(record(ms, "type 28"));
        }
        assert_eq!(log.records.len(), REMEMBERED);
        assert_eq!(log.verdict(&key("a"), id(1), id(2999)), Verdict::Flushed);
        assert_eq!(log.verdict(&key("a"), id(2500), id(2999)), Verdict::Valid);
    }

    proptest! {
        /// A model of the fleet: flushes happen at the server, sidecars learn of them late, ask and write at any time.
        #[test]
        fn nothing_from_before_a_flush_is_served_after_it(
            flushes in proptest::collection::vec(prop_oneof![
                Just("all"), Just("name a.example"), Just("name b.example"), Just("suffix example"), Just("type 1"), Just("type 28"), Just("start"),
            ], 1..20),
            writer in 0_usize..20, asked in 0_usize..20, reader in 0_usize..20,
        ) {
            let ids: Vec<u64> = (1..=flushes.len() as u64).collect();
            let records = |upto: usize| {
                let upto = upto.min(flushes.len() - 1);
                let mut log = FlushLog::default();
                log.restart((0..=upto).map(|i| record(ids[i], flushes[i])));
                log
            };
            // The writer asks when `asked` flushes have happened, of which it knows at most so many.
            let asked = asked.min(flushes.len() - 1);
            let tag = records(writer.min(asked)).known().unwrap();
            let current = id(*ids.last().unwrap());
            let key = key("a.example");
            let must_go = flushes[asked + 1..].iter().any(|text| What::read(text).concerns(&key));
            let verdict = records(reader).verdict(&key, tag, current);
            prop_assert!(!must_go || verdict != Verdict::Valid);
        }
    }
}
