//! Wires the parts together and runs them: the only module that knows them all.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qudag_filter_api::{Lanes, Resolve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin;
use crate::bypass::{Publisher, Serials};
use crate::config::{self, ConfigFailure, Loaded, Source, last_good};
use crate::control::{ConfigOrigin, Control, Parts, Status};
use crate::flags::{DISABLE_ALL, Flags, KillFile, Operator, disabled_by};
use crate::generation::Manager;
use crate::lanes::Threads;
use crate::resolve::SystemResolver;
use crate::state_dir::{Instance, StateDir};
use crate::telemetry::Telemetry;

/// What a run needs to know from the command line.
#[derive(Default)]
pub struct RunOptions {
    /// The configuration file; the embedded defaults where there is none.
    pub config: Option<PathBuf>,
    /// Where to keep state.
    pub state_dir: Option<PathBuf>,
    /// Called once when everything listens.
    pub on_ready: Option<OnReady>,
}

/// Told the status and the admin API's address.
pub type OnReady = Box<dyn FnOnce(&Status, &str)>;

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong, and there is no earlier one to fall back to.
    #[error("{0}")]
    Config(Box<ConfigFailure>),
    /// The configuration is right but cannot be put into force.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// Something that the process itself needs is not to be had.
    #[error("{what}: {why}")]
    Process {
        /// What.
        what: &'static str,
        /// Why not.
        why: io::Error,
    },
}

impl RunError {
    fn process(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |why| Self::Process { what, why }
    }
}

/// Runs the sidecar until it is told to stop.
///
/// # Errors
/// When it cannot start. Once it runs, nothing but a signal or a drain ends it.
pub fn run(options: RunOptions) -> Result<(), RunError> {
    let source = Source::new(options.config.as_deref()).map_err(|why| RunError::Config(Box::new(why)))?;
    let state = StateDir::open(options.state_dir.as_deref()).map_err(RunError::process("state directory"))?;
    let instance_dir =
        state.of_instance(&source.to_string()).map_err(RunError::process("state directory"))?;
    let operator = Arc::new(Operator::open(instance_dir.join("operator.json")));
    let boot = Boot::read(&source, &instance_dir, operator)?;
    let config = &boot.best.0.config;

    if !config.runtime.core_dumps {
        leave_no_core().map_err(RunError::process("limit of core dumps"))?;
    }
    let telemetry = Telemetry::start(&config.telemetry).map_err(RunError::process("telemetry"))?;
    let telemetry = Arc::new(telemetry);
    let data = runtime("data", config.runtime.workers)?;
    let admin = runtime("admin", NonZeroUsize::new(1))?;
    let threads = Threads::default();
    let plane = Plane { data: data.handle().clone(), lanes: threads.lanes(config.runtime.workers) };
    let ended = admin.block_on(serve(options, source, state, instance_dir, boot, telemetry, plane));
    data.shutdown_timeout(Duration::from_secs(1));
    threads.shutdown(Duration::from_secs(1));
    admin.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// From now on a crash leaves nothing of the process's memory. A limit of 1 byte is less than any core has where it is a file, and means none
/// where it goes to a program (`core(5)`, `fs/coredump.c` of Linux), which a limit of 0 does not.
fn leave_no_core() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    let least = maximum.map_or(1, |most| most.min(1));
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(least), maximum })?)
}

fn runtime(name: &'static str, workers: Option<NonZeroUsize>) -> Result<Runtime, RunError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers.get());
    }
    builder.enable_all().thread_name(name).build().map_err(RunError::process("runtime"))
}

/// What carries traffic.
struct Plane {
    data: Handle,
    lanes: Lanes,
}

/// The configurations to try at start.
struct Boot {
    best: (Loaded, ConfigOrigin),
    /// The last configuration that worked, where it is not the best one.
    kept: Option<Loaded>,
    refusals: Vec<String>,
    /// What the operator has switched and set.
    operator: Arc<Operator>,
}

