//! Makes one connection to another sidecar.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{Host, HostPort};
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::time::{Instant, timeout_at};

use super::rules::Dial;
use super::{Link, PeerPool, Target, sample};
use crate::exchange;
use crate::identity::{HandshakeOutcome, SERVER_NAME};
use crate::routes::{Known, Over};
use crate::tunnel::{probe, pulse, transport};

/// How long the other sidecar may owe an answer, beside some round trips, before it is asked whether it is there at all.
const OWED: Duration = Duration::from_millis(500);

/// Dials, and says what came of it.
pub(super) async fn dial(pool: Arc<PeerPool>, target: Target, leave: Dial) {
    let start = Instant::now();
    let deadline = start + target.settings.dial;
    let dialled = connect(&pool, &target, deadline).await;
    let now = Instant::now();
    let outcome = dialled.as_ref().map_or_else(|why| *why, |_| "ok");
    pool.meters.dialled(outcome);
    let mut inner = pool.lock();
    match dialled {
        Ok((connection, endpoint)) => {
            let id = inner.rules.dialled(leave, connection.rtt(), now.into_std());
            let Target { known, to, .. } = &inner.target;
            let there = |known: &Known| known.names.has(Over::Udp, to, connection.remote_address());
            if known.as_ref().is_some_and(|known| !there(known)) {
                // The peer has moved meanwhile.
                inner.rules.moved(&[id]);
            }
            let told = sample(&connection);
            inner
                .links
                .insert(id, Link { connection: connection.clone(), _endpoint: endpoint, since: now, told });
            if inner.last.take().is_some() {
                tracing::info!(peer = %pool.name, class = pool.class.label(), "tunnel is up again");
            }
            let (name, class, exchange) = (pool.name.clone(), pool.class, target.exchange);
            let pool = Arc::downgrade(&pool);
            tokio::spawn(async move {
                // Both last as long as the connection.
                tokio::join!(
                    exchange::call(&exchange, &connection, &name, class),
                    pulse::watch(connection.clone(), OWED, target.mark)
                );
                if let Some(pool) = pool.upgrade() {
                    pool.closed(id);
                }
            });
        }
        Err(why) => {
            let first = inner.last.replace(why) != Some(why);
            let down = inner.rules.undialled(leave, now.into_std(), fastrand::u64(..));
            if first || down {
                tracing::warn!(peer = %pool.name, class = pool.class.label(), why, "cannot open a tunnel");
            }
        }
    }
    pool.work(&mut inner, now);
    drop(inner);
    pool.changed.notify_waiters();
}

/// Tries one address after the other. One that does not answer gets an equal share of the time that is left.
async fn connect(
    pool: &PeerPool,
    target: &Target,
    deadline: Instant,
) -> Result<(Connection, Endpoint), &'static str> {
    let mut config = ClientConfig::new(target.identity.client(pool.name.clone()));
    config.transport_config(transport::config(target.settings.transport));
    let tried = addresses(target, deadline).await;
    let why = match one_of(pool, target, &config, &tried, deadline).await {
        Ok(connected) => return Ok(connected),
        Err(why) => why,
    };
    // A moment later the names may have other addresses.
    let Some(known) = &target.known else { return Err(why) };
    match known.names.others(Over::Udp, &target.to, &tried, deadline).await {
        Some(new) => one_of(pool, target, &config, &new, deadline).await,
        None => Err(why),
    }
}

async fn one_of(
    pool: &PeerPool,
    target: &Target,
    config: &ClientConfig,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<(Connection, Endpoint), &'static str> {
    let mut last = "resolve";
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let attempt = attempt(pool, config.clone(), *address, target.mark);
        let attempt = async {
            tokio::select! {
                connected = attempt => connected,
                // Where a host says so there is no need to wait.
                () = pulse::closed_port(*address, target.mark) => Err("port_closed"),
            }
        };
        match timeout_at(Instant::now() + share, attempt).await {
            Ok(Ok(connected)) => {
                if let Some(known) = &target.known {
                    known.names.praise(Over::Udp, *address);
                }
                return Ok(connected);
            }
            Ok(Err(why)) => last = why,
            Err(_) => last = "timeout",
        }
        if let Some(known) = &target.known {
            known.names.blame(Over::Udp, *address);
        }
    }
    Err(last)
}

async fn addresses(target: &Target, deadline: Instant) -> Vec<SocketAddr> {
    if let Some(known) = &target.known {
        return known.addresses.to_vec();
    }
    let mut addresses = Vec::new();
    for HostPort { host, port } in &target.to {
        match host {
            Host::Ip(ip) => addresses.push(SocketAddr::new(*ip, *port)),
            Host::Name(name) => {
                let resolved = timeout_at(deadline, target.resolve.resolve(name)).await;
                let ips = resolved.ok().and_then(Result::ok).unwrap_or_default();
                addresses.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, *port)));
            }
        }
    }
    addresses
}

async fn attempt(
    pool: &PeerPool,
    config: ClientConfig,
    to: SocketAddr,
    mark: Option<u32>,
) -> Result<(Connection, Endpoint), &'static str> {
    let endpoint = transport::client(to, mark).map_err(|_| "socket")?;
    let connecting = endpoint.connect_with(config, to, SERVER_NAME).map_err(|_| "address")?;
    let connection = connecting.await.map_err(|why| HandshakeOutcome::of(&why).label())?;
    match probe(&connection, pool.class).await {
        Ok(()) => Ok((connection, endpoint)),
        // The other side has looked at our certificate only now.
        Err(failure) => {
            Err(connection.close_reason().map_or(failure.label(), |why| HandshakeOutcome::of(&why).label()))
        }
    }
}
