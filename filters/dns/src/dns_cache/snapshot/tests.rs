use std::fs;

use proptest::prelude::*;

use super::*;
use crate::testing::{query_wire, reply_wire, soa};
use crate::wire::{parse_query, rcode, rtype};

const SECS: fn(u64) -> Duration = Duration::from_secs;

fn entry(name: &str, ttl: u32, now: Instant, age: Duration) -> Arc<Entry> {
    let query = query_wire(name, rtype::A, None);
    let key = Key::of(&parse_query(&query).unwrap()).unwrap();
    let reply = reply_wire(&query, rcode::NOERROR, &[(rtype::A, ttl, &[192, 0, 2, 1])]);
    Arc::new(Entry::restored(&key, &reply, now, age, 0).unwrap())
}

fn wall(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + SECS(2_000_000_000 + secs)
}

#[test]
fn entries_keep_their_age_by_the_clock_on_the_wall() {
    let now = Instant::now();
    let entries = [entry("a.example", 600, now, SECS(10)), entry("b.example", 600, now, SECS(250))];
    let bytes = encode(&entries, &[7; 32], now, wall(0));
    let ages = |after: u64| {
        let entries = decode(&bytes, &[7; 32], now, wall(after), 5).unwrap();
        entries.iter().map(|entry| entry.age(now).as_secs()).collect::<Vec<_>>()
    };
    assert_eq!(ages(0), [10, 250]);
    assert_eq!(ages(49), [59, 299]);
    assert_eq!(ages(50), [60], "none is ever 300 s old");
    assert_eq!(ages(290), [0; 0]);
    let restored = decode(&bytes, &[7; 32], now, wall(20), 5).unwrap();
    assert_eq!((restored[0].key(), restored[0].message()), (entries[0].key(), entries[0].message()));
    assert!(matches!(decode(&bytes, &[7; 32], now, SystemTime::UNIX_EPOCH, 0), Err(Refused::Clock)));
    assert!(matches!(decode(&bytes, &[8; 32], now, wall(0), 0), Err(Refused::Damaged)));
    let mut foreign = bytes.clone();
    foreign[11] += 1;
    assert!(matches!(decode(&foreign, &[7; 32], now, wall(0), 0), Err(Refused::Foreign)));
}

#[test]
fn a_file_that_is_signed_but_makes_no_sense_is_refused() {
    let now = Instant::now();
    let bytes = encode(&[entry("a.example", 600, now, SECS(0))], &[7; 32], now, wall(0));
    let body = &bytes[..bytes.len() - HASH];
    for at in 20..body.len() {
        for cut in [false, true] {
            let mut body = if cut { body[..at].to_vec() } else { body.to_vec() };
            if let Some(byte) = body.get_mut(at) {
                *byte ^= 0xff;
            }
            let hash = blake3::keyed_hash(&[7; 32], &body);
            body.extend_from_slice(hash.as_bytes());
            // Whatever it is taken for, it is not taken for another name's data.
            for entry in decode(&body, &[7; 32], now, wall(0), 0).unwrap_or_default() {
                let reply = crate::wire::parse_reply(entry.message()).unwrap();
                assert!(entry.key().starts_with(reply.name.wire()));
            }
        }
    }
}

fn settings(directory: &tempfile::TempDir, key: Option<Secret>) -> SnapshotFile {
    // In a directory that is not there yet.
    SnapshotFile { file: directory.path().join("new/cache"), key }
}

fn filled() -> CacheState {
    let cache = CacheState::new(1 << 20);
    let now = Instant::now();
    for name in ["a.example", "b.example"] {
        let old = entry(name, 600, now, SECS(10));
        let key = Key::from_bytes(old.key()).unwrap();
        assert!(cache.insert(Entry::restored(&key, old.message(), now, SECS(10), cache.epoch()).unwrap()));
    }
    cache
}