impl Boot {
    /// The configuration asked for, else the last one that worked.
    fn read(source: &Source, instance_dir: &Path, operator: Arc<Operator>) -> Result<Self, RunError> {
        let mut refusals = Vec::new();
        let (origin, kept) = match source {
            Source::Embedded => (ConfigOrigin::Embedded, Ok(None)),
            Source::File(_) => {
                (ConfigOrigin::File, last_good::load(instance_dir, source, std::env::vars_os()))
            }
        };
        let kept = kept.unwrap_or_else(|why| {
            refusals.push(format!("last-known-good: {why}"));
            None
        });
        let edits = operator.edits(SystemTime::now());
        let asked = match config::load_with(source, std::env::vars_os(), &edits) {
            // Settings of an earlier run that do not fit any more must not keep the sidecar from starting.
            Err(why) if !edits.is_empty() => {
                let without = config::load(source, std::env::vars_os());
                if without.is_ok() {
                    refusals.extend(why.lines());
                }
                without
            }
            asked => asked,
        };
        match (asked, kept) {
            (Ok(asked), kept) => Ok(Self { best: (asked, origin), kept, refusals, operator }),
            (Err(failure), Some(kept)) => {
                refusals.splice(..0, failure.lines());
                Ok(Self { best: (kept, ConfigOrigin::LastKnownGood), kept: None, refusals, operator })
            }
            (Err(failure), None) => Err(RunError::Config(Box::new(failure))),
        }
    }

    /// Puts the best configuration that can be built into force; each once more with every filter off, should filters fail to
    /// build.
    async fn adopt(self, control: &Control) -> Result<(), RunError> {
        let mut candidates = vec![self.best];
        candidates.extend(self.kept.map(|kept| (kept, ConfigOrigin::LastKnownGood)));
        let pass_through: Vec<_> =
            candidates.iter().map(|(loaded, _)| (loaded.clone(), ConfigOrigin::PassThrough)).collect();
        candidates.extend(pass_through);

        let mut refusals = self.refusals;
        for (fallback, (loaded, origin)) in candidates.into_iter().enumerate() {
            match control.adopt(loaded, origin).await {
                Ok(generation) => {
                    if fallback > 0 || origin == ConfigOrigin::LastKnownGood {
                        tracing::warn!(generation, ?origin, "started with a fallback configuration");
                        control.record_refusal(refusals);
                    } else {
                        // What is wrong concerns a copy that is not needed and is about to be replaced.
                        refusals.iter().for_each(|why| tracing::warn!(%why, "ignored"));
                    }
                    return Ok(());
                }
                Err(why) => refusals.extend(why.0),
            }
        }
        refusals.dedup();
        Err(RunError::Refused(refusals))
    }
}

