//! Figures of the process, from `/proc` (proc_pid_stat(5)), under the names that Prometheus' own clients use.

use std::fs;

/// What can be read now; a figure that cannot be read is left out.
pub(super) fn sample() -> Vec<(&'static str, f64)> {
    let mut found = Vec::with_capacity(6);
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        found.push(("process_cpu_seconds_total", stat.ticks as f64 / ticks_per_second()));
        found.push(("process_threads", stat.threads as f64));
        found.push(("process_resident_memory_bytes", stat.pages as f64 * rustix::param::page_size() as f64));
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time) {
            found.push(("process_start_time_seconds", boot as f64 + stat.start as f64 / ticks_per_second()));
        }
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // One of them is the listing itself.
        found.push(("process_open_fds", fds.count().saturating_sub(1) as f64));
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        found.push(("process_max_fds", limit as f64));
    }
    found
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// The fields of `/proc/self/stat` that are used.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ticks: u64,
    threads: u64,
    start: u64,
    pages: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The name of the program may hold spaces and parentheses; the last one ends it. The next field is the third.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.checked_add(field(15)?)?,
            threads: field(20)?,
            start: field(22)?,
            pages: field(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_is_no_trouble() {
        let numbers: Vec<String> = (4..=30).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b (c)) S {}", numbers.join(" "));
        assert_eq!(Stat::parse(&stat), Some(Stat { ticks: 29, threads: 20, start: 22, pages: 24 }));
        assert_eq!(Stat::parse("7 (a) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_has_memory_threads_and_files() {
        let sample = sample();
        let get = |name| sample.iter().find(|(known, _)| *known == name).unwrap().1;
        assert!(get("process_resident_memory_bytes") > 1e5);
        assert!(get("process_threads") >= 1.0);
        assert!(get("process_open_fds") >= 3.0);
        assert!(get("process_max_fds") >= get("process_open_fds"));
        assert!(get("process_start_time_seconds") > 1.6e9);
        assert!(get("process_cpu_seconds_total") >= 0.0);
    }
}
