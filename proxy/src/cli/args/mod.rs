//! The command line. `commands` has the commands of those commands that have some.

mod commands;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use qudag_filter_api::{Address, Period};

pub use commands::{
    BypassState, CacheCommand, CacheFlush, ConfigCommand, CryptoCommand, DbCacheCommand, DbCommand, DbKind,
    DnsCommand, FiltersCommand, FlagsCommand,
};

const EXAMPLES: &str = "\
Examples:
  qudag-sidecar                              run with the built-in defaults
  qudag-sidecar run --config sidecar.yaml    run with a configuration file
  qudag-sidecar status                       what runs, with which filters
  qudag-sidecar filters disable dns_cache    switch a filter off, live
  qudag-sidecar bypass on                    switch everything off, live

Exit codes:
  0 done   1 failed   2 wrong usage   69 no sidecar to be reached
  75 not now, try again   78 the configuration is wrong";

/// A sidecar that makes an unmodified QuDAG node faster, smaller and safer
#[derive(Debug, Parser)]
#[command(name = "qudag-sidecar", version, after_help = EXAMPLES)]
pub struct Cli {
    /// The options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do; `run` where it is left out.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// The configuration file; for commands that talk to a sidecar: the one that runs with this file
    #[arg(long, global = true, value_name = "FILE", env = "QUDAG_SIDECAR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where sidecars keep state and are found [default: $STATE_DIRECTORY, /var/lib/qudag-sidecar for root, else
    /// ~/.local/state/qudag-sidecar]
    #[arg(long, global = true, value_name = "DIR", env = "QUDAG_SIDECAR_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Which sidecar a command talks to, and how it may.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// The admin API, HOST:PORT or unix:PATH [default: that of the sidecar that runs on this host]
    #[arg(long, global = true, value_name = "ADDR")]
    pub admin: Option<Address>,
    /// A file with the token; the variable QUDAG_SIDECAR_TOKEN may hold the token itself
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Format {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar (the default)
    #[command(after_help = "Signals: HUP reloads, TERM drains and stops, USR1 opens the log file again.\n\
        Without --config the built-in defaults are used; `qudag-sidecar init` writes them to a file.")]
    Run,
    /// Write a configuration file with comments, to start from
    Init {
        /// Where to write qudag-sidecar.yaml
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Check a configuration file and show every problem with its place
    #[command(after_help = "Example:\n  qudag-sidecar validate sidecar.yaml")]
    Validate {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Print the JSON schema of the configuration, for editors
    Schema,
    /// Look at the configuration
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show what runs: generation, listeners with their real addresses, filters with their switches
    Status {
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Check connectivity and prerequisites, with hints
    #[command(
        after_help = "Exit code 1 when something that traffic needs is missing (✗); advice (!) does not count."
    )]
    Check {
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// List filters and switch them, live
    #[command(after_help = "\
NAME is a filter of every kind of traffic that has it (circuit_breaker), or of one (peer.circuit_breaker).

Examples:
  qudag-sidecar filters list
  qudag-sidecar filters enable dns_cache --rollout 10
  qudag-sidecar filters disable peer.circuit_breaker --ttl 30m
  qudag-sidecar filters reset dns_cache")]
    Filters {
        /// What to do.
        #[command(subcommand)]
        command: FiltersCommand,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Say why a filter is on or off
    Flags {
        /// What to do.
        #[command(subcommand)]
        command: FlagsCommand,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Look at the DNS cache, empty it, or fill it anew
    #[command(after_help = "\
Examples:
  qudag-sidecar cache stats
  qudag-sidecar cache flush                          everything
  qudag-sidecar cache flush --name www.example.com
  qudag-sidecar cache flush --suffix example.com     the name and all below it
  qudag-sidecar cache flush --type AAAA
  qudag-sidecar cache rebuild                        asks the servers again for all that is held")]
    Cache {
        /// What to do.
        #[command(subcommand)]
        command: CacheCommand,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Watch flows of a kind of traffic as they end: queries, calls, requests, streams, sessions
    #[command(after_help = "\
Conditions compare what a flow has: client (an address, with or without port, or unix), outcome (ok, timeout, ...), and
  dns   name (and all names below it), type, rcode, source, filter (which one answered), transport, flags, error
  http  method, path, status        rpc  method        peer  listener, route, to, error
  db    startup, user, database, application, error, transactions, pins; with --transactions statement, text
  redis commands, own, error; with --batches user, database, names
  crypto type (signatures, hashes, ...), operations, transport
Of several for one key one has to hold; of several keys each; those with != all. What comes too fast is counted, not waited for.

Examples:
  qudag-sidecar tap dns
  qudag-sidecar tap dns --filter name=example.com --filter 'outcome!=ok'
  qudag-sidecar tap rpc --filter client=10.0.0.7 --for 30s --json
  qudag-sidecar tap db --transactions --filter outcome!=ok
  qudag-sidecar tap redis --batches      names of commands, never keys or values")]
    Tap {
        /// What to show.
        #[command(flatten)]
        tap: super::tap::TapOptions,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Show what keeps the sidecar busy, again and again: pools, statements by the time that they keep servers busy, who waits
    #[command(after_help = "\
Figures are of the time since the look before. A statement is what a transaction begins with, without its values. On a terminal each
page takes the place of the one before.

Examples:
  qudag-sidecar top db
  qudag-sidecar top db --interval 5s
  qudag-sidecar top db --once --json     one sample, over a second")]
    Top {
        /// What to look at.
        #[command(flatten)]
        top: super::top::TopOptions,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Show which way connections to peers go and why, multiaddrs for the node, other sidecars, and the tunnel's connections
    #[command(after_help = "\
Example:
  qudag-sidecar peers --json")]
    Peers {
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Show what verifies signatures for programs on this machine, test it, or measure how fast it is
    #[command(after_help = "\
Examples:
  qudag-sidecar crypto status
  qudag-sidecar crypto selftest                              tests what the sidecar could use, and has it use what passed
  qudag-sidecar crypto selftest --in-process                 needs no sidecar
  qudag-sidecar crypto selftest --in-process --backend avx2
  qudag-sidecar crypto bench                                 needs no sidecar either")]
    Crypto {
        /// What to do.
        #[command(subcommand)]
        command: CryptoCommand,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Show pooled database sessions and what they wait for, hold them back, or let them go on
    #[command(after_help = "\
Examples:
  qudag-sidecar db                       pools
  qudag-sidecar db statements            by the time that they keep servers busy; never with values
  qudag-sidecar db replicas              which server is the primary, and how far the others are behind
  qudag-sidecar db load                  connections, waits and CPU time of the servers
  qudag-sidecar db pause accounts        transactions of this database wait; those under way go on
  qudag-sidecar db pause --kind redis    commands of Redis wait
  qudag-sidecar db resume                all of them
  qudag-sidecar db queue --json
  qudag-sidecar db cache                 what db_query_cache holds, by rule
  qudag-sidecar db cache flush --table prices

With --json everything is printed: pools with their clients, servers and statements, the cluster, and its load.")]
    Db {
        /// What to do; `pools` where it is left out.
        #[command(subcommand)]
        command: Option<DbCommand>,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Ask the sidecar's DNS
    #[command(after_help = "\
Examples:
  qudag-sidecar dns lookup www.example.com
  qudag-sidecar dns lookup www.example.com --type AAAA --trace     which filter answered, and why
  qudag-sidecar dns lookup 192.0.2.1 --type PTR
  qudag-sidecar dns servers                                        health and latency of each

A look-up ends with exit code 1 when no filter and no server had an answer.")]
    Dns {
        /// What to do.
        #[command(subcommand)]
        command: DnsCommand,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Take every filter out of the way and move names to the node itself, or undo that; verified step by step
    #[command(after_help = "\
With names under `bypass` in the configuration each step is verified and timed: the switches, the zone that the sidecar serves, the
update of other servers, what they show, this host's resolver, a connection to the node, and that nothing is left in the sidecar.
Exit code 1 when a step failed.

`withdraw` and `guard` need no running sidecar, but its configuration file (--config): they move the names in `bypass.update.zone`
to the node, at once, or when the sidecar gives no sign of life for 1.5 seconds.")]
    Bypass {
        /// What to do.
        #[arg(value_enum)]
        state: BypassState,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Install or remove the rules that hand the node's connections to its peers over to the sidecar, or compare them
    #[command(after_help = "\
The rules are those of `listeners.peer.capture` in the configuration (--config). They are nftables rules in a table of their own, inet
qudag_sidecar, that comes and goes as a whole; with `mode: tproxy` also a routing rule and a route. `up` may be repeated, also after a
crash; rules that would cut off the management of the host or of the sidecar are refused.

Examples:
  qudag-sidecar redirect up --config sidecar.yaml
  qudag-sidecar redirect up --config sidecar.yaml --dry-run     print them
  qudag-sidecar redirect status --config sidecar.yaml
  qudag-sidecar redirect down

Needs `nft`, with `mode: tproxy` also `ip`, and the capability CAP_NET_ADMIN. Exit code 1 when the kernel refuses, or when `status` finds
other rules than the configuration asks for.")]
    Redirect {
        /// What to do.
        #[command(subcommand)]
        command: super::redirect::RedirectCommand,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Make a private certificate authority for the tunnels between sidecars, and certificates from it
    #[command(after_help = "\
Examples:
  qudag-sidecar pki init --dir pki --name example.org
  qudag-sidecar pki issue node-a --dir pki --out for-node-a        spiffe://example.org/node-a
  qudag-sidecar pki renew /etc/qudag-sidecar/node-a.pem --dir pki  taken at once by the sidecar that runs
  qudag-sidecar pki show pki/ca.pem for-node-a/node-a.pem

Copy NAME.pem, NAME.key and ca.pem to the sidecar's host; ca.key stays with you. Certificates from elsewhere do as well (SPIRE,
cert-manager, step-ca): what counts is that there is one URI among their subject alternative names.

Exit code 1 when a file is in the way, missing or wrong.")]
    Pki {
        /// What to do.
        #[command(subcommand)]
        command: super::pki::PkiCommand,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Lay a value over the configuration file, live: for a while, or until `unset`; also after a restart
    #[command(after_help = "\
The value is YAML. It is checked as the file is; what is wrong is refused, and so is what only a restart can change. `status` and
`config show --origin` show live settings.

Examples:
  qudag-sidecar set filters.db.db_pool.size=5 --for 10m
  qudag-sidecar set filters.dns.dns_upstream.servers='[9.9.9.9, 1.1.1.1]'
  qudag-sidecar set telemetry.log.level=debug --for 30s
  qudag-sidecar unset filters.db.db_pool.size")]
    Set {
        /// The key, such as filters.db.db_pool.size, and the value
        #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
        assignment: (String, String),
        /// For this long only: 30s, 10m, 1h
        #[arg(long = "for", value_name = "DURATION")]
        duration: Option<Period>,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Take back what `set` said; the configuration file decides again
    #[command(after_help = "\
Examples:
  qudag-sidecar unset filters.db.db_pool.size
  qudag-sidecar unset --all")]
    Unset {
        /// The key
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        key: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Finish the work under way, then stop
    Drain {
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Read the configuration again; a wrong one is refused and the old one goes on
    Reload {
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[command(flatten)]
        format: Format,
    },
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  qudag-sidecar completions bash > /etc/bash_completion.d/qudag-sidecar"
    )]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Write all pages to this folder
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `KEY=VALUE`
fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("qudag-sidecar").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_runs() {
        let cli = parse("--config a.yaml").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.common.config, Some("a.yaml".into()));
        assert!(matches!(parse("run --config a.yaml").unwrap().command, Some(Command::Run)));
    }

    #[test]
    fn options_may_stand_before_and_after_the_inner_command() {
        for line in ["filters --json --admin 127.0.0.1:1 list", "filters list --json --admin 127.0.0.1:1"] {
            let Some(Command::Filters { target, format, .. }) = parse(line).unwrap().command else {
                panic!()
            };
            assert_eq!(target.admin.unwrap().to_string(), "127.0.0.1:1");
            assert!(format.json);
        }
    }

    #[test]
    fn wishes_are_read() {
        let line = "filters enable dns_cache --rollout 12.5 --ttl 10m";
        let Some(Command::Filters { command: FiltersCommand::Enable { name, rollout, ttl }, .. }) =
            parse(line).unwrap().command
        else {
            panic!()
        };
        assert_eq!(
            (name.as_str(), rollout.unwrap().get(), ttl.unwrap().0.as_secs()),
            ("dns_cache", 12.5, 600)
        );
        let Some(Command::Dns { command: DnsCommand::Lookup { rtype, .. }, .. }) =
            parse("dns lookup a.example").unwrap().command
        else {
            panic!()
        };
        assert_eq!(rtype, "A");
    }

    #[test]
    fn wrong_usage_is_exit_code_2_and_help_is_none() {
        for line in [
            "nonsense",
            "validate",
            "filters",
            "filters enable",
            "filters enable x --rollout 101",
            "filters enable x --ttl 5",
            "filters disable x --rollout 5",
            "cache flush --name a --type A",
            "set",
            "set filters.db.db_pool.size",
            "set a=b --for 5",
            "unset",
            "unset a --all",
            "db nonsense",
            "top",
            "top dns",
            "top db --interval 1",
            "db pause a b",
            "db cache flush --rule a --table t",
            "db cache show",
            "pki init",
            "pki init --dir a --days 0",
            "pki issue a --dir a --days 1 --lifetime 1h",
            "pki issue a --dir a --uri node-a",
            "pki show",
            "redirect",
            "redirect sideways",
            "redirect down --dry-run",
            "bypass maybe",
            "status --admin nowhere",
            "completions tcsh",
            "run --json",
            "schema --admin 127.0.0.1:1",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in ["--help", "--version", "help filters", "filters enable --help"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}
