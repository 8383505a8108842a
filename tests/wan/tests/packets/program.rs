//! The program, as somebody uses it by hand.

use std::io::Write;
use std::process::{Command, Stdio};

use qudag_kit::program::Signal;
use qudag_kit::{Start, eventually};
use serde_json::Value;

use crate::pair::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_qudag-wan");

async fn run(args: &[&str]) -> qudag_kit::program::Finished {
    Start::new(PROGRAM).args(args).output().await
}

/// Namespaces that a process left behind, or has.
fn namespaces(pid: u32) -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let prefix = format!("qk-{pid}-");
    let names = String::from_utf8(output.stdout).unwrap();
    let names = names.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_command_runs_in_the_left_namespace_and_its_status_is_passed_on() {
    qudag_wan::needs_wan!();
    let run = run(&["--delay", "5ms", "--", "sh", "-c", "ip -br addr; exit 3"]).await;
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stdout.contains("10.90.0.1/24") && run.stdout.contains("fd90::1/64"), "{run:?}");
    assert!(
        run.stderr.contains("ip netns exec qk-") && run.stderr.contains("both ways  delay=5ms"),
        "{run:?}"
    );
    let killed = self::run(&["--", "sh", "-c", "kill -9 $$"]).await;
    assert_eq!(killed.code, 137, "{killed:?}");
}

#[tokio::test]
async fn a_time_limit_ends_the_link_or_the_command() {
    qudag_wan::needs_wan!();
    let link = run(&["--for", "20ms"]).await;
    assert_eq!(link.code, 0, "{link:?}");
    let command = run(&["--for", "20ms", "--", "sleep", "60"]).await;
    assert_eq!(command.code, 124, "{command:?}");
}

#[tokio::test]
async fn wrong_words_are_refused_before_anything_is_made() {
    for (args, code, said) in [
        (&["--rate", "fast"][..], 2, "--rate: \"fast\" is not a rate"),
        (&["--to-left", "speed=1"], 2, "--to-left: there is no setting \"speed\""),
        (&["--for", "never"], 2, "write a time of at least 1ms"),
        (&["--device-mtu", "100"], 2, "--device-mtu"),
    ] {
        let run = run(args).await;
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(said), "{run:?}");
    }
    qudag_wan::needs_wan!();
    let run = run(&["--left", "10.90.0.1"]).await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("\"10.90.0.1\" is not an address with the length of its prefix"), "{run:?}");
    let run = self::run(&["--device-mtu", "1000"]).await;
    assert!(run.code == 1 && run.stderr.contains("carry no IPv6"), "{run:?}");
    let run = self::run(&[
        "--device-mtu",
        "1000",
        "--left",
        "10.90.0.1/24",
        "--right",
        "10.90.0.2/24",
        "--for",
        "1ms",
    ])
    .await;
    assert_eq!(run.code, 0, "{run:?}");
    let run = self::run(&["--", "no-such-program"]).await;
    assert_eq!((run.code, run.stderr.contains("no-such-program is not found")), (127, true), "{run:?}");
}

#[tokio::test]
async fn without_root_it_says_what_is_missing() {
    qudag_wan::needs_wan!();
    // Where another user may start it. The group of "nobody" has another name on each system, the number is one.
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
    let dir = dir.unwrap();
    let copy = dir.path().join("qudag-wan");
    std::fs::copy(PROGRAM, &copy).unwrap();
    let run = Start::new(copy).as_user("65534").output().await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("emulated links need root"), "{run:?}");
}

