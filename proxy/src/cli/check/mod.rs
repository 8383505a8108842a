//! `check`: whether everything that the sidecar needs is there.

mod host;
mod network;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Common, Format, Target};
use super::exit::{FAILED, Failure};
use super::output::{self, Tone, cell};
use super::{find, remote};
use crate::config::{self, Config, Source};
use crate::redirect;
use crate::resolve::SystemResolver;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// All is well.
    Ok,
    /// It works, and could be better.
    Advice,
    /// Traffic needs it, and it is not there.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    group: &'static str,
    name: String,
    outcome: Outcome,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    fn new(
        group: &'static str,
        name: impl Into<String>,
        outcome: Outcome,
        detail: impl Into<String>,
    ) -> Self {
        Self { group, name: name.into(), outcome, detail: detail.into(), hint: None }
    }

    fn ok(group: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(group, name, Outcome::Ok, detail)
    }

    fn failed(group: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(group, name, Outcome::Failed, detail)
    }

    fn advice(group: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(group, name, Outcome::Advice, detail)
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Looks at everything and prints what was found.
///
/// # Errors
/// When something that traffic needs is missing.
pub(super) fn run(common: &Common, target: &Target, format: Format) -> Result<(), Failure> {
    let checks = remote::block_on(look(common, target))?;
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Failed).count();
    if format.json {
        output::json(&json!({"ok": failed == 0, "checks": checks}))?;
    } else {
        output::print(&page(&checks, output::colour_on_stdout()))?;
    }
    if failed == 0 { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

/// The sidecar that runs.
struct Running {
    /// Its answer to `status`.
    status: Value,
    /// Where its admin API is.
    admin: String,
}

async fn look(common: &Common, target: &Target) -> Vec<Check> {
    let resolve = SystemResolver::new();
    let running = match find::client(common, target) {
        Ok(client) => {
            let status = client.get("/status", &resolve).await.ok();
            status.map(|status| Running { status, admin: client.address().to_string() })
        }
        Err(_) => None,
    };
    let mut checks = Vec::new();
    checks.push(match &running {
        Some(running) => sidecar(&running.status),
        None => Check::advice("sidecar", "running", "no sidecar is running or can be reached")
            .hint("start one with `qudag-sidecar run`"),
    });
    let file = configuration_file(common, running.as_ref());
    let chosen = file.is_some();
    let (config, check) = configuration(file.as_deref());
    checks.push(check);
    if let Some(config) = &config {
        checks.extend(network::listeners(config, running.as_ref()));
        checks.extend(network::upstreams(config, chosen, &resolve).await);
        checks.extend(network::names(config).await);
        checks.extend(capture(config).await);
    }
    checks.extend(host::checks(common.state_dir.as_deref()));
    checks
}

/// Whether the rules that capture connections are in the kernel; `None` where there should be none.
async fn capture(config: &Config) -> Option<Check> {
    let (group, name) = ("capture", "rules");
    let rules = match redirect::wanted(config) {
        Ok(rules) => rules?,
        Err(why) => return Some(Check::failed(group, name, why)),
    };
    let differences = match redirect::installed().await {
        Ok(there) => there.differences(Some(&rules)),
        Err(why) => return Some(Check::advice(group, name, why.to_string()).hint("look as root")),
    };
    Some(match differences.as_slice() {
        [] => Check::ok(group, name, "in the kernel"),
        [first, more @ ..] => {
            let more = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
            let check = Check::advice(group, name, format!("{first}{more}: connections may go directly"));
            check.hint("`qudag-sidecar redirect up` installs them, or `manage_rules` while the sidecar runs")
        }
    })
}

fn sidecar(status: &Value) -> Check {
    let pid = status.get("pid").and_then(Value::as_u64).unwrap_or_default();
    let refused = status.pointer("/config/refused/problems").and_then(Value::as_array);
    match refused.and_then(|problems| problems.first()).and_then(Value::as_str) {
        Some(problem) => {
            Check::advice("sidecar", "running", format!("pid {pid}; the last change was refused: {problem}"))
                .hint("`qudag-sidecar status` shows all of it")
        }
        None => Check::ok("sidecar", "running", format!("pid {pid}")),
    }
}

/// The file that was given, else that of the running sidecar; the built-in defaults without one.
fn configuration_file(common: &Common, running: Option<&Running>) -> Option<PathBuf> {
    let of_running = running.and_then(|running| running.status.pointer("/config/source")?.as_str());
    common.config.clone().or(of_running.filter(|file| *file != "embedded").map(PathBuf::from))
}

fn configuration(file: Option<&Path>) -> (Option<Config>, Check) {
    let loaded = Source::new(file).and_then(|source| config::load(&source, std::env::vars_os()));
    let name = file.map_or_else(|| "built-in defaults".to_owned(), |file| file.display().to_string());
    match loaded {
        Ok(loaded) => (Some(loaded.config), Check::ok("configuration", name, "valid")),
        Err(failure) => {
            let problems = failure.lines();
            let first = problems.first().cloned().unwrap_or_default();
            let check = Check::failed("configuration", name.clone(), {
                let more = problems.len().saturating_sub(1);
                if more == 0 { first } else { format!("{first} (and {more} more)") }
            });
            (None, check.hint(format!("`qudag-sidecar validate {name}` shows every problem with its place")))
        }
    }
}

fn page(checks: &[Check], colour: bool) -> String {
    let mut text = String::new();
    let mut group = "";
    let widest = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    for check in checks {
        if check.group != group {
            let space = if group.is_empty() { "" } else { "\n" };
            group = check.group;
            text += &format!("{space}{}\n", cell(group, Tone::Head).paint(colour));
        }
        let (mark, tone) = match check.outcome {
            Outcome::Ok => ("✔", Tone::Good),
            Outcome::Advice => ("!", Tone::Warn),
            Outcome::Failed => ("✗", Tone::Bad),
        };
        let mark = cell(mark, tone).paint(colour);
        let name = cell(format!("{:widest$}", check.name), Tone::Plain).paint(colour);
        text += &format!("  {mark} {name}  {}\n", cell(&check.detail, Tone::Faint).paint(colour));
        if let Some(hint) = &check.hint {
            text += &format!("      {}\n", cell(hint, Tone::Plain).paint(colour));
        }
    }
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let (failed, advice) = (count(Outcome::Failed), count(Outcome::Advice));
    let verdict = if failed > 0 {
        cell(format!("{failed} failed, {advice} could be better"), Tone::Bad)
    } else if advice > 0 {
        cell(format!("nothing failed, {advice} could be better"), Tone::Warn)
    } else {
        cell("all is well", Tone::Good)
    };
    text + &format!("\n{}\n", verdict.paint(colour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_grouped_with_marks_and_hints() {
        let checks = [
            Check::ok("host", "state folder", "/x"),
            Check::advice("host", "files", "limit 256").hint("ulimit -n 4096"),
            Check::failed("node", "rpc", "refused"),
        ];
        let expected = "\
host
  ✔ state folder  /x
  ! files         limit 256
      ulimit -n 4096

node
  ✗ rpc           refused

1 failed, 1 could be better
";
        assert_eq!(page(&checks, false), expected);
        assert!(page(&checks[..1], false).ends_with("all is well\n"));
        assert!(page(&checks[..2], false).ends_with("nothing failed, 1 could be better\n"));
    }

    #[test]
    fn what_is_missing_is_found_and_what_is_there_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let node = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = dir.path().join("s.yaml");
        let yaml = format!(
            "version: 1\nnode: {{ rpc: \"{}\" }}\nlisteners: {{ rpc: {{ bind: \"{}\" }} }}\nadmin: {{ bind: \"127.0.0.1:0\" }}\n",
            node.local_addr().unwrap(),
            taken.local_addr().unwrap()
        );
        std::fs::write(&file, yaml).unwrap();
        let common = Common { config: Some(file.clone()), state_dir: Some(dir.path().join("state")) };
        let find = |checks: &[Check], group: &str, name: &str| {
            let mut found =
                checks.iter().filter(|check| check.group == group && check.name.starts_with(name));
            found.next().unwrap_or_else(|| panic!("{group} {name} in {checks:?}")).outcome
        };
        let checks = remote::block_on(look(&common, &Target::default())).unwrap();
        assert_eq!(find(&checks, "configuration", ""), Outcome::Ok);
        assert_eq!(find(&checks, "listeners", "rpc"), Outcome::Failed);
        assert_eq!(find(&checks, "listeners", "admin"), Outcome::Ok);
        assert_eq!(find(&checks, "upstreams", "node rpc"), Outcome::Ok);
        assert_eq!(find(&checks, "host", "state folder"), Outcome::Ok);
        assert_eq!(find(&checks, "sidecar", "running"), Outcome::Advice);
        // Kinds that are not served need nothing.
        assert!(!checks.iter().any(|check| check.name.contains("http") || check.name.contains("dns")));
        assert_eq!(run(&common, &Target::default(), Format { json: true }).unwrap_err().code(), FAILED);

        drop((node, taken));
        let checks = remote::block_on(look(&common, &Target::default())).unwrap();
        assert_eq!(find(&checks, "listeners", "rpc"), Outcome::Ok);
        assert_eq!(find(&checks, "upstreams", "node rpc"), Outcome::Failed);

        std::fs::write(&file, "version: 2\n").unwrap();
        let checks = remote::block_on(look(&common, &Target::default())).unwrap();
        assert_eq!(find(&checks, "configuration", ""), Outcome::Failed);
    }
}
