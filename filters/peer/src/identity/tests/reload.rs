//! Files that change.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use qudag_filter_common::testing::{PATIENCE, until};

use super::*;

/// The value of a series; 0 where there is none.
fn value(recorder: &PrometheusRecorder, series: &str) -> f64 {
    let text = recorder.handle().render();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

const LOADED: &str = r#"qudag_sidecar_identity_reloads_total{outcome="ok"}"#;
const REFUSED: &str = r#"qudag_sidecar_identity_reloads_total{outcome="error"}"#;

async fn changed(changes: &mut watch::Receiver<u64>) -> u64 {
    tokio::time::timeout(PATIENCE, changes.changed()).await.expect("no change").unwrap();
    *changes.borrow_and_update()
}

#[tokio::test]
async fn new_files_are_used_for_new_handshakes_and_old_connections_live_on() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let ca = Ca::new();
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    let (old, mut changes) = (a.facts(), a.changes());
    let shown = value(&recorder, "qudag_sidecar_identity_expiry_seconds");
    assert!(shown > 0.0);
    let server = listen(&a, only("b"));
    let config = ClientConfig::new(b.client(name("a")));
    let client = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting = client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
    let (ours, theirs) = tokio::join!(async { server.accept().await.unwrap().await.unwrap() }, connecting);
    let theirs = theirs.unwrap();

    ca.authority().renew(&ca.file("a.pem"), 2 * DAY, ca.now).unwrap();
    assert_eq!(changed(&mut changes).await, 1);
    let new = a.facts();
    assert_ne!(old.fingerprint, new.fingerprint);
    assert_eq!((new.not_after, a.name()), (a.expires(), name("a")));
    assert!(value(&recorder, "qudag_sidecar_identity_expiry_seconds") >= shown + 86_399.0);
    assert_eq!(
        (value(&recorder, LOADED), value(&recorder, REFUSED)),
        (1.0, 0.0),
        "nothing was complained about"
    );

    // What the other side sees of a new handshake.
    server.set_server_config(Some(ServerConfig::with_crypto(a.server(only("b")))));
    let config = ClientConfig::new(b.client(name("a")));
    let connecting = client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
    let (_ours, second) = tokio::join!(async { server.accept().await.unwrap().await.unwrap() }, connecting);
    let seen = |connection: &Connection| {
        let chain = connection.peer_identity().unwrap();
        let chain = chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
        Facts::of(&chain[0]).unwrap().fingerprint
    };
    assert_eq!(seen(&second.unwrap()), new.fingerprint);
    assert_eq!(seen(&theirs), old.fingerprint);
    assert_eq!((ours.close_reason(), theirs.close_reason()), (None, None), "the old connection lives on");
}

#[tokio::test]
async fn bad_files_leave_the_old_identity_and_are_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let log = Log::start();
    let ca = Ca::new();
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    let (old, mut changes) = (a.facts(), a.changes());
    let good = std::fs::read_to_string(ca.file("a.pem")).unwrap();
    std::fs::write(ca.file("a.pem"), "nonsense").unwrap();
    until("it was counted", || value(&recorder, REFUSED) == 1.0).await;
    std::fs::remove_file(ca.file("a.key")).unwrap();
    // Longer than it takes to look at the files twice more.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!((value(&recorder, REFUSED), value(&recorder, LOADED)), (1.0, 0.0));
    assert_eq!(log.count(&["WARN", "cannot be used", "a.pem", "no certificate in it", "hint="]), 1);
    assert_eq!((a.facts(), changes.has_changed().unwrap()), (old.clone(), false));
    assert!(meet(&listen(&a, only("b")), b.client(name("a"))).await.0.is_ok(), "the old one is in use");

    // The same contents again are no change; others are.
    std::fs::write(ca.file("a.pem"), &good).unwrap();
    ca.authority().renew(&ca.file("a.pem"), DAY, ca.now).unwrap();
    assert_eq!(changed(&mut changes).await, 1);
    assert_ne!(a.facts(), old);
    assert_eq!((value(&recorder, REFUSED), value(&recorder, LOADED)), (1.0, 1.0));
}

