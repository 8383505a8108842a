//! What stands behind commands: `filters list`, `db pause`, `bypass on`.

use clap::{Args, Subcommand};
use qudag_filter_api::{Percent, Period};
use qudag_filter_crypto::Backend;

use super::Target;

/// `config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the whole configuration, defaults included: of the running sidecar, or of the file given with --config
    Show {
        /// Say for each value where it comes from
        #[arg(long)]
        origin: bool,
        /// Which sidecar.
        #[command(flatten)]
        target: Target,
    },
}

/// `filters …`
#[derive(Debug, Subcommand)]
pub enum FiltersCommand {
    /// List the filters of every kind of traffic, in the order in which they run
    List,
    /// Switch a filter on
    Enable {
        /// NAME or KIND.NAME
        name: String,
        /// For this percentage of traffic only
        #[arg(long, value_name = "PERCENT")]
        rollout: Option<Percent>,
        /// For this long only: 30s, 10m, 1h
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Period>,
    },
    /// Switch a filter off
    Disable {
        /// NAME or KIND.NAME
        name: String,
        /// For this long only: 30s, 10m, 1h
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Period>,
    },
    /// Forget what `enable` or `disable` said; the configuration decides again
    Reset {
        /// NAME or KIND.NAME
        name: String,
    },
}

/// `flags …`
#[derive(Debug, Subcommand)]
pub enum FlagsCommand {
    /// Show what each layer says of a filter, and which one decides
    Explain {
        /// NAME or KIND.NAME
        name: String,
    },
}

/// `cache …`
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show how the cache does
    Stats,
    /// Ask the servers again for everything that is held; it is served until it is replaced
    Rebuild,
    /// Drop entries: all of them, or those chosen by one of the options
    Flush(CacheFlush),
}

/// `cache flush …`
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct CacheFlush {
    /// All types of one name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A name and everything below it
    #[arg(long, value_name = "SUFFIX")]
    pub suffix: Option<String>,
    /// All names of one type, such as A, AAAA or TXT
    #[arg(long = "type", value_name = "TYPE")]
    pub rtype: Option<String>,
}

/// Whose pools are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DbKind {
    /// PostgreSQL's
    Db,
    /// Redis's
    Redis,
}

impl DbKind {
    /// As the admin API calls it.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            Self::Db => "db",
            Self::Redis => "redis",
        }
    }
}

/// `crypto …`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum CryptoCommand {
    /// Show which implementation verifies signatures, and the keys and operations that are held
    Status,
    /// Test the implementations with known signatures, each in a process of its own
    Selftest {
        /// Test in this process, without a sidecar: an illegal instruction ends it
        #[arg(long)]
        in_process: bool,
        /// Only this one: portable, avx2 or avx512
        #[arg(long, value_name = "NAME")]
        backend: Option<Backend>,
    },
    /// Measure how fast signatures are verified on this machine, without a sidecar
    Bench {
        /// Only with this implementation: portable, avx2 or avx512
        #[arg(long, value_name = "NAME")]
        backend: Option<Backend>,
        /// For how long
        #[arg(long, value_name = "DURATION", default_value = "3s")]
        time: Period,
    },
}

/// `db …`
#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// Show connections and transactions of each user and database, and Redis commands
    Pools,
    /// Show sessions, and what they do
    Clients,
    /// Show connections to servers, and what they do
    Servers,
    /// Show transactions that wait for a server, and how many may be under way
    Queue,
    /// Show statements without their values, by the time that they keep servers busy
    Statements,
    /// Show the servers of the cluster: which is the primary, and which may be read from
    Replicas,
    /// Show how loaded the servers are, as they say themselves
    Load,
    /// Hold transactions and Redis commands back; those under way go on
    Pause {
        /// Of this database only
        database: Option<String>,
        /// Of this kind only
        #[arg(long, value_enum)]
        kind: Option<DbKind>,
    },
    /// Let them go on
    Resume {
        /// Of this database only
        database: Option<String>,
        /// Of this kind only
        #[arg(long, value_enum)]
        kind: Option<DbKind>,
    },
    /// Show what the query cache holds and does, by rule, or make it forget
    Cache {
        /// What to do; it is shown where this is left out.
        #[command(subcommand)]
        command: Option<DbCacheCommand>,
    },
}

/// `db cache …`
#[derive(Debug, Subcommand)]
pub enum DbCacheCommand {
    /// Forget replies: all of them, or those of a rule or a table
    Flush {
        /// What this rule has kept
        #[arg(long, value_name = "RULE", conflicts_with = "table")]
        rule: Option<String>,
        /// What was read from this table, as far as the texts or the rules name it
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
    },
}

/// `dns …`
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Show the servers that are asked: health, latency, outcomes
    Servers,
    /// Look up a name through the sidecar's filters; shows which one answered
    Lookup {
        /// The name
        name: String,
        /// The record type, such as A, AAAA or TXT
        #[arg(long = "type", value_name = "TYPE", default_value = "A")]
        rtype: String,
        /// Show the way of the query: every filter, its switch, and what it did and why
        #[arg(long)]
        trace: bool,
        /// Ask for DNSSEC records (sets DO)
        #[arg(long)]
        dnssec: bool,
        /// Ask the servers not to check DNSSEC records (sets CD)
        #[arg(long)]
        cd: bool,
    },
}

/// `bypass …`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BypassState {
    /// Everything passes through as if there were no filters
    On,
    /// Filters as configured and switched
    Off,
    /// Show which, where names lead, and the last verification
    Status,
    /// Move the names in `bypass.update.zone` to the node, without the sidecar
    Withdraw,
    /// Do that whenever the sidecar is dead; runs until it is stopped
    Guard,
}
