//! CPU time and page faults of another process.

use std::io;
use std::time::Duration;

/// User and system time of a process, all its threads, also those that have ended.
///
/// # Errors
/// When the process is gone.
pub fn of(pid: u32) -> io::Result<Duration> {
    stat(pid, ticks).map(time)
}

/// The same of several processes; `None` of none.
///
/// # Errors
/// When one is gone.
pub fn of_all(pids: &[u32]) -> io::Result<Option<Duration>> {
    Ok(sum(pids, ticks)?.map(time))
}

/// How often processes, all their threads, touched memory that was not there: page faults without input or output; `None` of no process.
///
/// # Errors
/// When one is gone.
pub fn faults_of_all(pids: &[u32]) -> io::Result<Option<u64>> {
    sum(pids, faults)
}

fn time(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.saturating_mul(1_000_000_000) / rustix::param::clock_ticks_per_second().max(1))
}

/// A figure of all processes together.
fn sum(pids: &[u32], figure: fn(&str) -> Option<u64>) -> io::Result<Option<u64>> {
    let figures: Vec<u64> = pids.iter().map(|pid| stat(*pid, figure)).collect::<io::Result<_>>()?;
    Ok((!figures.is_empty()).then(|| figures.iter().sum()))
}

/// A figure of what the kernel says of a process.
fn stat(pid: u32, figure: fn(&str) -> Option<u64>) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    figure(&stat).ok_or_else(|| io::Error::other(format!("cannot read /proc/{pid}/stat")))
}

/// `minflt`, field 10 (proc_pid_stat(5)).
fn faults(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// `utime + stime`, fields 14 and 15 (proc_pid_stat(5)). The command's name may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_may_be_called_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 34 5 6 20 0 1 0 100 0 0";
        assert_eq!((ticks(stat), faults(stat)), (Some(46), Some(100)));
        assert_eq!((ticks("7 (a) S 1"), faults("7 (a) S 1")), (None, None));
    }

    #[test]
    fn work_takes_time() {
        let before = of(std::process::id()).unwrap();
        let mut x = 1_u64;
        while of(std::process::id()).unwrap() < before + Duration::from_millis(20) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(of(u32::MAX).is_err());
    }
}
