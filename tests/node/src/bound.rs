//! Where the RPC servers listen. `RpcServer` tells nobody but its log.

use std::fmt::Debug;

use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

const PREFIX: &str = "RPC server listening on ";

/// Writes the log to standard error and hands out the addresses that it tells: `TCP: 127.0.0.1:1234`, `Unix
/// socket: /path`, without the words before the colon.
pub fn watch_log() -> UnboundedReceiver<String> {
    let (found, addresses) = unbounded_channel();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr))
        .with(Addresses(found))
        .init();
    addresses
}

struct Addresses(UnboundedSender<String>);

impl<S: Subscriber> Layer<S> for Addresses {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut Message(&self.0));
    }
}

struct Message<'a>(&'a UnboundedSender<String>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != "message" {
            return;
        }
        let text = format!("{value:?}");
        let Some(place) = text.strip_prefix(PREFIX) else { return };
        if let Some((_, address)) = place.split_once(": ") {
            let _ = self.0.send(address.to_owned());
        }
    }
}
