//! `redirect …`: the rules of the packet filter that hand the node's connections over to the sidecar.

use clap::Subcommand;
use serde_json::json;

use super::args::{Common, Format};
use super::exit::{FAILED, Failure, USAGE};
use super::local;
use super::output::{self, Tone, cell};
use super::remote::block_on;
use crate::config::Config;
use crate::redirect::{KernelError, Removed, Ruleset, install, installed, remove, wanted};

/// `redirect …`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum RedirectCommand {
    /// Install the rules, in place of those that are there
    Up {
        /// Print what would be installed, and install nothing
        #[arg(long, visible_alias = "print")]
        dry_run: bool,
    },
    /// Remove the rules, whoever installed them; needs no configuration
    Down,
    /// Compare the rules in the kernel with those that the configuration asks for; exit code 1 when they differ
    Status,
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let failure = Self::new(FAILED, error.to_string());
        match error {
            KernelError::Missing { package, .. } => failure.hint(format!("apt-get install {package}, or the like")),
            KernelError::Denied { .. } => {
                failure.hint("run it as root, or in a container with cap_add: [NET_ADMIN] as root")
            }
            KernelError::Failed { .. } => failure.hint(
                "the kernel needs nf_tables with NAT (redirect) or with TPROXY and policy routing (tproxy); `--dry-run` \
                 prints what was to be installed",
            ),
        }
    }
}

/// Does it.
///
/// # Errors
/// When the configuration asks for no rules, the kernel refuses them, or they are not what they should be.
pub(super) fn run(command: RedirectCommand, common: &Common, format: Format) -> Result<(), Failure> {
    match command {
        RedirectCommand::Up { dry_run } => up(&asked_for(common)?, dry_run, format),
        RedirectCommand::Down => {
            let removed = block_on(Box::pin(remove()))??;
            down(removed, format)
        }
        RedirectCommand::Status => status(configured(common)?.as_ref(), format),
    }
}

/// The rules of the configuration; `None` where it captures nothing.
fn configured(common: &Common) -> Result<Option<Ruleset>, Failure> {
    let Some(file) = &common.config else {
        return Err(Failure::new(USAGE, "which configuration?").hint("give it with --config FILE"));
    };
    let config: Config = local::load(Some(file))?.config;
    wanted(&config).map_err(|why| Failure::new(FAILED, why))
}

fn asked_for(common: &Common) -> Result<Ruleset, Failure> {
    configured(common)?.ok_or_else(|| {
        Failure::new(FAILED, "the configuration captures nothing: there is no `listeners.peer.capture`")
            .hint("`capture: { bind: [\"127.0.0.1:4180\"], ports: [4001] }`, for instance")
    })
}

fn up(rules: &Ruleset, dry_run: bool, format: Format) -> Result<(), Failure> {
    if !dry_run {
        block_on(Box::pin(install(rules)))??;
    }
    let (text, commands) = (rules.text(), rules.commands());
    match (format.json, dry_run) {
        (true, _) => output::json(&json!({ "installed": !dry_run, "rules": text, "commands": commands })),
        (false, true) => {
            let commands: String = commands.iter().map(|command| format!("{command}\n")).collect();
            output::print(&format!(
                "{commands}{}{text}",
                if commands.is_empty() { "" } else { "nft -f - <<'END'\n" }
            ))?;
            if commands.is_empty() { Ok(()) } else { output::print("END\n") }
        }
        (false, false) => {
            let done = cell("done:", Tone::Good).paint(output::colour_on_stdout());
            output::print(&format!(
                "{done} the rules are installed; new connections are captured, `qudag-sidecar redirect down` removes them\n"
            ))
        }
    }
}

fn down(removed: Removed, format: Format) -> Result<(), Failure> {
    if format.json {
        return output::json(&json!({ "removed": removed }));
    }
    let mut out = String::new();
    for (what, was_there) in [
        ("the table of rules", removed.table),
        ("the routing rules", removed.routing_rules > 0),
        ("the routes", removed.routes > 0),
    ] {
        let colour = output::colour_on_stdout();
        let word = if was_there { cell("removed", Tone::Good) } else { cell("was not there", Tone::Faint) };
        out += &format!("{what}: {}\n", word.paint(colour));
    }
    output::print(&out)
}

fn status(rules: Option<&Ruleset>, format: Format) -> Result<(), Failure> {
    let there = block_on(Box::pin(installed()))??;
    let differences = there.differences(rules);
    let state = match (differences.is_empty(), rules.is_some(), there.is_nothing()) {
        (true, true, _) => "up",
        (true, false, _) => "down",
        (false, true, true) => "missing",
        (false, ..) => "different",
    };
    if format.json {
        output::json(&json!({ "state": state, "wanted": rules.is_some(), "differences": differences }))?;
    } else {
        let colour = output::colour_on_stdout();
        let words = match state {
            "up" => "the rules are as the configuration asks for",
            "down" => "there are no rules, and the configuration asks for none",
            "missing" => "the rules are not in the kernel",
            _ => "the rules in the kernel are not those of the configuration",
        };
        let tone = if differences.is_empty() { Tone::Good } else { Tone::Bad };
        let mut out = format!("{} {words}\n", cell(format!("{state}:"), tone).paint(colour));
        for difference in &differences {
            out += &format!("  {}\n", cell(difference, Tone::Plain).paint(colour));
        }
        output::print(&out)?;
    }
    if differences.is_empty() { Ok(()) } else { Err(Failure::silent(FAILED)) }
}
