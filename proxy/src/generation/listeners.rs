//! The bound listeners. They outlive generations: a listener whose address is unchanged keeps its socket.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use qudag_filter_api::Env;
use qudag_filter_common::{Drain, Front};
use tokio::runtime::Handle;

use super::kinds::{Bind, Key, Wanted};
use super::{Current, Kinds};
use crate::config::Config;
use crate::control::ListenerStatus;

/// The listeners that run.
#[derive(Default)]
pub(super) struct Listeners {
    running: BTreeMap<Key, Running>,
}

struct Running {
    status: ListenerStatus,
    drain: Drain,
}

/// Listeners that are bound but do not serve yet. Dropped, they close again and nothing has happened.
pub(super) struct Bound(Vec<(Wanted, Box<dyn Front>)>);

impl Listeners {
    /// Binds what a configuration asks for and does not run yet.
    pub(super) async fn bind(
        &self,
        config: &Config,
        current: &Current,
        env: &Env,
        data: &Handle,
    ) -> Result<Bound, String> {
        let mut bound = Vec::new();
        for (wanted, bind) in Kinds::wanted(config) {
            if !self.running.contains_key(&wanted.key()) {
                let front = bind_on(data, bind, current, env).await.map_err(|why| {
                    let hint = match why.kind() {
                        io::ErrorKind::AddrInUse => {
                            "; another program listens there: choose another port, or 0 for any"
                        }
                        io::ErrorKind::AddrNotAvailable => "; this host has no such address",
                        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
                        _ => "",
                    };
                    format!(
                        "cannot listen on {} for {} {}: {why}{hint}",
                        wanted.address, wanted.kind, wanted.name
                    )
                })?;
                bound.push((wanted, front));
            }
        }
        Ok(Bound(bound))
    }

    /// Lets the new listeners serve, and stops those that the configuration no longer asks for.
    pub(super) fn adopt(&mut self, config: &Config, bound: Bound, drain_timeout: Duration, data: &Handle) {
        let _data = data.enter();
        for (wanted, front) in bound.0 {
            let key = wanted.key();
            let status = ListenerStatus { kind: wanted.kind, name: wanted.name, addr: front.address() };
            tracing::info!(kind = status.kind, name = status.name, addr = %status.addr, "listening");
            let drain = Drain::new();
            // A unit of work like its connections: the drain waits until it has taken what was waiting to be accepted.
            drain.spawn(front.serve(drain.clone()));
            self.running.insert(key, Running { status, drain });
        }
        let mut names: BTreeMap<Key, String> =
            Kinds::wanted(config).into_iter().map(|(wanted, _)| (wanted.key(), wanted.name)).collect();
        for (key, mut running) in std::mem::take(&mut self.running) {
            if let Some(name) = names.remove(&key) {
                running.status.name = name;
                self.running.insert(key, running);
            } else {
                drop(data.spawn(async move {
                    running.finish(drain_timeout).await;
                }));
            }
        }
    }

    /// The listeners with their real addresses.
    pub(super) fn statuses(&self) -> Vec<ListenerStatus> {
        self.running.values().map(|running| running.status.clone()).collect()
    }

    /// What counts the work of each listener under way, with its kind of traffic.
    pub(super) fn drains(&self) -> Vec<(&'static str, Drain)> {
        self.running.values().map(|running| (running.status.kind, running.drain.clone())).collect()
    }

    /// Stops all listeners and waits for the work under way. Returns how many units were aborted.
    pub(super) async fn finish(&mut self, deadline: Duration, data: &Handle) -> usize {
        let ends: Vec<_> = std::mem::take(&mut self.running)
            .into_values()
            .map(|running| data.spawn(async move { running.finish(deadline).await }))
            .collect();
        let mut aborted = 0;
        for end in ends {
            aborted += end.await.unwrap_or_default();
        }
        aborted
    }
}

impl Running {
    async fn finish(self, deadline: Duration) -> usize {
        let aborted = self.drain.finish(deadline).await;
        let ListenerStatus { kind, name, addr } = &self.status;
        if aborted == 0 {
            tracing::info!(kind, name, %addr, "listener closed");
        } else {
            tracing::warn!(kind, name, %addr, aborted, "listener closed, work under way aborted at the deadline");
        }
        aborted
    }
}

/// Binds on the data plane's runtime, whose reactor then serves the socket.
async fn bind_on(data: &Handle, bind: Bind, current: &Current, env: &Env) -> io::Result<Box<dyn Front>> {
    data.spawn(bind(Current::clone(current), env.clone())).await?
}
