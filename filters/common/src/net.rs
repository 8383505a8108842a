//! Stream sockets as the configuration names them: TCP or Unix, by address or by name.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use qudag_filter_api::{Address, FilterError, Host, HostPort, Resolve};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::Drain;
use crate::unix::UnixSocket;
use crate::unix_stream::UnixStream;

/// How many connections may wait to be accepted.
pub(crate) const BACKLOG: i32 = 1024;
/// How long accepting pauses when the process is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// In place of a time that the clock cannot express.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often accepting that fails is said in the log.
const WARN_EVERY: Duration = Duration::from_secs(5);
/// When nothing more comes for so long, nothing waits to be accepted.
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// A byte stream to a client or to an upstream.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix domain socket.
    Unix(UnixStream),
}

impl Stream {
    /// The peer's IP address, an IPv4-mapped one as IPv4; `None` for a Unix socket.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_addr().map(|addr| addr.ip())
    }

    /// The peer's address, an IPv4-mapped one as IPv4; `None` for a Unix socket or when the peer has gone.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok().map(canonical),
            Self::Unix(_) => None,
        }
    }

    /// This side's address, an IPv4-mapped one as IPv4; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok().map(canonical),
            Self::Unix(_) => None,
        }
    }

    /// Where the peer meant to connect before a rule of the packet filter redirected it here: `SO_ORIGINAL_DST`, for IPv6
    /// `IP6T_SO_ORIGINAL_DST`. This side's own address where no rule did.
    ///
    /// # Errors
    /// When the kernel knows nothing of the connection, which is so where its connections are not tracked; for a Unix socket.
    pub fn original_destination(&self) -> io::Result<SocketAddr> {
        let Self::Tcp(tcp) = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let socket = SockRef::from(tcp);
        // A socket of both families has IPv4 connections too, which are known to that family's tracking.
        let found = match tcp.local_addr()?.ip().to_canonical() {
            IpAddr::V4(_) => socket.original_dst_v4(),
            IpAddr::V6(_) => socket.original_dst_v6(),
        }?;
        found.as_socket().map(canonical).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Takes the stream off the runtime that it is on.
    ///
    /// # Errors
    /// When the operating system refuses; the stream is closed.
    pub fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Tcp(tcp) => tcp.into_std().map(Detached::Tcp),
            Self::Unix(unix) => Ok(Detached::Unix(unix.into_std())),
        }
    }

    /// Closes with RST, so that the peer sees a failure and not an end (RFC 9293 section 3.10.4). A Unix socket has no RST
    /// and is closed.
    pub fn reset(self) {
        if let Self::Tcp(tcp) = &self {
            // A socket that refuses the option is closed all the same.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A stream between two runtimes.
#[derive(Debug)]
pub enum Detached {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A Unix domain socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Detached {
    /// Puts it on the current runtime.
    ///
    /// # Errors
    /// When the operating system refuses; the stream is closed.
    pub fn attach(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(tcp) => TcpStream::from_std(tcp).map(Stream::Tcp),
            Self::Unix(unix) => UnixStream::new(unix).map(Stream::Unix),
        }
    }
}

/// The same address, an IPv4-mapped one (RFC 4291 section 2.5.5.2) as IPv4.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets hold nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}

/// A bound stream socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix domain socket with mode 0600, whose file is removed with it.
    Unix(UnixSocket),
}

impl Socket {
    /// Binds. A name is resolved and its first address that can be bound is taken. A Unix socket's file that nobody
    /// listens on is replaced.
    ///
    /// # Errors
    /// When the name cannot be resolved, or the operating system refuses every address;
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) when a Unix socket's file is in use.
    pub async fn bind(address: &Address, resolve: &dyn Resolve) -> io::Result<Self> {
        match address {
            Address::Unix(path) => UnixSocket::bind(path.clone()).await.map(Self::Unix),
            Address::Tcp(HostPort { host: Host::Ip(ip), port }) => {
                listen(SocketAddr::new(*ip, *port)).map(Self::Tcp)
            }
            Address::Tcp(HostPort { host: Host::Name(name), port }) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address"));
                for ip in resolve.resolve(name).await? {
                    match listen(SocketAddr::new(ip, *port)) {
                        Ok(listener) => return Ok(Self::Tcp(listener)),
                        Err(why) => last = why,
                    }
                }
                Err(last)
            }
        }
    }

    /// Binds a TCP socket that also takes connections to addresses that this host does not have (`IP_TRANSPARENT`, ip(7)), as
    /// rules with TPROXY hand them over.
    ///
    /// # Errors
    /// When the operating system refuses the address, or the process may not do this.
    pub fn bind_transparent(address: SocketAddr) -> io::Result<Self> {
        let transparent = |socket: &socket2::Socket| {
            if address.is_ipv6() {
                // Each family has a listener of its own.
                socket.set_only_v6(true)?;
            }
            if address.is_ipv4() {
                socket.set_ip_transparent_v4(true)
            } else {
                socket.set_ip_transparent_v6(true)
            }
        };
        listen_prepared(address, transparent).map(Self::Tcp)
    }

    /// Where it really listens, with the port that the operating system chose.
    pub fn address(&self) -> Address {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(addr) => Address::Tcp(addr.into()),
                // A bound socket has an address.
                Err(_) => Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 0)).into()),
            },
            Self::Unix(socket) => Address::Unix(socket.path().to_owned()),
        }
    }

    /// One connection, with TCP_NODELAY set.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (tcp, _) = listener.accept().await?;
                // Fails when the connection has gone already, which its reader will see.
                let _ = tcp.set_nodelay(true);
                Ok(Stream::Tcp(tcp))
            }
            Self::Unix(socket) => socket.accept().await?.try_into().map(Stream::Unix),
        }
    }

    /// Accepts until the drain starts, and then what waits to be accepted. Each connection becomes a task of the drain; one that
    /// outlives the drain's abort by half a second is dropped. Lack of file descriptors or memory pauses accepting and ends nothing.
    pub async fn serve<F, Fut>(self, drain: Drain, connection: F)
    where
        F: Fn(Stream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let mut quiet_until = Instant::now();
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.stopping() => return self.serve_backlog(&drain, connection).await,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok(stream) => drain.spawn(drain.clone().until_aborted(connection(stream))),
                Err(why) if is_of_connection(&why) => {}
                Err(why) => {
                    metrics::counter!("qudag_sidecar_accept_errors_total").increment(1);
                    if quiet_until <= Instant::now() {
                        quiet_until = Instant::now() + WARN_EVERY;
                        tracing::warn!(listener = %self.address(), error = %why, "cannot accept connections");
                    }
                    tokio::select! {
                        () = drain.stopping() => return,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }
}

impl Socket {
    /// Serves what the operating system has accepted already; closing the socket would reset it.
    async fn serve_backlog<F, Fut>(self, drain: &Drain, connection: F)
    where
        F: Fn(Stream) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        for _ in 0..BACKLOG {
            match tokio::time::timeout(BACKLOG_PAUSE, self.accept()).await {
                Ok(Ok(stream)) => drain.spawn(drain.clone().until_aborted(connection(stream))),
                Ok(Err(why)) if is_of_connection(&why) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// Whether an error of accepting concerns one connection that went away and not the listener.
fn is_of_connection(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(why.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    listen_prepared(addr, |_| Ok(()))
}

fn listen_prepared(
    addr: SocketAddr,
    prepare: impl FnOnce(&socket2::Socket) -> io::Result<()>,
) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    prepare(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects, trying every address of a name in turn. An address that does not answer gets an equal share of the time
/// that is left, so that the next ones have a chance. TCP_NODELAY is set.
///
/// # Errors
/// [`FilterError::Resolve`] when the name has no address in time, [`FilterError::Timeout`] when the last
/// address did not answer, [`FilterError::Connect`] when it refused.
pub async fn connect(to: &Address, resolve: &dyn Resolve, timeout: Duration) -> Result<Stream, FilterError> {
    connect_marked(to, resolve, timeout, None).await
}

/// [`connect`] with a socket whose packets carry a mark (`SO_MARK`, socket(7)), by which rules of the packet filter know them.
///
/// # Errors
/// Those of [`connect`]; [`FilterError::Connect`] when the process may not mark its packets.
pub async fn connect_marked(
    to: &Address,
    resolve: &dyn Resolve,
    timeout: Duration,
    mark: Option<u32>,
) -> Result<Stream, FilterError> {
    let deadline = after(timeout);
    let failed = |why| not_connected(to, timeout, why);
    let (ips, port) = match to {
        Address::Unix(path) => {
            let connected = within(deadline, tokio::net::UnixStream::connect(path)).await;
            return connected.and_then(UnixStream::try_from).map(Stream::Unix).map_err(failed);
        }
        Address::Tcp(HostPort { host: Host::Ip(ip), port }) => (vec![*ip], *port),
        Address::Tcp(HostPort { host: Host::Name(name), port }) => {
            let resolved = within(deadline, resolve.resolve(name)).await;
            let ips = resolved
                .map_err(|why| FilterError::Resolve { name: name.clone(), why: why.to_string().into() })?;
            (ips, *port)
        }
    };
    let addresses: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    one_of(&addresses, deadline, mark, &mut |_| {}).await.map_err(failed)
}

/// Connects to one of the addresses that something called `to` has, as [`connect_marked`] does. `failed` is told of each address that
/// did not answer or refused.
///
/// # Errors
/// Those of [`connect_marked`], but for [`FilterError::Resolve`].
pub async fn connect_addresses(
    to: &Address,
    addresses: &[SocketAddr],
    timeout: Duration,
    mark: Option<u32>,
    failed: &mut (dyn FnMut(SocketAddr) + Send),
) -> Result<Stream, FilterError> {
    one_of(addresses, after(timeout), mark, failed).await.map_err(|why| not_connected(to, timeout, why))
}

/// When so much time will have passed.
fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + DAY)
}

fn not_connected(to: &Address, timeout: Duration, why: io::Error) -> FilterError {
    match why.kind() {
        io::ErrorKind::TimedOut => FilterError::Timeout { after: timeout },
        _ => FilterError::connect(to.to_string(), why),
    }
}

async fn one_of(
    addresses: &[SocketAddr],
    deadline: Instant,
    mark: Option<u32>,
    failed: &mut (dyn FnMut(SocketAddr) + Send),
) -> io::Result<Stream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let shares = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match within(Instant::now() + left / shares, connect_tcp(*address, mark)).await {
            Ok(tcp) => return Ok(Stream::Tcp(tcp)),
            Err(why) => last = why,
        }
        failed(*address);
    }
    Err(last)
}

async fn connect_tcp(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    let tcp = socket.connect(addr).await?;
    // On loopback a free port can be chosen as the local one, and the socket then connects to itself.
    if tcp.local_addr()? == tcp.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
