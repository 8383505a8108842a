//! What the settings of the listeners of all databases have in common.

use std::net::Ipv4Addr;

use qudag_filter_api::{Address, ConfigError, ConfigPath, Host, HostPort, Period};

/// A kind of database, as hints name it.
pub(crate) struct Database {
    pub(crate) name: &'static str,
    /// The usual port of its servers.
    pub(crate) port: u16,
}

/// A port of this host.
pub(crate) fn local(port: u16) -> Address {
    Address::Tcp(HostPort { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port })
}

/// Whether a port is to be chosen by the operating system, which is of use to a listener only.
pub(crate) fn has_no_port(address: &Address) -> bool {
    matches!(address, Address::Tcp(HostPort { port: 0, .. }))
}

/// What is wrong with the server that a listener leads to.
pub(crate) fn check_server(
    at: &ConfigPath,
    server: &Address,
    bind: &Address,
    database: &Database,
) -> Option<ConfigError> {
    let at = at.key("server");
    if has_no_port(server) {
        let hint = format!("the server's port, {} for instance", database.port);
        Some(at.error("port 0 cannot be dialled").hint(hint))
    } else if server == bind {
        let hint = format!("the {} server's address", database.name);
        Some(at.error("the listener would dial itself").hint(hint))
    } else {
        None
    }
}

/// What is wrong with the limits of a listener's sessions, of time and of number.
pub(crate) fn check_limits(
    at: &ConfigPath,
    periods: &[(&'static str, Period)],
    max_sessions: usize,
) -> Vec<ConfigError> {
    let zeros = periods.iter().filter(|(_, period)| period.0.is_zero());
    let mut errors: Vec<_> =
        zeros.map(|(key, _)| at.key(*key).error("0s would end every session").hint("above 0s")).collect();
    if max_sessions == 0 {
        errors.push(at.key("max_sessions").error("0 would refuse every session").hint("at least 1"));
    }
    errors
}