#[tokio::test]
async fn a_new_authority_is_believed_without_a_restart() {
    let (ours, other) = (Ca::new(), Ca::new());
    let (a, b) = (ours.identity("a"), other.identity("b"));
    let mut changes = [a.changes(), b.changes()];
    let both = [&ours, &other].map(|ca| std::fs::read_to_string(ca.file("ca.pem")).unwrap()).concat();
    for ca in [&ours, &other] {
        std::fs::write(ca.file("both.new"), &both).unwrap();
        std::fs::rename(ca.file("both.new"), ca.file("ca.pem")).unwrap();
    }
    for changes in &mut changes {
        assert_eq!(changed(changes).await, 1);
    }
    let met = meet(&listen(&a, only("b")), b.client(name("a"))).await;
    assert_eq!(met, (Ok(Some(name("b"))), Ok(Some(name("a")))));
}

#[tokio::test]
async fn files_behind_a_swapped_link_are_followed() {
    // As Kubernetes and cert-manager's driver replace a secret: all files at once, behind one link.
    let ca = Ca::new();
    let folder = |version: &str| {
        let made = ca.authority().issue("a", None, DAY, &ca.file(version), ca.now).unwrap();
        std::fs::rename(made.certificate, ca.file(version).join("tls.crt")).unwrap();
        std::fs::rename(made.key, ca.file(version).join("tls.key")).unwrap();
    };
    folder("one");
    folder("two");
    std::os::unix::fs::symlink("one", ca.file("data")).unwrap();
    let at = |file: &str| ca.file("data").join(file);
    let settings =
        IdentitySettings { certificate: at("tls.crt"), key: at("tls.key"), authorities: at("ca.pem") };
    let identity = Identity::open(&settings).unwrap();
    let (old, mut changes) = (identity.facts(), identity.changes());
    std::os::unix::fs::symlink("two", ca.file("new")).unwrap();
    std::fs::rename(ca.file("new"), ca.file("data")).unwrap();
    assert_eq!(changed(&mut changes).await, 1);
    assert_ne!(identity.facts(), old);
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_told_once_until_it_is_replaced() {
    let log = Log::start();
    let ca = Ca::at(SystemTime::now() - 2 * DAY);
    let identity = ca.identity("a");
    assert!(identity.expires() < SystemTime::now());
    until("it is told", || log.count(&["WARN", "a.pem has expired"]) == 1).await;
    let mut changes = identity.changes();
    ca.authority().renew(&ca.file("a.pem"), DAY, SystemTime::now()).unwrap();
    changed(&mut changes).await;
    assert!(identity.expires() > SystemTime::now());
    assert_eq!(log.count(&["WARN"]), 1, "nothing else is to be said");
    assert_eq!(log.count(&["INFO", "the identity was loaded", "spiffe://test.example/a"]), 2);
}

#[tokio::test]
async fn following_ends_with_the_identity() {
    let ca = Ca::new();
    let identity = ca.identity("a");
    let shared = Arc::downgrade(&identity.shared);
    drop(identity);
    until("the task is gone", || shared.upgrade().is_none()).await;
}

/// The process that was killed said nothing; the one after it does not know the connection, and says so.
#[tokio::test]
async fn the_next_process_ends_the_connections_of_one_that_was_killed() {
    let ca = Ca::new();
    let files = ca.issue("a");
    let b = ca.identity("b");
    let serve = |identity: &Identity, at: SocketAddr| {
        let socket = std::net::UdpSocket::bind(at).unwrap();
        let config = ServerConfig::with_crypto(identity.server(only("b")));
        let runtime = Arc::new(quinn::TokioRuntime);
        Endpoint::new(identity.endpoint_config().0, Some(config), socket, runtime).unwrap()
    };
    for known in [true, false] {
        // What is dropped with its runtime sends no more.
        let first =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (server, hold) = {
            let _first = first.enter();
            let identity = Identity::open(&files).unwrap();
            (serve(&identity, SocketAddr::from(([127, 0, 0, 1], 0))), identity)
        };
        let at = server.local_addr().unwrap();
        let accepting = first.spawn(async move { server.accept().await.unwrap().await.unwrap() });
        let client = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let config = ClientConfig::new(b.client(name("a")));
        let connection = client.connect_with(config, at, SERVER_NAME).unwrap().await.unwrap();
        let theirs = accepting.await.unwrap();
        std::thread::spawn(move || first.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        drop((theirs, hold));

        let next = if known { Identity::open(&files).unwrap() } else { ca.identity("c") };
        until("the socket of the first one is closed", || std::net::UdpSocket::bind(at).is_ok()).await;
        let server = serve(&next, at);
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&[0; 100]).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(2), connection.closed()).await;
        match known {
            true => assert!(matches!(ended, Ok(quinn::ConnectionError::Reset)), "{ended:?}"),
            false => assert!(ended.is_err(), "a reset of somebody else's was believed: {ended:?}"),
        }
        drop(server);
    }
}
