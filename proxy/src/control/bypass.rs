//! What a bypass does to names, and how it is seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use qudag_filter_api::{Address, Service};
use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

use super::{Applied, CaptureState, Control};
use crate::bypass::{Check, Published, Report, Verification};
use crate::redirect::{RulesState, RulesStatus};

/// How long the names may take to move when the sidecar stops.
const WITHDRAWAL: Duration = Duration::from_secs(5);
/// How long rules that capture connections may take to come or go.
const RULES: Duration = Duration::from_secs(1);
/// The kinds of traffic whose clients come by name. Peers are dialled by address, and DNS goes on serving the names.
const BY_NAME: [&str; 4] = ["rpc", "http", "db", "redis"];

/// The state of the bypass, as `bypass status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct BypassState {
    /// Whether the operator's bypass is on.
    pub bypass: bool,
    /// The layer that has switched everything off: `bypass`, `kill_file` or `environment`.
    pub by: Option<&'static str>,
    /// The zone that the sidecar serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<ServedZone>,
    /// What other servers were made to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Published>,
    /// The latest verification since the start.
    pub verification: Option<Report>,
}

/// The zone that the sidecar serves.
#[derive(Clone, Debug, Serialize)]
pub struct ServedZone {
    /// Its name.
    pub zone: String,
    /// Its serial number.
    pub serial: u32,
    /// The names with their addresses.
    pub names: Vec<ServedName>,
}

/// A name that a bypass moves.
#[derive(Clone, Debug, Serialize)]
pub struct ServedName {
    /// The name.
    pub name: String,
    /// Where it leads.
    pub addresses: Vec<IpAddr>,
}

impl ServedZone {
    fn of(service: &Service) -> Option<Self> {
        let name = |(name, addresses): &(String, Vec<IpAddr>)| ServedName {
            name: name.clone(),
            addresses: addresses.clone(),
        };
        let names = service.names.iter().map(name).collect();
        Some(Self { zone: service.zone.clone()?, serial: service.serial, names })
    }
}

impl Control {
    /// The state of the bypass.
    pub fn bypass_state(&self) -> BypassState {
        let verification = self.0.verification.lock().unwrap_or_else(PoisonError::into_inner);
        BypassState {
            bypass: self.0.operator.bypassed(),
            by: self.0.flags.everything_off(),
            zone: ServedZone::of(&self.generation().service),
            update: self.0.publisher.status(),
            verification: verification.as_ref().map(|(verification, _)| verification.report()),
        }
    }

    /// Tells the publisher where the names should lead. Returns the wish's number; 0 without a configuration.
    pub(super) fn publish(&self) -> u64 {
        let direct = self.0.flags.everything_off().is_some() || self.0.stop.is_cancelled();
        let Ok(loaded) = self.loaded() else { return 0 };
        self.0.keeper.want(&loaded.config, direct);
        self.0.publisher.want(&loaded.config.bypass, direct)
    }

    /// The capture of the node's connections; `None` where the configuration has none.
    pub(super) fn capture_state(&self) -> Option<CaptureState> {
        let generation = self.generation();
        let connections = generation.kinds.peer.as_ref()?.settings().capture_status()?;
        Some(CaptureState { rules: self.0.keeper.status(), connections })
    }

    /// What became of the rules that capture connections, where the sidecar manages them: a note for the operator.
    pub(super) async fn rules_changed(&self, start: Instant) -> Option<String> {
        let settled = self.0.keeper.settled(RULES).await?;
        Some(match settled {
            Ok(RulesStatus { state: RulesState::Installed, .. }) => {
                "capture rules are in the kernel".to_owned()
            }
            Ok(_) => format!(
                "capture rules are gone, {:.0} ms after the command",
                start.elapsed().as_secs_f64() * 1e3
            ),
            Err(why) => format!("capture rules cannot be changed; it is tried again: {why}"),
        })
    }

    /// Keeps the rules that capture connections as they should be. Never returns.
    pub async fn follow_rules(&self) {
        let open = || self.generation().kinds.peer.as_ref().map_or(0, |line| line.upstream().captured_open());
        self.0.keeper.follow(open).await;
    }

    /// Takes away what was left of the rules for connections that were open.
    pub async fn clear_rules(&self) {
        if let Err(why) = self.0.keeper.clear().await {
            tracing::error!(%why, "capture rules cannot be removed; `qudag-sidecar redirect down` does it");
        }
    }

    /// Removes the rules that capture connections, because the sidecar stops; returns when that is done, has failed, or takes too
    /// long. The listeners still take what is captured until then.
    pub async fn release(&self) {
        self.publish();
        if let Some(Err(why)) = self.0.keeper.settled(RULES).await {
            tracing::error!(%why, "capture rules cannot be removed; `qudag-sidecar redirect down` does it");
        }
    }

    /// Moves names in the zones of other servers as they should be. Never returns.
    pub async fn follow_publication(&self) {
        self.0.publisher.follow().await;
    }

    /// Moves the names in the zones of other servers to the node itself, because the sidecar stops; returns when that is done, has
    /// failed, or takes too long.
    pub async fn withdraw(&self) {
        if self.0.publisher.status().is_none() {
            return;
        }
        let wish = self.publish();
        match self.0.publisher.result(wish, WITHDRAWAL).await {
            Some(published) if published.complete => tracing::info!("the names lead to the node itself"),
            _ => tracing::warn!("the names could not be moved to the node itself"),
        }
    }

    /// Starts to verify a bypass or its end, if there are names to move.
    pub(super) fn verify(&self, on: bool, start: Instant, applied: &Applied) {
        let Ok(loaded) = self.loaded() else { return };
        let config = &loaded.config.bypass;
        if config.names.is_empty() {
            return;
        }
        let by = self.0.flags.everything_off();
        let switches = match by {
            Some(layer) if !on => Err(format!("the layer {layer} keeps everything bypassed")),
            _ => Ok(format!("generation {} is in force", applied.generation)),
        };
        let verification = Verification::begin(on, start, switches);
        let listener = self.0.manager.listeners().into_iter().find_map(|listener| match listener.addr {
            Address::Tcp(addr) if listener.kind == "dns" => addr.socket_addr().map(reachable),
            _ => None,
        });
        let service = Arc::clone(&self.generation().service);
        let control = self.clone();
        let check = Check {
            config: config.clone(),
            direct: by.is_some(),
            zone: listener.map(|listener| (listener, service.serial)),
            wish: self.publish(),
            publisher: Arc::clone(&self.0.publisher),
            resolve: Arc::clone(&self.0.resolve),
            flows: Box::new(move || {
                let mut flows = control.0.manager.in_flight();
                flows.retain(|(kind, _)| BY_NAME.contains(kind));
                flows
            }),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(Box::pin(verification.clone().run(check))));
        *self.0.verification.lock().unwrap_or_else(PoisonError::into_inner) = Some((verification, task));
    }
}

/// An address at which a listener on all addresses is reached.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
