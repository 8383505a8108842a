//! How much of the processors a server takes that runs on this host.
//!
//! A server is taken to run here only when its backend of our own connection is found among the processes: with the number that it gives
//! itself in its innermost namespace, and the title that it has given itself, which names the user, the database, and our end of the
//! connection (`update_process_title`, on by default); of a Unix socket, the process that listens must be its parent.

use std::fs;
use std::path::Path;
use std::time::Instant;

/// The most processes that are looked at.
const MOST: usize = 65_536;

/// What tells our own backend from all other processes.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// As `pg_backend_pid()` says.
    pub(super) process: u32,
    pub(super) user: String,
    pub(super) database: String,
    /// Our end of the connection as the server sees it: `address(port)`; none for a Unix socket.
    pub(super) client: Option<String>,
    /// Who listens at the Unix socket.
    pub(super) listener: Option<u32>,
}

impl Backend {
    /// The process from which all processes of the server come.
    pub(super) fn postmaster(&self) -> Option<u32> {
        if let Some(found) = self.parent_if_ours(self.process) {
            return Some(found);
        }
        // In a namespace of its own it has another number here.
        fs::read_dir("/proc")
            .ok()?
            .take(MOST)
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find_map(|process| self.parent_if_ours(process))
    }

    fn parent_if_ours(&self, process: u32) -> Option<u32> {
        let title = fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let status = self
            .is_title(&String::from_utf8_lossy(&title))
            .then(|| fs::read_to_string(format!("/proc/{process}/status")).ok())??;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let own = field("NSpid:")?.split_ascii_whitespace().next_back()?.parse::<u32>().ok()?;
        let parent = field("PPid:")?.trim().parse().ok()?;
        let listens = match (&self.client, self.listener) {
            (Some(_), _) => true,
            (None, listener) => listener == Some(parent),
        };
        (own == self.process && parent > 1 && listens).then_some(parent)
    }

    /// `postgres: [cluster_name: ]user database client command`.
    fn is_title(&self, title: &str) -> bool {
        let client = self.client.as_deref().unwrap_or("[local]");
        let session = format!(" {} {} {client} ", self.user, self.database);
        title.starts_with("postgres: ") && title.contains(&session)
    }
}

/// A server's processes.
#[derive(Debug)]
pub(super) struct Processes {
    postmaster: u32,
    /// When it was started, by which another process with the same number is told from it.
    started: u64,
    /// How many processors it may use.
    pub(super) processors: f64,
    last: (Instant, u64),
}

impl Processes {
    pub(super) fn find(backend: &Backend) -> Option<Self> {
        let postmaster = backend.postmaster()?;
        let started = Stat::of(postmaster)?.started;
        let last = (Instant::now(), taken(postmaster, started)?);
        Some(Self { postmaster, started, processors: processors(postmaster)?, last })
    }

    /// The share of its processors that it has taken since this was asked the last time, from 0 to 1. `None` when it has gone.
    pub(super) fn share(&mut self) -> Option<f64> {
        let (now, ticks) = (Instant::now(), taken(self.postmaster, self.started)?);
        let (then, before) = std::mem::replace(&mut self.last, (now, ticks));
        let seconds = ticks.saturating_sub(before) as f64 / rustix::param::clock_ticks_per_second() as f64;
        let time = now.saturating_duration_since(then).as_secs_f64();
        (time > 0.0).then(|| (seconds / time / self.processors).min(1.0))
    }
}

/// The CPU time of all processes of a server so far, in ticks, with those that have ended.
fn taken(postmaster: u32, started: u64) -> Option<u64> {
    let own = Stat::of(postmaster).filter(|stat| stat.started == started)?;
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).ok()?;
    let children = children.split_ascii_whitespace().filter_map(|child| Stat::of(child.parse().ok()?));
    Some(children.fold(own.ticks + own.of_ended, |sum, child| sum + child.ticks))
}

/// The processors that a process may use: those that it may run on, and what its control group allows.
fn processors(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let allowed = count(list.trim())? as f64;
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let quotas = Path::new(group).ancestors().filter_map(|folder| {
        quota(&fs::read_to_string(Path::new("/sys/fs/cgroup").join(folder).join("cpu.max")).ok()?)
    });
    Some(quotas.fold(allowed, f64::min))
}

/// How many numbers are in a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    list.split(',').try_fold(0_usize, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The processors of `cpu.max`, which is `max 100000` without a limit.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// What `/proc/…/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    ticks: u64,
    /// Of children that have ended and were waited for.
    of_ended: u64,
    started: u64,
}

impl Stat {
    fn of(process: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name of the program may hold spaces and parentheses; the last one ends it. The next field is the third.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.checked_add(field(15)?)?,
            of_ended: field(16)?.checked_add(field(17)?)?,
            started: field(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read_or_refused() {
        let numbers: Vec<String> = (4..=30).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b (c)) S {}", numbers.join(" "));
        assert_eq!(Stat::parse(&stat), Some(Stat { ticks: 29, of_ended: 33, started: 22 }));
        assert_eq!((Stat::parse("7 (a) S 1 2"), Stat::parse("")), (None, None));
        assert_eq!((count("0-3,8"), count("5"), count(""), count("3-1")), (Some(5), Some(1), None, None));
        assert_eq!((quota("150000 100000\n"), quota("max 100000"), quota("0 0")), (Some(1.5), None, None));
        assert!(processors(std::process::id()).unwrap() > 0.0);
    }

    #[test]
    fn only_a_backend_with_our_title_is_ours() {
        let mut backend = Backend {
            process: 7,
            user: "ann".to_owned(),
            database: "accounts".to_owned(),
            client: Some("127.0.0.1(40000)".to_owned()),
            listener: None,
        };
        assert!(backend.is_title("postgres: ann accounts 127.0.0.1(40000) SELECT"));
        assert!(backend.is_title("postgres: main: ann accounts 127.0.0.1(40000) SELECT"));
        assert!(!backend.is_title("postgres: ann accounts 127.0.0.1(40001) SELECT"));
        assert!(!backend.is_title("vi postgres: ann accounts 127.0.0.1(40000) SELECT"));
        backend.client = None;
        assert!(backend.is_title("postgres: ann accounts [local] SELECT"));
        // Whatever process has the number: it is no server, and no child of one.
        backend.process = std::process::id();
        assert_eq!(backend.postmaster(), None);
    }
}
