//! Asking a server whether it is the primary, and how far it is.

use super::topology::{Lsn, Report};

/// Any user may ask this. The position of a primary is that of what was inserted, since a commit may be acknowledged before it is
/// written (`synchronous_commit = off`). The timeline of a replica is that of what it has replayed or receives, whichever is known and
/// later; the last one is shown to members of `pg_read_all_stats` only.
pub(super) const QUESTION: &[u8] = b"SELECT recovery, \
CASE WHEN recovery THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
CASE WHEN recovery THEN GREATEST(\
(SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
(SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
(SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)) \
ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
(SELECT system_identifier FROM pg_catalog.pg_control_system()), sizes.wal_block_size, sizes.bytes_per_wal_segment \
FROM pg_catalog.pg_control_init() AS sizes, (SELECT pg_catalog.pg_is_in_recovery() AS recovery OFFSET 0) AS asked";

/// Headers of pages of the log, and of the first one of a segment (`SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`).
const PAGE_HEADER: u64 = 24;
const SEGMENT_HEADER: u64 = 40;

/// Where the last record has ended that was inserted before a position: where the next one begins. Between the two may be a page's header,
/// behind which no record ends.
fn end_of_record(lsn: Lsn, block: u64, segment: u64) -> Option<Lsn> {
    Some(if lsn.checked_rem(segment)? == SEGMENT_HEADER {
        lsn - SEGMENT_HEADER
    } else if lsn.checked_rem(block)? == PAGE_HEADER {
        lsn - PAGE_HEADER
    } else {
        lsn
    })
}

pub(super) fn report(row: &[&[u8]]) -> Option<Report> {
    let [recovery, lsn, timeline, system, block, segment] = row else { return None };
    fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
        std::str::from_utf8(text).ok()?.parse().ok()
    }
    let primary = match *recovery {
        b"t" => false,
        b"f" => true,
        _ => return None,
    };
    let lsn = std::str::from_utf8(lsn).ok()?;
    let (high, low) = lsn.split_once('/')?;
    let part = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
    let lsn = part(high)? << 32 | part(low)?;
    let lsn = if primary { end_of_record(lsn, number(block)?, number(segment)?)? } else { lsn };
    // A `bigint` in the answer, whose sign is only its first bit.
    let system: i64 = number(system)?;
    Some(Report { primary, lsn, timeline: number(timeline)?, system: system.cast_unsigned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_refused() {
        let of = |[recovery, lsn, timeline, system]: [&str; 4]| {
            report(&[recovery, lsn, timeline, system, "8192", "16777216"].map(str::as_bytes))
        };
        let expected = Report { primary: false, lsn: 0x16_0000_0028, timeline: 3, system: u64::MAX };
        assert_eq!(of(["t", "16/28", "3", "-1"]), Some(expected));
        assert_eq!(of(["f", "0/0", "1", "5"]).map(|report| report.primary), Some(true));
        for wrong in
            [["", "0/0", "1", "5"], ["f", "", "1", "5"], ["f", "0/0", "", "5"], ["f", "0/0", "1", "x"]]
        {
            assert_eq!(of(wrong), None);
        }
        assert_eq!(report(&[b"t"]), None);
        assert_eq!(report(&[b"f", b"0/0", b"1", b"5", b"0", b"0"]), None);
        // A replica that has all of it says `0/3000000` and `0/2002000`.
        assert_eq!(of(["f", "0/3000028", "1", "5"]).map(|report| report.lsn), Some(0x300_0000));
        assert_eq!(of(["f", "0/2002018", "1", "5"]).map(|report| report.lsn), Some(0x200_2000));
        assert_eq!(of(["f", "0/2002028", "1", "5"]).map(|report| report.lsn), Some(0x200_2028));
    }
}
