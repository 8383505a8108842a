//! The kinds of traffic that the sidecar serves. A new kind is one line at the end of this file.

use std::io;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, BuildError, ChainSpec, Decide, Env, HostPort, Kind, SlotInfo};
use qudag_filter_common::{Front, KindOf, ListenerSpec};
use qudag_filter_crypto::CryptoListener;
use qudag_filter_db::PostgresListener;
use qudag_filter_db::redis::RedisListener;
use qudag_filter_dns::DnsListener;
use qudag_filter_http::HttpListener;
use qudag_filter_peer::PeerListener;
use qudag_filter_rpc::RpcListener;

use super::{Current, Line, chains};
use crate::config::Config;

/// A listener that a configuration asks for.
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// As configured; port 0 stays 0 here.
    pub(super) address: Address,
}

/// What a running listener is recognised by after a reload: its address, so that it may be renamed; where the operating system chose
/// the port, its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(&'static str, String);

impl Wanted {
    pub(super) fn key(&self) -> Key {
        match &self.address {
            Address::Tcp(HostPort { port: 0, .. }) => {
                Key(self.kind, format!("{} {}", self.address, self.name))
            }
            address => Key(self.kind, address.to_string()),
        }
    }
}

/// Binds a wanted listener.
pub(super) type Bind = Box<dyn FnOnce(Current, Env) -> BoxFuture<'static, io::Result<Box<dyn Front>>> + Send>;

macro_rules! kinds {
    ($($kind:ident: $listener:ty, under listeners.$key:ident;)+) => {
        /// The line of each kind; `None` where the kind is not served.
        #[derive(Default)]
        pub struct Kinds {
            $(#[doc = concat!("`", stringify!($kind), "`")] pub $kind: Option<Line<$listener>>,)+
        }

        impl Kinds {
            /// The names of all kinds.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($kind)),+];

            /// Builds every kind that has a listener, taking states over from `previous`.
            pub(super) fn build(
                config: &Config,
                env: &Env,
                decide: &dyn Decide,
                previous: &Self,
            ) -> Result<Self, BuildError> {
                Ok(Self {$(
                    $kind: match &config.listeners.$key {
                        Some(listener) => Some(Line::build(
                            listener, &config.filters.$kind, env, decide, previous.$kind.as_ref(),
                        )?),
                        None => None,
                    },
                )+})
            }

            /// The slots of all kinds, served or not, in the order of the chains.
            pub fn slots(config: &Config) -> Vec<SlotInfo> {
                let mut slots = Vec::new();
                $(slots.extend(config.filters.$kind.slots());)+
                slots
            }

            /// The listeners that a configuration asks for, and how each is bound.
            pub(super) fn wanted(config: &Config) -> Vec<(Wanted, Bind)> {
                let mut wanted = Vec::new();
                $(if let Some(listener) = &config.listeners.$key {
                    wanted.extend(wanted_of(listener, |kinds| kinds.$kind.as_ref()));
                })+
                wanted
            }
        }
    };
}

fn wanted_of<L: ListenerSpec>(
    listener: &L,
    line: fn(&Kinds) -> Option<&Line<L>>,
) -> impl Iterator<Item = (Wanted, Bind)> {
    listener.binds().into_iter().map(move |(name, address): (String, Address)| {
        let wanted = Wanted { kind: KindOf::<L>::NAME, name: name.clone(), address: address.clone() };
        let bind: Bind = Box::new(move |current, env| L::bind(name, address, chains(current, line), env));
        (wanted, bind)
    })
}

kinds! {
    dns: DnsListener, under listeners.dns;
    peer: PeerListener, under listeners.peer;
    rpc: RpcListener, under listeners.rpc;
    http: HttpListener, under listeners.http;
    db: PostgresListener, under listeners.postgres;
    redis: RedisListener, under listeners.redis;
    crypto: CryptoListener, under listeners.crypto;
}
