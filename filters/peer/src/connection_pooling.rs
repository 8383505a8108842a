//! `connection_pooling`: carries connections through pooled QUIC connections to the other node's sidecar.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::kind::{Link, Peer, PeerConnect};
use crate::pool::rules::{Limits, Outliers};
use crate::pool::{PeerPool, Settings};
use crate::tunnel::header::{Destination, Header};
use crate::tunnel::transport::{Choices, Congestion, STREAMS};
use crate::tunnel::{OpenLimits, TunnelStream, open};

/// `connection_pooling`: routes whose peer has a sidecar (`sidecar`) go through a pool of post-quantum QUIC connections to it, one
/// stream for each connection of a client. What cannot goes directly, unless the route requires the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
// The schema knows another `ConnectionPooling`, of HTTP.
#[schemars(rename = "PeerConnectionPooling")]
pub struct ConnectionPooling {
    /// Connections to one sidecar that are kept while there are routes to it.
    #[schemars(range(min = 1, max = 16))]
    pub min_connections: u32,
    /// The most connections to one sidecar, for each class of routes. Those that are too many after a change finish their streams.
    #[schemars(range(min = 1, max = 16))]
    pub max_connections: u32,
    /// The most streams of one connection; half as many make the pool open a further one.
    #[schemars(range(min = 1, max = 128))]
    pub max_streams: u32,
    /// The most streams that wait for a connection to one sidecar; others go directly.
    pub max_pending: u32,
    /// How long one waits.
    pub pending_timeout: Period,
    /// How long a connection may take to give a stream; with some round trips also how long it may be silent afterwards.
    pub open_timeout: Period,
    /// How long the other sidecar may take to connect to its node and say so.
    pub answer_timeout: Period,
    /// For making a connection, with all addresses of the sidecar.
    pub dial_timeout: Period,
    /// The congestion control for what this side sends.
    pub congestion: Congestion,
    /// How much the other side may send on one stream before it is read here: the most that one stream carries in a round trip, and
    /// what one that nobody reads can take of memory.
    pub stream_window: ByteSize,
    /// Which connections take no more streams because they are worse than the others; half of those to a sidecar at most.
    pub outliers: OutlierSettings,
}

/// What makes a connection an outlier. One on whose path large packets suddenly vanish is one in any case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierSettings {
    /// How often connections are compared; what is counted is counted in this time.
    pub interval: Period,
    /// Streams that failed to open.
    #[schemars(range(min = 1, max = 1000))]
    pub failures: u32,
    /// Lost packets in percent, where at least 100 were sent, and twice as many as on the median.
    #[schemars(range(min = 1, max = 100))]
    pub loss_percent: u32,
    /// How many times as long as the median the round trip is, and by 20 ms at least.
    #[schemars(range(min = 2, max = 100))]
    pub rtt_times: u32,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self { interval: Period::secs(10), failures: 3, loss_percent: 5, rtt_times: 3 }
    }
}

impl Default for ConnectionPooling {
    fn default() -> Self {
        Self {
            min_connections: 1,
            max_connections: 4,
            max_streams: STREAMS,
            max_pending: 64,
            pending_timeout: Period::secs(1),
            open_timeout: Period::millis(250),
            answer_timeout: Period::secs(2),
            dial_timeout: Period::secs(5),
            congestion: Congestion::LossTolerant,
            stream_window: ByteSize(2 << 20),
            outliers: OutlierSettings::default(),
        }
    }
}

impl ConnectionPooling {
    /// The same for the pools.
    pub(crate) fn pool_settings(&self) -> Settings {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Settings {
            limits: Limits {
                min: size(self.min_connections),
                max: size(self.max_connections),
                streams: self.max_streams,
                pending: size(self.max_pending),
                outliers: Outliers {
                    interval: self.outliers.interval.0,
                    failures: self.outliers.failures,
                    loss_percent: self.outliers.loss_percent,
                    rtt_times: self.outliers.rtt_times,
                },
            },
            opening: OpenLimits {
                pending: self.pending_timeout.0,
                open: self.open_timeout.0,
                answer: self.answer_timeout.0,
            },
            dial: self.dial_timeout.0,
            transport: Choices {
                congestion: self.congestion,
                stream_window: u32::try_from(self.stream_window.0).unwrap_or(u32::MAX),
            },
        }
    }
}