#[tokio::test]
async fn standard_input_changes_the_link_and_json_tells() {
    qudag_wan::needs_wan!();
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(PROGRAM).args(["--json", "--interval", "20ms", "--delay", "5ms"]).with_stdin();
    let mut program = start.spawn(dir.path());
    let settings = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let of = |side: &str| Some(line[side]["settings"].as_str()?.to_owned());
        Some((of("to_right")?, of("to_left")?))
    };
    let line = program.wait_for_log("namespaces", |line| serde_json::from_str::<Value>(line).ok()).await;
    assert_eq!(line["left"]["enter"][3].as_str(), line["left"]["namespace"].as_str());
    let before = program.wait_for_log("statistics", settings).await;
    assert_eq!(before, ("delay=5ms".to_owned(), "delay=5ms".to_owned()));
    program.stdin().unwrap().write_all(b"to-left rate=1mbit,loss=2%\nnonsense\ncut\n").unwrap();
    program
        .wait_for_log("the error", |line| line.contains("\\\"nonsense\\\" is not written").then_some(()))
        .await;
    let changed = |line: &str| settings(line).filter(|(right, _)| right.ends_with("link=cut"));
    let after = program.wait_for_log("the cut", changed).await;
    assert_eq!(after, ("delay=5ms,link=cut".to_owned(), "delay=5ms,loss=2%,rate=1mbit,link=cut".to_owned()));
    program.signal(Signal::TERM);
    assert_eq!(program.wait_for_end(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_signal_ends_it_and_leaves_nothing_behind() {
    qudag_wan::needs_wan!();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Start::new(PROGRAM).spawn(dir.path());
        program.wait_for_log("namespaces", |line| line.contains("both ways").then_some(())).await;
        assert_eq!(namespaces(program.pid()).len(), 2);
        program.signal(signal);
        let status = program.wait_for_end(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{}", program.log());
        assert_eq!(namespaces(program.pid()).len(), 0);
    }
}

#[tokio::test]
async fn what_is_killed_leaves_no_device_and_no_command() {
    qudag_wan::needs_wan!();
    let dir = tempfile::tempdir().unwrap();
    let mut program =
        Start::new(PROGRAM).args(["--", "sh", "-c", "echo $$; exec sleep 600"]).spawn(dir.path());
    let command: u32 = program.wait_for_log("the command", |line| line.parse().ok()).await;
    let pid = program.pid();
    assert_eq!(namespaces(pid).len(), 2);
    program.kill();
    eventually(PATIENCE, "the end of the command", async || {
        (!std::path::Path::new(&format!("/proc/{command}")).exists()).then_some(())
    })
    .await;
    for name in namespaces(pid) {
        let links = Start::new("ip").args(["-n", &name, "-o", "link"]).output().await.ok();
        assert!(links.lines().count() == 1 && links.contains("lo:"), "{links}");
        // `tests/run` does this for tests that were killed.
        Start::new("ip").args(["netns", "del", &name]).output().await.ok();
    }
}

#[tokio::test]
async fn a_signal_is_passed_to_the_command() {
    qudag_wan::needs_wan!();
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let mut program = Start::new(PROGRAM).args(["--", "sh", "-c", script]).spawn(dir.path());
    program.wait_for_log("the command", |line| (line == "ready").then_some(())).await;
    program.signal(Signal::TERM);
    assert_eq!(program.wait_for_end(PATIENCE).await.code(), Some(9), "{}", program.log());
}

#[tokio::test]
async fn statistics_are_one_line_on_a_terminal() {
    qudag_wan::needs_wan!();
    qudag_kit::needs_program!("script");
    let shown = Start::new("script")
        .args(["-qec", &format!("{PROGRAM} --interval 10ms --for 60ms < /dev/null"), "/dev/null"])
        .output()
        .await;
    assert!(shown.stdout.contains("\r\u{1b}[K"), "{shown:?}");
    assert!(shown.stdout.contains("→ 0 packets"), "{shown:?}");
}

/// Stdio of a child that nobody reads: the link goes on.
#[tokio::test]
async fn a_reader_that_went_away_does_not_end_the_link() {
    qudag_wan::needs_wan!();
    let mut command = Command::new(PROGRAM);
    command.args(["--interval", "5ms", "--for", "100ms"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let status = eventually(PATIENCE, "the end", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}