/// How many entries a new cache has that starts with the file, and whether the file was refused.
fn restored(file: &SnapshotFile) -> (u64, u64) {
    let cache = CacheState::new(1 << 20);
    file.restore(&cache);
    let stats = cache.stats();
    assert_eq!(stats.entries, stats.snapshot_restored);
    (stats.entries, stats.snapshot_failures)
}

#[test]
fn what_was_written_is_there_after_a_restart_and_damage_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "hunter2").unwrap();
    for key in [None, Some(Secret::File(secret.clone()))] {
        let file = settings(&directory, key);
        assert_eq!(file.check(&ConfigPath::root()), []);
        let _ = fs::remove_file(&file.file);
        assert_eq!(restored(&file), (0, 0), "no file is no fault");
        let cache = filled();
        file.write(&cache, Instant::now());
        assert_eq!(restored(&file), (2, 0));
        assert!(cache.stats().snapshot_age_seconds.is_some());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file.file).unwrap().permissions().mode() & 0o777, 0o600);
        let good = fs::read(&file.file).unwrap();
        for at in [0, 9, 20, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file.file, bad).unwrap();
            assert_eq!(restored(&file), (0, 1), "byte {at}");
        }
        for length in [0, 7, 31, good.len() - 1] {
            fs::write(&file.file, &good[..length]).unwrap();
            assert_eq!(restored(&file), (0, 1), "{length} bytes");
        }
        fs::write(&file.file, &good).unwrap();
    }
    let other = directory.path().join("other");
    fs::write(&other, "another").unwrap();
    assert_eq!(restored(&settings(&directory, Some(Secret::File(other)))), (0, 1), "another key");
    assert_eq!(restored(&settings(&directory, None)), (0, 1), "no key");
    assert_eq!(fs::read_dir(directory.path().join("new")).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_file_that_cannot_be_written_is_counted() {
    let file = SnapshotFile { file: "/dev/null/cache".into(), key: None };
    assert_eq!(file.check(&ConfigPath::root())[0].at.to_string(), "file");
    let key = Some(Secret::Env("QUDAG_NO_SUCH_VARIABLE".into()));
    let errors = SnapshotFile { file: "cache".into(), key }.check(&ConfigPath::root());
    assert_eq!((errors.len(), errors[0].at.to_string().as_str()), (1, "key"));
    let cache = filled();
    file.write(&cache, Instant::now());
    assert_eq!(cache.stats().snapshot_failures, 1);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), sign: bool) {
        let mut file = MAGIC.to_vec();
        file.extend(SCHEMA.to_be_bytes());
        file.extend(&bytes);
        if sign {
            let hash = blake3::keyed_hash(&[7; 32], &file);
            file.extend_from_slice(hash.as_bytes());
        }
        let _ = decode(&file, &[7; 32], Instant::now(), wall(0), 0);
        let _ = decode(&bytes, &[7; 32], Instant::now(), wall(0), 0);
    }

    #[test]
    fn an_entry_is_never_younger_than_it_was(age in 0_u64..300_000, off in 0_u64..400_000, minimum: u32) {
        let now = Instant::now();
        let query = query_wire("a.example", rtype::A, None);
        let key = Key::of(&parse_query(&query).unwrap()).unwrap();
        let data = soa(minimum);
        let reply = reply_wire(&query, rcode::NXDOMAIN, &[(rtype::SOA, 600, &data)]);
        let age = Duration::from_millis(age);
        let entry = Arc::new(Entry::restored(&key, &reply, now, age, 0).unwrap());
        let bytes = encode(&[entry], &[7; 32], now, wall(0));
        let later = wall(0) + Duration::from_millis(off);
        for entry in decode(&bytes, &[7; 32], now, later, 0).unwrap() {
            prop_assert!(entry.age(now) >= age + Duration::from_millis(off));
            prop_assert!(entry.age(now) < HARD_LIMIT);
        }
    }
}
