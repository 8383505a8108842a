//! A private HAProxy, the proxy that people use today.

use std::net::{SocketAddr, TcpStream};

use tempfile::TempDir;

use crate::netns::Namespace;
use crate::ports;
use crate::program::{Program, Start};
use crate::wait::PATIENCE;

/// A running HAProxy with one listener and one server behind it.
pub struct HaProxy {
    addr: SocketAddr,
    program: Program,
    _dir: TempDir,
}

impl HaProxy {
    /// Forwards TCP connections to `server`.
    pub async fn tcp(server: SocketAddr) -> Self {
        Self::start("tcp", server).await
    }

    /// Forwards HTTP requests to `server`.
    pub async fn http(server: SocketAddr) -> Self {
        Self::start("http", server).await
    }

    /// `mode` is `tcp` or `http`, with one thread.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(mode: &str, server: SocketAddr) -> Self {
        Self::start_at(mode, ports::free(), server, None).await
    }

    /// The same at an address, in a namespace.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_at(
        mode: &str,
        addr: SocketAddr,
        server: SocketAddr,
        namespace: Option<&Namespace>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conf = format!(
            "global\n  nbthread 1\n  maxconn 6000\ndefaults\n  mode {mode}\n  timeout connect 5s\n  timeout client \
             60s\n  timeout server 60s\nlisten front\n  bind {addr}\n  server node {server}\n"
        );
        let path = dir.path().join("haproxy.cfg");
        std::fs::write(&path, conf).unwrap();
        let start = Start::new("haproxy").args(["-db", "-f"]).arg(path);
        let mut program = start.in_namespace(namespace).spawn(dir.path());
        crate::eventually(PATIENCE, "HAProxy listens", async || {
            if let Some(status) = program.ended() {
                panic!("haproxy ended: {status}\n{}", program.log());
            }
            match namespace {
                Some(namespace) => namespace.inside(|| TcpStream::connect(addr)).unwrap().ok(),
                None => TcpStream::connect(addr).ok(),
            }
        })
        .await;
        Self { addr, program, _dir: dir }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_forwards() {
        crate::needs_program!("haproxy");
        let peer = crate::EchoPeer::start().await;
        let proxy = HaProxy::tcp(peer.addr()).await;
        crate::peer::echo(proxy.addr(), 1000).await.unwrap();
    }
}
