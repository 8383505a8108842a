//! The edge of a kind of traffic: where it is received and what stands at the end of its chain.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, BuildError, ChainSpec, Chains, ConfigError, ConfigPath, Env, Kind, Svc};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Drain, Socket, Stream};

/// A bound listener.
pub trait Front: Send {
    /// Where it really listens, with the port that the operating system chose.
    fn address(&self) -> Address;

    /// Serves until the drain starts; work under way goes on as tasks of the drain.
    fn serve(self: Box<Self>, drain: Drain) -> BoxFuture<'static, ()>;
}

impl Socket {
    /// A front that serves each connection with `connection`, which gets the drain as well: the connection is one of its tasks
    /// ([`Socket::serve`]).
    pub fn into_front<F, Fut>(self, connection: F) -> Box<dyn Front>
    where
        F: Fn(Stream, Drain) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Box::new(SocketFront { socket: self, connection })
    }

    /// [`Socket::bind`] and [`Socket::into_front`] in one.
    pub fn front<F, Fut>(
        address: Address,
        env: Env,
        connection: F,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>>
    where
        F: Fn(Stream, Drain) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Box::pin(async move { Ok(Self::bind(&address, &*env.resolve).await?.into_front(connection)) })
    }
}

struct SocketFront<F> {
    socket: Socket,
    connection: F,
}

impl<F, Fut> Front for SocketFront<F>
where
    F: Fn(Stream, Drain) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn address(&self) -> Address {
        self.socket.address()
    }

    fn serve(self: Box<Self>, drain: Drain) -> BoxFuture<'static, ()> {
        let Self { socket, connection } = *self;
        let tasks = drain.clone();
        Box::pin(socket.serve(drain, move |stream| connection(stream, tasks.clone())))
    }
}

/// The settings under `listeners` of one kind of traffic, and everything of that kind that is not a filter.
pub trait ListenerSpec:
    DeserializeOwned + Serialize + JsonSchema + Clone + PartialEq + Send + Sync + 'static
{
    /// The filters.
    type Filters: ChainSpec;
    /// State of the terminal service that outlives a reload: the health of upstream servers, for instance.
    type Upstream: Send + Sync + 'static;

    /// Every problem of these settings.
    fn check(&self, at: &ConfigPath) -> Vec<ConfigError>;

    /// What is listened on: a name that is unique in the kind and stable over reloads, and the configured address.
    /// A listener whose address is unchanged keeps its socket through a reload.
    fn binds(&self) -> Vec<(String, Address)>;

    /// What a generation's listeners and terminal service read; swapped with the chain.
    fn settings(&self, env: &Env) -> <KindOf<Self> as Kind>::Settings;

    /// The service at the end of the chain, and its state.
    ///
    /// # Errors
    /// When the upstream side cannot be set up.
    fn terminal(
        &self,
        filters: &Self::Filters,
        settings: &Arc<<KindOf<Self> as Kind>::Settings>,
        env: &Env,
        previous: Option<&Arc<Self::Upstream>>,
    ) -> Result<Terminal<Self>, BuildError>;

    /// Binds one of [`ListenerSpec::binds`].
    fn bind(
        name: String,
        address: Address,
        chains: Chains<KindOf<Self>>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>>;
}

/// The kind of traffic of a listener.
pub type KindOf<L> = <<L as ListenerSpec>::Filters as ChainSpec>::Kind;

/// A terminal service and its state.
pub type Terminal<L> = (Svc<KindOf<L>>, Arc<<L as ListenerSpec>::Upstream>);
