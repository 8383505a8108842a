//! Load of every kind, whose every failure counts.

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::http::Client;
use qudag_kit::rpc::{self, Server};
use qudag_kit::{Load, peer};
use serde_json::json;

use crate::world::Doors;

const PAUSE: Duration = Duration::from_millis(2);

/// Two workers of each kind.
pub struct Loads(Vec<Load>);

impl Loads {
    /// Starts them.
    pub fn start(doors: &Doors) -> Self {
        Self(vec![
            names(doors.dns),
            keep_alive(doors.http, "http/1.1", false),
            keep_alive(doors.http, "http/2", true),
            calls(doors.rpc),
            streams("outbound peers", doors.outbound),
            streams("inbound peers", doors.inbound),
            long_streams(doors.outbound),
        ])
    }

    /// Waits until each has done something.
    pub async fn under_way(&self) {
        qudag_kit::eventually(Duration::from_secs(20), "load is under way", async || {
            self.0.iter().all(|load| load.so_far().done > 3).then_some(())
        })
        .await;
    }

    /// Stops them and expects that nothing failed.
    pub async fn stop_clean(self) {
        for load in self.0 {
            load.stop_clean().await;
        }
    }
}

/// Names by UDP and TCP.
pub fn names(server: SocketAddr) -> Load {
    Load::start(
        "dns",
        2,
        PAUSE,
        |worker| worker,
        move |worker: &mut usize| {
            Box::pin(async move {
                let answer = if *worker == 0 {
                    dns::ask(server, "kept.test.", RecordType::A).await?
                } else {
                    dns::ask_tcp(server, "kept.test.", RecordType::A).await?
                };
                let found = dns::addresses(&answer);
                if found == ["192.0.2.77".parse::<std::net::IpAddr>().unwrap()] {
                    Ok(())
                } else {
                    Err(format!("{found:?}, {}", answer.metadata.response_code))
                }
            })
        },
    )
}

/// Requests on connections that are kept.
pub fn keep_alive(server: SocketAddr, name: &'static str, two: bool) -> Load {
    Load::start(
        name,
        2,
        PAUSE,
        |_| None,
        move |kept: &mut Option<Client>| {
            Box::pin(async move {
                let mut client = match kept.take().filter(Client::is_reusable) {
                    Some(client) => client,
                    None if two => Client::http2(server).await?,
                    None => Client::http1(server).await?,
                };
                let reply = client.get("/health").await?;
                *kept = Some(client);
                if reply.status == 200 && reply.body.starts_with(br#"{"status":"healthy""#) {
                    Ok(())
                } else {
                    Err(format!("{}: {}", reply.status, reply.text()))
                }
            })
        },
    )
}

/// RPC calls, each on a connection of its own.
pub fn calls(server: SocketAddr) -> Load {
    Load::start(
        "rpc",
        2,
        PAUSE,
        |_| (),
        move |(): &mut ()| {
            Box::pin(async move {
                let reply = rpc::call(&Server::Tcp(server), "get_status", json!({})).await?;
                if reply["result"]["is_running"] == true { Ok(()) } else { Err(reply.to_string()) }
            })
        },
    )
}

/// Streams of 50 kB there and back.
pub fn streams(name: &'static str, server: SocketAddr) -> Load {
    Load::start(name, 2, PAUSE, |_| (), move |(): &mut ()| Box::pin(peer::echo(server, 50_000)))
}

/// Streams that stay open for a second, so that every reload meets some.
pub fn long_streams(server: SocketAddr) -> Load {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    Load::start(
        "long peers",
        2,
        PAUSE,
        |_| (),
        move |(): &mut ()| {
            Box::pin(async move {
                let failed = |error: std::io::Error| error.to_string();
                let mut stream = tokio::net::TcpStream::connect(server).await.map_err(failed)?;
                for number in 0..50u32 {
                    stream.write_u32(number).await.map_err(failed)?;
                    let back = stream.read_u32().await.map_err(failed)?;
                    if back != number {
                        return Err(format!("{back} instead of {number}"));
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                stream.shutdown().await.map_err(failed)?;
                match stream.read(&mut [0]).await.map_err(failed)? {
                    0 => Ok(()),
                    _ => Err("bytes after the end".to_owned()),
                }
            })
        },
    )
}
