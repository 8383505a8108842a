//! Pooled Redis sessions encrypted, held back, and under settings that change while they are used.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

mod redis_server;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use qudag_filter_common::testing::{PATIENCE, metric, nowhere, until};
use qudag_filter_db::redis::{Pools, RedisPoolStatus};
use rcgen::{CertificateParams, KeyPair};
use redis_server::{Raw, Server, Sidecar, command, connections, line, listener, pooled};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// A certificate for `localhost` and its key, in files.
fn certify(folder: &Path, name: &str) -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let [certificate, file] = ["pem", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
    std::fs::write(&certificate, made.pem()).unwrap();
    std::fs::write(&file, key.serialize_pem()).unwrap();
    [certificate, file].map(|file| file.to_str().unwrap().to_owned())
}

/// The server takes TLS at a port from now on.
async fn tls_port(server: &Server) -> u16 {
    let mut direct = server.direct().await;
    for _ in 0..20 {
        // Somebody else can take the port between the look and the start; then another one is tried.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if direct.ask(&format!("CONFIG SET tls-port {port}")).await == "+OK" {
            return port;
        }
    }
    panic!("redis-server gets no port");
}

async fn encrypted(at: SocketAddr, certificate: &str) -> Raw {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(at).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Raw::over(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_server_are_encrypted_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certify(folder.path(), "server");
    let options = [
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ];
    let Some(server) = Server::start(&options).await else { return };
    let port = tls_port(&server).await;
    let [own, own_key] = certify(folder.path(), "sidecar");
    let value: Vec<u8> =
        (0..3_u32 << 20).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (client_tls, server_tls, pool) in [
        (true, true, true),
        (true, false, true),
        (false, true, true),
        (true, true, false),
        (true, false, false),
        (false, true, false),
    ] {
        let what = format!("client {client_tls} server {server_tls} pool {pool}");
        let mut listener = listener(&server);
        if server_tls {
            listener["server"] = format!("localhost:{port}").into();
            listener["server_tls"] = json!({ "mode": "verify_full", "ca": certificate });
        }
        if client_tls {
            listener["tls"] = json!({ "certificate": own, "key": own_key });
        }
        let filters = json!({ "redis_pool": { "enabled": pool, "size": 2 } });
        let sidecar = Sidecar::start(nowhere(), listener, filters).await;
        sidecar.names.set("localhost", &["127.0.0.1"]);
        let client = async || match client_tls {
            true => encrypted(sidecar.tcp(), &own).await,
            false => Raw::to(sidecar.tcp()).await,
        };
        let mut one = client().await;
        assert_eq!(one.ask("PING").await, "+PONG", "{what}");
        one.send(&command(&[b"SET", b"long", &value])).await;
        assert_eq!(one.next().await, "+OK", "{what}");
        one.send(&line("GET long")).await;
        let said = one.try_next().await.unwrap();
        assert!(said.ends_with(&[&value[..], b"\r\n"].concat()), "{what}: {} bytes", said.len());
        // On a connection of its own, long answers as well.
        assert!(one.ask("CLIENT NO-EVICT ON").await.starts_with("+OK"), "{what}");
        one.send(&line("GET long")).await;
        assert_eq!(one.try_next().await.unwrap(), said, "{what}");
        let mut subscriber = client().await;
        assert!(subscriber.ask("SUBSCRIBE c").await.contains("subscribe"), "{what}");
        assert_eq!(one.ask("PUBLISH c hello").await, ":1", "{what}");
        assert!(subscriber.next().await.ends_with("hello"), "{what}");
        assert_eq!(one.ask("QUIT").await, "+OK", "{what}");
        assert_eq!(one.try_next().await, None, "{what}");
        if client_tls {
            // Who does not begin with TLS is told nothing that it could take for an answer.
            let mut plain = Raw::to(sidecar.tcp()).await;
            plain.send(&line("PING")).await;
            assert!(!plain.read_to_end().await.contains("PONG"), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_to_be_believed_gets_no_commands() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certify(folder.path(), "server");
    let [other, _] = certify(folder.path(), "other");
    let options = [
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ];
    let Some(server) = Server::start(&options).await else { return };
    let port = tls_port(&server).await;
    for (host, mode, ca, good) in [
        ("localhost", "require", None, true),
        ("127.0.0.1", "verify_ca", Some(&certificate), true),
        ("127.0.0.1", "verify_full", Some(&certificate), false),
        ("localhost", "verify_full", Some(&other), false),
        ("localhost", "disable", None, false),
    ] {
        let mut listener = listener(&server);
        listener["server"] = format!("{host}:{port}").into();
        listener["server_tls"] = json!({ "mode": mode });
        if let Some(ca) = ca {
            listener["server_tls"]["ca"] = ca.to_owned().into();
        }
        let filters = json!({ "redis_pool": { "enabled": true, "wait": "2s" } });
        let sidecar = Sidecar::start(nowhere(), listener, filters).await;
        sidecar.names.set("localhost", &["127.0.0.1"]);
        let said = Raw::to(sidecar.tcp()).await.try_ask("PING").await;
        if good {
            assert_eq!(said.as_deref(), Some("+PONG"), "{host} {mode}");
        } else {
            assert!(said.is_none_or(|said| said.starts_with("-LOADING")), "{host} {mode}");
        }
    }
}

fn pools(sidecar: &Sidecar) -> Arc<Pools> {
    Arc::clone(&sidecar.states.redis_pool.as_ref().unwrap().state)
}

fn pool_of(sidecar: &Sidecar, database: u32) -> Option<RedisPoolStatus> {
    pools(sidecar).status().pools.into_iter().find(|pool| pool.database == database)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_held_back_and_go_on() {
    let Some(server) = Server::start(&[]).await else { return };
    let (sidecar, at) = pooled(&server, json!({ "size": 3 }), json!({})).await;
    let mut clients = Vec::new();
    for database in ["7", "7", "0"] {
        let mut client = Raw::to(at).await;
        assert_eq!(client.ask(&format!("SELECT {database}")).await, "+OK");
        clients.push(client);
    }
    let [mut held, mut transaction, mut other] = <[Raw; 3]>::try_from(clients).ok().unwrap();
    assert_eq!(transaction.ask("MULTI").await, "+OK");
    assert_eq!(pools(&sidecar).pause(Some(5)), 0);
    assert_eq!(pools(&sidecar).pause(Some(7)), 1);
    held.send(&line("SET a 1")).await;
    let waits = |number| move |pool: RedisPoolStatus| pool.waiting == number && pool.paused == (number > 0);
    until("it waits", || pool_of(&sidecar, 7).is_some_and(waits(1))).await;
    assert_eq!(other.ask("SET a 1").await, "+OK");
    assert_eq!(transaction.ask("EXISTS a").await, "+QUEUED");
    assert_eq!(transaction.ask("EXEC").await, "*1\r\n:0");
    let labels = ["database=\"7\"", "user=\"default\"", "protocol=\"2\""];
    until("it is shown", || {
        metric("qudag_sidecar_redis_queue_depth", &labels) == 1.0
            && metric("qudag_sidecar_redis_queue_oldest_seconds", &labels) > 0.0
            && metric("qudag_sidecar_redis_pool_size", &labels) == 3.0
    })
    .await;
    assert_eq!(pools(&sidecar).resume(Some(7)), 1);
    assert_eq!(held.next().await, "+OK");
    until("nothing waits", || metric("qudag_sidecar_redis_queue_depth", &labels) == 0.0).await;
    assert_eq!(metric("qudag_sidecar_redis_queue_oldest_seconds", &labels), 0.0);
    // All, and pools to come.
    assert!(pools(&sidecar).pause(None) >= 2);
    held.send(&[line("SELECT 9"), line("SET a 1")].concat()).await;
    until("it waits", || pool_of(&sidecar, 9).is_some_and(waits(1))).await;
    pools(&sidecar).resume(None);
    assert_eq!((held.next().await, held.next().await), ("+OK".into(), "+OK".into()));
    let shown = pool_of(&sidecar, 9).unwrap();
    assert_eq!((shown.batches, shown.commands, shown.user.as_str()), (2, 2, "default"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_under_load_without_an_error() {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut sidecar, at) = pooled(&server, json!({ "size": 4 }), json!({})).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = (0..30).map(|client| {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let mut raw = Raw::to(at).await;
            let mut turn = 0;
            while !stop.load(Relaxed) {
                turn += 1;
                // Another database now and then, whose pool is looked up.
                let database = if turn % 10 == 0 { 1 - turn / 10 % 2 } else { -1 };
                if database >= 0 {
                    assert_eq!(raw.ask(&format!("SELECT {database}")).await, "+OK");
                }
                assert_eq!(raw.ask(&format!("SET k{client} {turn}")).await, "+OK");
            }
            turn
        })
    });
    let clients: Vec<_> = clients.collect();
    for size in [1, 8, 2] {
        let filters = json!({ "redis_pool": { "enabled": true, "size": size } });
        sidecar.reload(listener(&server), filters);
        let done = || pools(&sidecar).status().pools.iter().map(|pool| pool.commands).sum::<u64>();
        let before = done();
        until("many commands", || done() > before + 500).await;
        until("the size is in force", || {
            let pools = pools(&sidecar).status().pools;
            // A database that nobody asks at the moment keeps its connections until somebody does.
            pools.iter().filter(|pool| pool.active > 0).all(|pool| pool.size == size && pool.active <= size)
        })
        .await;
    }
    stop.store(true, Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    for database in [0, 1] {
        let mut raw = Raw::to(at).await;
        assert_eq!(raw.ask(&format!("SELECT {database}")).await, "+OK");
    }
    let deadline = Instant::now() + PATIENCE;
    while connections(&server).await > 4 {
        assert!(Instant::now() < deadline, "{} connections", connections(&server).await);
        for database in [0, 1] {
            Raw::to(at).await.ask(&format!("SELECT {database}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adaptive_limit_falls_when_batches_take_longer_than_usual() {
    let Some(server) = Server::start(&[]).await else { return };
    let pressure: Value = json!({ "redis_backpressure": {
        "enabled": true, "wait": "5s", "age": "5s", "tolerable": "5s", "adaptive": { "enforce": true, "min": 2, "tolerance": 1.5 } } });
    let (sidecar, at) = pooled(&server, json!({ "size": 10 }), pressure).await;
    let mut client = Raw::to(at).await;
    let eval =
        |loops: u32| command(&[b"EVAL", format!("for i = 1, {loops} do end return 1").as_bytes(), b"0"]);
    let run = async |client: &mut Raw, loops| {
        client.send(&eval(loops)).await;
        assert_eq!(client.next().await, ":1");
    };
    for _ in 0..300 {
        run(&mut client, 1).await;
    }
    // Errors come at once, and say nothing of how long other commands take.
    for _ in 0..100 {
        client.send(&command(&[b"EVAL", b"nonsense", b"0"])).await;
        assert!(client.next().await.starts_with("-ERR"));
    }
    assert_eq!(pool_of(&sidecar, 0).unwrap().limit, 10);
    let deadline = Instant::now() + PATIENCE;
    while pool_of(&sidecar, 0).unwrap().limit == 10 {
        assert!(Instant::now() < deadline, "the limit stays");
        run(&mut client, 1_000_000).await;
    }
    assert_eq!(pool_of(&sidecar, 0).unwrap().size, 10);
}