impl FilterSpec for ConnectionPooling {
    type Kind = Peer;
    /// The connections belong to the end of the chain, since the listener of the tunnel shares their identity.
    type State = ();
    const NAME: &'static str = "connection_pooling";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let outliers = at.key("outliers");
        let numbers = [
            (at, "min_connections", self.min_connections, 1, 16),
            (at, "max_connections", self.max_connections, 1, 16),
            (at, "max_streams", self.max_streams, 1, STREAMS),
            (at, "max_pending", self.max_pending, 1, 65_536),
            (&outliers, "failures", self.outliers.failures, 1, 1000),
            (&outliers, "loss_percent", self.outliers.loss_percent, 1, 100),
            (&outliers, "rtt_times", self.outliers.rtt_times, 2, 100),
        ];
        for (at, key, number, least, most) in numbers {
            if !(least..=most).contains(&number) {
                let error = at.key(key).error(format!("{number} is out of range"));
                errors.push(error.hint(format!("{least} to {most}")));
            }
        }
        if self.min_connections > self.max_connections {
            let error = at.key("min_connections").error("more than `max_connections`");
            errors.push(error.hint(format!("at most {}", self.max_connections)));
        }
        let periods = [
            ("pending_timeout", self.pending_timeout),
            ("open_timeout", self.open_timeout),
            ("answer_timeout", self.answer_timeout),
            ("dial_timeout", self.dial_timeout),
        ];
        for (key, period) in periods {
            if period.0.is_zero() || period.0 > Duration::from_secs(10) {
                let error = at.key(key).error(format!("{period} is out of range"));
                errors.push(error.hint("above 0s, at most 10s"));
            }
        }
        let interval = self.outliers.interval;
        if !(1..=3600).contains(&interval.0.as_secs()) {
            let error = outliers.key("interval").error(format!("{interval} is out of range"));
            errors.push(error.hint("1s to 1h"));
        }
        if !(64 << 10..=16 << 20).contains(&self.stream_window.0) {
            let error = at.key("stream_window").error(format!("{} is out of range", self.stream_window));
            errors.push(error.hint("64KiB to 16MiB"));
        }
        errors
    }

    fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(Arc::new(()))
    }

    fn wrap(&self, _: Arc<()>, direct: Svc<Peer>) -> Svc<Peer> {
        service_fn::<Peer, _, _>(move |request: PeerConnect| {
            let direct = direct.clone();
            async move {
                match through(&request).await {
                    None => direct.oneshot(request).await,
                    Some(Ok(stream)) => Ok(Link::Tunnel(stream)),
                    Some(Err((reason, error))) => {
                        request.opening.falls_back(reason);
                        if request.route.requires_tunnel() {
                            return Err(error);
                        }
                        fallback(&request.route.name, reason);
                        direct.oneshot(request).await
                    }
                }
            }
        })
    }
}

/// A connection goes directly although its peer has a sidecar.
fn fallback(route: &str, reason: &'static str) {
    counter!("qudag_sidecar_peer_fallbacks_total", "target" => route.to_owned(), "reason" => reason)
        .increment(1);
}

/// The connections to the sidecar that a route leads to; `None` when it leads to none.
pub(crate) fn pool(request: &PeerConnect) -> Option<Result<Arc<PeerPool>, (&'static str, FilterError)>> {
    let sidecar = request.route.sidecar.as_ref()?;
    let Some(way) = &request.way else {
        let error = FilterError::Internal("no identity for the tunnel".into());
        return Some(Err(("no_identity", error)));
    };
    if way.identity.name() == sidecar.name {
        let error = FilterError::Refused("the route leads to this sidecar itself".into());
        return Some(Err(("itself", error)));
    }
    Some(Ok(way.pool(sidecar, request.sidecar())))
}

/// Opens a stream of the tunnel; `None` when the route does not lead to a sidecar.
async fn through(request: &PeerConnect) -> Option<Result<TunnelStream, (&'static str, FilterError)>> {
    let pool = match pool(request)? {
        Ok(pool) => pool,
        Err(why) => return Some(Err(why)),
    };
    let (sidecar, way) = (request.route.sidecar.as_ref()?, request.way.as_ref()?);
    let header = Header::to(sidecar.class, sidecar.destination.clone());
    let opened = open(&pool, &header, &request.opening, way.limits(), sidecar.require_tunnel).await;
    let outcome = opened.as_ref().map_or_else(|failure| failure.label(), |_| "ok");
    counter!("qudag_sidecar_peer_streams_total", "side" => "out", "outcome" => outcome).increment(1);
    if opened.is_ok() && sidecar.destination == Destination::node() {
        way.exchange.meet(&sidecar.name);
    }
    Some(opened.map_err(|failure| (failure.label(), failure.error(pool.name().as_str()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_has_its_place() {
        let wrong = |settings: &str| {
            let settings: ConnectionPooling = serde_json::from_str(settings).unwrap();
            let errors = settings.check(&ConfigPath::root());
            errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
        };
        assert!(wrong("{}").is_empty());
        for (key, value) in [
            ("max_connections", "0"),
            ("max_connections", "17"),
            ("max_streams", "129"),
            ("max_pending", "0"),
            ("pending_timeout", "\"0s\""),
            ("open_timeout", "\"11s\""),
            ("answer_timeout", "\"0s\""),
            ("dial_timeout", "\"11s\""),
            ("stream_window", "\"63KiB\""),
            ("stream_window", "\"17MiB\""),
        ] {
            let wrong = wrong(&format!("{{\"{key}\": {value}}}"));
            assert_eq!(wrong.first().map(String::as_str), Some(key), "{value}");
        }
        for (key, value) in
            [("interval", "\"500ms\""), ("failures", "0"), ("loss_percent", "101"), ("rtt_times", "1")]
        {
            let wrong = wrong(&format!("{{\"outliers\": {{\"{key}\": {value}}}}}"));
            assert_eq!(wrong, [format!("outliers.{key}")]);
        }
        assert_eq!(wrong(r#"{"min_connections": 3, "max_connections": 2}"#), ["min_connections"]);
    }
}