async fn serve(
    options: RunOptions,
    source: Source,
    state: StateDir,
    instance_dir: PathBuf,
    boot: Boot,
    telemetry: Arc<Telemetry>,
    plane: Plane,
) -> Result<(), RunError> {
    let config = boot.best.0.config.clone();
    let kill_file = Arc::new(KillFile::new(config.flags.kill_file.clone()));
    let operator = Arc::clone(&boot.operator);
    let disabled = disabled_by(std::env::var(DISABLE_ALL).ok().as_deref());
    let flags = Arc::new(Flags::new(Arc::clone(&kill_file), disabled, Arc::clone(&operator)));
    let resolve: Arc<dyn Resolve> = Arc::new(SystemResolver::new());
    let serials = Serials::open(instance_dir.join("service-serial.json"));
    let publisher = Arc::new(Publisher::new(resolve.clone()));
    let manager = Manager::new(
        Arc::clone(&flags),
        Arc::clone(&kill_file),
        serials,
        resolve.clone(),
        plane.data,
        plane.lanes,
    );
    let stop = CancellationToken::new();
    let control = Control::new(Parts {
        manager,
        flags,
        operator,
        kill_file,
        publisher,
        keeper: Arc::default(),
        resolve,
        source: source.clone(),
        instance_dir: instance_dir.clone(),
        on_adopted: {
            let telemetry = Arc::clone(&telemetry);
            Box::new(move |config| telemetry.apply(&config.telemetry))
        },
        stop: stop.clone(),
    });

    let door =
        admin::Door::open(&config.admin, &instance_dir).await.map_err(RunError::process("admin API"))?;
    Box::pin(boot.adopt(&control)).await?;

    let instance = Instance {
        pid: std::process::id(),
        admin: door.address().to_string(),
        config: source.to_string(),
        node: config.node.name.clone(),
        token_file: door.token_file(),
        started: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let announced = state.announce(&instance).map_err(RunError::process("state directory"))?;
    let closed = CancellationToken::new();
    let api = tokio::spawn(door.serve(control.clone(), telemetry.metrics(), closed.clone()));
    tell_systemd(&[NotifyState::Ready, NotifyState::Status("serving")]);
    if let Some(on_ready) = options.on_ready {
        on_ready(&control.status(), &instance.admin);
    }

    // Not before everything listens, and until the names lead elsewhere.
    let publishing = {
        let control = control.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { control.follow_publication().await }))
    };
    // Not before everything listens either.
    let capturing = {
        let control = control.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { control.follow_rules().await }))
    };
    Box::pin(follow(&control, &telemetry)).await?;

    tell_systemd(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    tracing::info!("draining");
    let mut again = Signals::listen()?;
    // Before the listeners close: whoever is still captured would be refused.
    control.release().await;
    let aborted = tokio::select! {
        (aborted, ()) = async { tokio::join!(control.finish(), control.withdraw()) } => aborted,
        () = again.stop.recv() => {
            tracing::warn!("told to stop a second time: work under way is dropped");
            0
        }
    };
    drop((publishing, capturing));
    control.clear_rules().await;
    tracing::info!(aborted, "stopped");
    closed.cancel();
    // The API's last answer may be the one to `drain`.
    let _ = tokio::time::timeout(Duration::from_secs(1), api).await;
    drop(announced);
    Ok(())
}

/// Follows signals, files and clocks until the process shall end.
async fn follow(control: &Control, telemetry: &Telemetry) -> Result<(), RunError> {
    let Signals { mut reload, mut reopen, mut stop } = Signals::listen()?;
    let background =
        async { tokio::join!(control.follow_config(), control.follow_kill_file(), control.follow_expiry()) };
    tokio::pin!(background);
    loop {
        tokio::select! {
            _ = &mut background => {}
            () = control.draining() => return Ok(()),
            () = stop.recv() => control.drain(),
            _ = reload.recv() => {
                tell_systemd(&reloading());
                if let Err(why) = control.reload().await {
                    tracing::error!(%why, "reload by signal refused");
                }
                tell_systemd(&[NotifyState::Ready]);
            }
            _ = reopen.recv() => telemetry.reopen_logs(),
        }
    }
}

/// HUP reloads, TERM, INT and QUIT drain, USR1 reopens the logs.
struct Signals {
    reload: Signal,
    reopen: Signal,
    stop: Stop,
}

/// Any of the signals that end the process.
struct Stop([Signal; 3]);

impl Stop {
    async fn recv(&mut self) {
        let [terminate, interrupt, quit] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

impl Signals {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(RunError::process("signals"));
        Ok(Self {
            reload: listen(SignalKind::hangup())?,
            reopen: listen(SignalKind::user_defined1())?,
            stop: Stop([
                listen(SignalKind::terminate())?,
                listen(SignalKind::interrupt())?,
                listen(SignalKind::quit())?,
            ]),
        })
    }
}

fn reloading() -> Vec<NotifyState<'static>> {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    states
}

/// Does nothing where systemd did not ask for it.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(states) {
        tracing::debug!(%why, "systemd was not told");
    }
}
