//! `qudag-wan`: an emulated link by hand.

mod cli;
mod report;

use std::io::BufRead;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Parser;
use cli::Arguments;
use qudag_kit::program::{Signal, find};
use qudag_kit::{Namespace, Start};
use qudag_wan::{Direction, Settings, Wan, WanError};
use report::Report;
use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

/// How long a command may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = match arguments.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(2, &error),
    };
    if let Err(error) = Wan::available() {
        return fail(1, &error.to_string());
    }
    if let Some(program) = arguments.command.first()
        && find(program).is_none()
    {
        return fail(127, &format!("{} is not found", program.display()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(|error| error.to_string());
    match ended
        .and_then(|runtime| runtime.block_on(run(&arguments, settings)).map_err(|error| error.to_string()))
    {
        Ok(code) => code,
        Err(error) => fail(1, &error),
    }
}

fn fail(code: u8, error: &str) -> ExitCode {
    eprintln!("qudag-wan: {error}");
    ExitCode::from(code)
}

/// Why the link ends.
enum End {
    Command(ExitStatus),
    Time,
    Signal(Signal),
}

async fn run(arguments: &Arguments, settings: Settings) -> Result<ExitCode, WanError> {
    // Before the namespaces are there, so that no signal leaves them behind.
    let mut signals = Signals::new()?;
    let (left, right) = (Namespace::new(), Namespace::new());
    let wan = Wan::connect(&left, &arguments.left, &right, &arguments.right, settings)?;
    let mut report = Report::new(arguments.json, !arguments.command.is_empty());
    report.introduce(&wan, [(&left, &arguments.left), (&right, &arguments.right)])?;
    let mut child = spawn(arguments, &left)?;

    let end = attend(arguments, &wan, &mut report, &mut child, &mut signals).await?;
    report.statistics(&wan)?;
    report.end();
    Ok(match end {
        End::Command(status) => of_status(status),
        End::Time if child.is_some() => {
            stop(child, Signal::TERM).await;
            ExitCode::from(124)
        }
        End::Time => ExitCode::SUCCESS,
        End::Signal(signal) => match stop(child, signal).await {
            Some(status) => of_status(status),
            None => ExitCode::SUCCESS,
        },
    })
}

/// Prints statistics and does what standard input says until there is a reason to end.
async fn attend(
    arguments: &Arguments,
    wan: &Wan,
    report: &mut Report,
    child: &mut Option<Child>,
    signals: &mut Signals,
) -> Result<End, WanError> {
    let start = Instant::now();
    let mut ticks = interval_at(start + arguments.interval, arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let limit = arguments.limit.map(|limit| start + limit);
    let mut lines = if child.is_none() { Some(lines()) } else { None };
    loop {
        tokio::select! {
            _ = ticks.tick() => report.statistics(wan)?,
            line = async { match &mut lines { Some(lines) => lines.recv().await, None => std::future::pending().await } } => {
                match line {
                    Some(line) => report.say(&obey(wan, line.trim())?),
                    None => lines = None,
                }
            }
            status = async { match &mut *child { Some(child) => child.wait().await, None => std::future::pending().await } } => {
                return status.map(End::Command).map_err(|source| system("wait for the command", source));
            }
            () = async { match limit { Some(limit) => sleep_until(limit).await, None => std::future::pending().await } } => {
                return Ok(End::Time);
            }
            signal = signals.next() => return Ok(End::Signal(signal)),
        }
    }
}

/// Does what a line of standard input says; gives what is to be said about it.
fn obey(wan: &Wan, line: &str) -> Result<String, WanError> {
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (directions, list): (&[Direction], &str) = match first {
        "" => return Ok("write settings as loss=5%,delay=80ms, to-left rate=1mbit, cut or mend".to_owned()),
        "cut" => (&qudag_wan::DIRECTIONS, "link=cut"),
        "mend" => (&qudag_wan::DIRECTIONS, "link=up"),
        "to-right" => (&[Direction::ToRight], rest),
        "to-left" => (&[Direction::ToLeft], rest),
        _ => (&qudag_wan::DIRECTIONS, line),
    };
    for direction in directions {
        let mut settings = wan.settings(*direction)?;
        if let Err(error) = settings.apply_all(list) {
            return Ok(error.to_string());
        }
        wan.set(*direction, settings)?;
    }
    let [right, left] = [wan.settings(Direction::ToRight)?, wan.settings(Direction::ToLeft)?];
    Ok(format!("→ {right}  ← {left}"))
}

/// Lines of standard input, as they come.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    // A thread, because reading a terminal cannot be given up; it ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn spawn(arguments: &Arguments, left: &Namespace) -> Result<Option<Child>, WanError> {
    let [program, rest @ ..] = &arguments.command[..] else { return Ok(None) };
    let command = Start::new(program).args(rest).in_namespace(Some(left)).command();
    let child = Command::from(command).kill_on_drop(true).spawn();
    child.map(Some).map_err(|source| system("start the command in", source))
}

/// Asks the command, if there is one, to end; kills it when it does not.
async fn stop(child: Option<Child>, with: Signal) -> Option<ExitStatus> {
    let mut child = child?;
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(pid, with);
    }
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        return status.ok();
    }
    let _ = child.start_kill();
    child.wait().await.ok()
}

fn of_status(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn system(what: &'static str, source: std::io::Error) -> WanError {
    WanError::Io { what, namespace: "the left namespace".to_owned(), source }
}

/// The signals that end a program.
struct Signals([(Signal, Stream); 3]);

impl Signals {
    fn new() -> Result<Self, WanError> {
        let listen = |kind| signal(kind).map_err(|source| system("listen for signals for", source));
        Ok(Self([
            (Signal::INT, listen(SignalKind::interrupt())?),
            (Signal::TERM, listen(SignalKind::terminate())?),
            (Signal::HUP, listen(SignalKind::hangup())?),
        ]))
    }

    async fn next(&mut self) -> Signal {
        let [(int, interrupted), (term, terminated), (hup, hung_up)] = &mut self.0;
        tokio::select! {
            _ = interrupted.recv() => *int,
            _ = terminated.recv() => *term,
            _ = hung_up.recv() => *hup,
        }
    }
}
