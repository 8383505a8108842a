//! Logins at PostgreSQL itself, and PostgreSQL's own client program as the one that logs in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod postgres;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use postgres::Postgres;
use qudag_filter_api::{Address, Host, HostPort};
use qudag_filter_common::Stream;
use qudag_filter_common::testing::{Names, PATIENCE};
use qudag_filter_db::auth::{
    AuthSettings, Begun, ClientTls, ClientTlsSettings, Identity, LoggedIn, Login, LoginError, Md5Hash,
    Method, Password, SecureStream, ServerTls, ServerTlsMode, ServerTlsSettings, TlsError, Users, Way,
    Within, accept_tls, authenticate, login,
};
use qudag_filter_db::wire::auth::Request;
use qudag_filter_db::wire::backend::Status;
use qudag_filter_db::wire::build;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const SECRET: &str = "gehe\u{308}im ";

/// A server with a user for each method, whose name it is; all have the password.
async fn server() -> Option<Postgres> {
    let server = Postgres::start().await?;
    let hba = server.folder.path().join("data/pg_hba.conf");
    let lines = "local all all trust\nhost all ann,trust,monitor all trust\nhost all password all password\n\
                 host all md5 all md5\nhost all scram,other all scram-sha-256\nhostssl all tls all scram-sha-256\n";
    fs::write(hba, lines).unwrap();
    let roles = format!(
        "SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD '{SECRET}'; \
         SET password_encryption = 'scram-sha-256'; CREATE ROLE trust LOGIN; \
         CREATE ROLE password LOGIN PASSWORD '{SECRET}'; CREATE ROLE scram LOGIN PASSWORD '{SECRET}'; \
         CREATE ROLE tls LOGIN PASSWORD '{SECRET}'; CREATE ROLE other LOGIN PASSWORD '{SECRET}'; \
         CREATE ROLE late LOGIN PASSWORD '{SECRET}' VALID UNTIL '2020-01-01'; SELECT pg_reload_conf()"
    );
    server.psql("127.0.0.1", server.port, &[], &roles).await.unwrap();
    // The new rules are in force when one of them is.
    let deadline = Instant::now() + PATIENCE;
    while server.psql("127.0.0.1", server.port, &[("PGUSER", "scram")], "SELECT").await.is_ok() {
        assert!(Instant::now() < deadline, "the rules are not read");
    }
    Some(server)
}

fn at(host: Host, port: u16) -> Address {
    Address::Tcp(HostPort { host, port })
}

fn localhost(port: u16) -> Address {
    at(Host::Name("localhost".into()), port)
}

fn client_tls(mode: ServerTlsMode, ca: Option<PathBuf>) -> ClientTls {
    ClientTls::open(&ServerTlsSettings { mode, ca }, Within::Postgres).unwrap()
}

fn password() -> Identity {
    Identity::Password(Password::new(SECRET.as_bytes()))
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

async fn log_in(
    server: &Address,
    port: u16,
    user: &str,
    identity: &Identity,
    tls: &ClientTls,
) -> Result<LoggedIn, LoginError> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let parameters: [(&[u8], &[u8]); 2] =
        [(b"application_name", b"kaffee"), (b"options", b"-c TimeZone=Asia/Tokyo")];
    let who = Login {
        user: user.as_bytes(),
        database: b"postgres",
        parameters: &parameters,
        identity,
        server,
        tls,
    };
    login(stream.into(), &who, soon()).await
}

/// What a server answers to a query that has one value.
async fn value(session: &mut LoggedIn, query: &str) -> String {
    let mut out = BytesMut::new();
    build::query(&mut out, query.as_bytes());
    session.stream.write_all(&out).await.unwrap();
    session.stream.flush().await.unwrap();
    let mut answer = BytesMut::new();
    while !answer.ends_with(&build::ready(Status::Idle)) {
        assert_ne!(session.stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    let row = answer.windows(4).position(|four| four[0] == b'D' && four[1..] == [0, 0, 0]).unwrap();
    let row = &answer[row..];
    let value = &row[11..1 + usize::from(row[4])];
    String::from_utf8(value.to_vec()).unwrap()
}

#[tokio::test]
async fn every_method_of_the_server_with_every_tls_and_every_secret() {
    let Some(postgres) = server().await else { return };
    let (port, server) = (postgres.port, localhost(postgres.port));
    let ca = Some(postgres.folder.path().join("server.crt"));
    let md5 = Identity::Md5(Md5Hash::of_password(SECRET.as_bytes(), b"md5"));
    for (mode, ca, encrypted) in [
        (ServerTlsMode::Disable, None, "f"),
        (ServerTlsMode::Prefer, None, "t"),
        (ServerTlsMode::Require, None, "t"),
        (ServerTlsMode::VerifyCa, ca.clone(), "t"),
        (ServerTlsMode::VerifyFull, ca.clone(), "t"),
    ] {
        let tls = client_tls(mode, ca);
        for (user, identity, right) in [
            ("trust", &Identity::Trust, true),
            ("trust", &password(), true),
            ("password", &password(), true),
            ("password", &md5, false),
            ("md5", &password(), true),
            ("md5", &md5, true),
            ("md5", &Identity::Trust, false),
            ("scram", &password(), true),
            ("scram", &md5, false),
            ("scram", &Identity::Trust, false),
        ] {
            // The rest is as in the modes beside it.
            if matches!(mode, ServerTlsMode::Require | ServerTlsMode::VerifyCa) && user != "scram" {
                continue;
            }
            match log_in(&server, port, user, identity, &tls).await {
                Ok(mut session) => {
                    assert!(right, "{mode:?} {user}");
                    assert_eq!(session.parameters.get(b"TimeZone"), Some(&b"Asia/Tokyo"[..]));
                    assert_eq!(session.parameters.get(b"application_name"), Some(&b"kaffee"[..]));
                    assert!(session.process != 0 && session.secret.len() == 4 && session.rest.is_empty());
                    let query = "SELECT concat(ssl, current_user, pg_backend_pid()) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
                    let expected = format!("{encrypted}{user}{}", session.process);
                    assert_eq!(value(&mut session, query).await, expected, "{mode:?} {user}");
                }
                Err(LoginError::Credentials(_)) => assert!(!right, "{mode:?} {user}"),
                Err(error) => panic!("{mode:?} {user}: {error}"),
            }
        }
        let wrong = Identity::Password(Password::new(b"falsch"));
        for user in ["password", "md5", "scram", "nobody"] {
            let Err(LoginError::Refused { sqlstate, response }) =
                log_in(&server, port, user, &wrong, &tls).await
            else {
                panic!("{mode:?} {user}")
            };
            assert_eq!(sqlstate, if user == "nobody" { "28000" } else { "28P01" });
            assert!(response.starts_with(b"E") && response.ends_with(b"\0\0"));
            assert!(!String::from_utf8_lossy(&response).contains("falsch"));
        }
    }
}

#[tokio::test]
async fn a_server_is_believed_by_its_certificate_and_name() {
    let Some(postgres) = server().await else { return };
    let port = postgres.port;
    let ca = Some(postgres.folder.path().join("server.crt"));
    let by_name = localhost(port);
    let by_address = at(Host::Ip([127, 0, 0, 1].into()), port);
    let full = client_tls(ServerTlsMode::VerifyFull, ca.clone());
    let only_ca = client_tls(ServerTlsMode::VerifyCa, ca);
    assert!(log_in(&by_address, port, "scram", &password(), &only_ca).await.is_ok());
    let refused = log_in(&by_address, port, "scram", &password(), &full).await;
    assert!(matches!(refused, Err(LoginError::Tls(TlsError::Io(_)))), "{refused:?}");
    // Another authority, and then the right one in its place.
    let file = postgres.folder.path().join("authority.pem");
    let other = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    fs::write(&file, other.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let followed = client_tls(ServerTlsMode::VerifyFull, Some(file.clone()));
    let refused = log_in(&by_name, port, "scram", &password(), &followed).await;
    assert!(matches!(refused, Err(LoginError::Tls(TlsError::Io(_)))), "{refused:?}");
    fs::copy(postgres.folder.path().join("server.crt"), &file).unwrap();
    let deadline = soon();
    while log_in(&by_name, port, "scram", &password(), &followed).await.is_err() {
        assert!(Instant::now() < deadline, "the new authority is not believed");
    }
    // A user that has to have TLS, and a Unix socket, which has none.
    let plain = client_tls(ServerTlsMode::Disable, None);
    let Err(LoginError::Refused { sqlstate, .. }) = log_in(&by_name, port, "tls", &password(), &plain).await
    else {
        panic!("without TLS")
    };
    assert_eq!(sqlstate, "28000");
    assert!(log_in(&by_name, port, "tls", &password(), &full).await.is_ok());
    let path = postgres.folder.path().join(format!(".s.PGSQL.{port}"));
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let who = Login {
        user: b"scram",
        database: b"postgres",
        parameters: &[],
        identity: &Identity::Trust,
        server: &Address::Unix(path),
        tls: &full,
    };
    assert!(
        !login(Stream::Unix(stream.try_into().unwrap()), &who, soon()).await.unwrap().stream.is_encrypted()
    );
    let nowhere = Login { database: b"nowhere", server: &by_name, tls: &plain, ..who };
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let Err(LoginError::Refused { sqlstate, response }) =
        login(stream.into(), &Login { user: b"trust", ..nowhere }, soon()).await
    else {
        panic!("a database that is none")
    };
    assert!(sqlstate == "3D000" && String::from_utf8_lossy(&response).contains("nowhere"));
}

/// The least listener: clients prove themselves to it, and it logs in as they at the server.
struct Front {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

struct Doors {
    users: Users,
    tls: Option<ServerTls>,
    server: Address,
    to_server: Arc<ClientTls>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Front {
    async fn start(postgres: &Postgres, auth: &AuthSettings, tls: Option<&ClientTlsSettings>) -> Self {
        let to_server = Arc::new(client_tls(ServerTlsMode::Prefer, None));
        let server = at(Host::Ip([127, 0, 0, 1].into()), postgres.port);
        let way = Way {
            server: server.clone(),
            resolve: Arc::new(Names::default()),
            tls: Arc::clone(&to_server),
            connect_timeout: PATIENCE,
        };
        let users = Users::open(auth, way).unwrap();
        let tls = tls.map(|tls| ServerTls::open(tls, Within::Postgres).unwrap());
        let log = Arc::default();
        let doors = Arc::new(Doors { users, tls, server, to_server, log: Arc::clone(&log) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let doors = Arc::clone(&doors);
                tokio::spawn(async move { doors.serve(stream.into()).await });
            }
        });
        Self { port, log }
    }
}

/// A packet of a start-up, without its length.
async fn packet(stream: &mut (impl AsyncRead + Unpin), first: u8) -> io::Result<Vec<u8>> {
    let mut length = [first, 0, 0, 0];
    stream.read_exact(&mut length[1..]).await?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

impl Doors {
    /// The stream and the StartupMessage on it.
    async fn enter(&self, mut stream: Stream) -> Result<(SecureStream, Vec<u8>), TlsError> {
        let (tls, deadline) = (self.tls.as_ref(), soon());
        loop {
            let first = stream.read_u8().await?;
            let read = BytesMut::from(&[first][..]);
            let accepted = if first == 0x16 {
                accept_tls(stream, read, Begun::Direct, tls.unwrap(), deadline).await
            } else {
                let packet = packet(&mut stream, first).await?;
                match (packet.len(), packet[3], tls) {
                    (4, 0x2f, Some(tls)) => {
                        stream.write_all(b"S").await?;
                        accept_tls(stream, BytesMut::new(), Begun::Requested, tls, deadline).await
                    }
                    (4, _, _) => {
                        stream.write_all(b"N").await?;
                        continue;
                    }
                    _ => return Ok((stream.into(), packet)),
                }
            };
            let mut accepted = accepted?;
            let first = accepted.read_u8().await?;
            let packet = packet(&mut accepted, first).await?;
            return Ok((accepted, packet));
        }
    }

    async fn serve(&self, stream: Stream) {
        match self.enter(stream).await {
            Ok((stream, packet)) => self.session(stream, &packet).await,
            Err(error) => self.say(error.to_string()),
        }
    }

    fn say(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }

    async fn session(&self, mut stream: SecureStream, packet: &[u8]) {
        let mut words =
            packet[4..].split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.by_ref().find(|word| word == "user");
        let user = words.next().unwrap();
        let mut out = BytesMut::new();
        let mut inbox = BytesMut::new();
        let proved = authenticate(&mut stream, &mut inbox, user.as_bytes(), &self.users, soon()).await;
        let identity = match proved {
            Ok(identity) => identity,
            Err(error) => {
                self.say(error.to_string());
                error.write(&mut out);
                let _ = stream.write_all(&out).await;
                let _ = stream.shutdown().await;
                return;
            }
        };
        assert!(inbox.is_empty());
        self.say(format!("{identity:?}"));
        let Address::Tcp(HostPort { port, .. }) = self.server else { panic!() };
        match log_in(&self.server, port, &user, &identity, &self.to_server).await {
            Ok(mut session) => {
                Request::Ok.write(&mut out);
                session.parameters.iter().for_each(|(name, value)| build::parameter(&mut out, name, value));
                build::key_data(&mut out, session.process, &session.secret);
                out.extend(build::ready(Status::Idle));
                stream.write_all(&out).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut session.stream).await;
            }
            Err(LoginError::Refused { response, .. }) => {
                let _ = stream.write_all(&response).await;
                let _ = stream.shutdown().await;
            }
            Err(error) => self.say(error.to_string()),
        }
    }
}

const WHO: &str = "SELECT current_user";

impl Front {
    /// What `psql` gets with a user's password.
    async fn psql(
        &self,
        postgres: &Postgres,
        user: &str,
        password: &str,
        tls: &[(&str, &str)],
    ) -> Result<String, String> {
        let mut settings = vec![("PGUSER", user), ("PGPASSWORD", password), ("PGHOSTADDR", "127.0.0.1")];
        settings.extend(tls);
        postgres.psql("localhost", self.port, &settings, WHO).await
    }

    fn last(&self) -> String {
        self.log.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

/// A certificate for `localhost`, in files.
fn certificate(folder: &Path, algorithm: &'static rcgen::SignatureAlgorithm) -> ClientTlsSettings {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let made = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (certificate, file) = (folder.join("front.pem"), folder.join("front.key"));
    fs::write(&certificate, made.pem()).unwrap();
    fs::write(&file, key.serialize_pem()).unwrap();
    ClientTlsSettings { certificate, key: file }
}

fn asking(method: Method) -> AuthSettings {
    AuthSettings { method, query_user: Some("monitor".to_owned()), ..AuthSettings::default() }
}

/// `monitor` may read what it asks for.
async fn allow(postgres: &Postgres) {
    let sql = "CREATE ROLE monitor LOGIN SUPERUSER";
    postgres.psql("127.0.0.1", postgres.port, &[], sql).await.unwrap();
}

const PLAIN: &[(&str, &str)] = &[("PGSSLMODE", "disable")];

#[tokio::test(flavor = "multi_thread")]
async fn psql_proves_itself_and_the_server_is_logged_in_at_without_its_password() {
    let Some(postgres) = server().await else { return };
    allow(&postgres).await;
    let folder = tempfile::tempdir().unwrap();
    let tls = certificate(folder.path(), &rcgen::PKCS_ECDSA_P384_SHA384);
    let front = Front::start(&postgres, &asking(Method::Scram), Some(&tls)).await;
    let root = tls.certificate.display().to_string();
    let bound = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root), ("PGCHANNELBINDING", "require")];
    let unbound = [("PGSSLMODE", "require"), ("PGCHANNELBINDING", "disable")];
    for settings in [PLAIN, &bound, &unbound] {
        let who = front.psql(&postgres, "scram", SECRET, settings).await;
        assert!(who.as_ref().is_ok_and(|who| who.contains("scram")), "{who:?}");
        assert_eq!(front.last(), "Key(ClientKey { .. })");
        // MD5 cannot be bound to the channel, and psql knows.
        let who = front.psql(&postgres, "md5", SECRET, settings).await;
        assert_eq!(who.is_ok(), settings.len() != bound.len(), "{who:?}");
        for (user, password) in [("scram", "falsch"), ("nobody", SECRET), ("trust", SECRET), ("late", SECRET)]
        {
            let error = front.psql(&postgres, user, password, settings).await.unwrap_err();
            assert!(
                error.contains(&format!("FATAL:  password authentication failed for user \"{user}\"")),
                "{error}"
            );
        }
        if settings.len() != bound.len() {
            assert!(front.psql(&postgres, "md5", "falsch", settings).await.is_err());
        }
    }
    let clear = [("PGSSLMODE", "disable"), ("PGCHANNELBINDING", "require")];
    assert!(front.psql(&postgres, "scram", SECRET, &clear).await.is_err());
    // Another key and certificate in the same files.
    let tls = certificate(folder.path(), &rcgen::PKCS_ECDSA_P256_SHA256);
    let deadline = soon();
    while front.psql(&postgres, "scram", SECRET, &bound).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
    }
    // No hash is defined for this one, so that there is nothing to bind to.
    fs::remove_file(&tls.certificate).unwrap();
    certificate(folder.path(), &rcgen::PKCS_ED25519);
    let unbound = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &*root)];
    while front.psql(&postgres, "scram", SECRET, &unbound).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
    }
    assert!(front.psql(&postgres, "scram", SECRET, &bound).await.is_err());
    let count = "SELECT concat('n=', count(*)) FROM pg_stat_activity WHERE usename = 'monitor'";
    let asking = postgres.psql("127.0.0.1", postgres.port, &[], count).await.unwrap();
    assert!(asking.contains("n=1"), "one connection asks for all users: {asking}");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_change_and_connections_end() {
    let Some(postgres) = server().await else { return };
    allow(&postgres).await;
    let scram = Front::start(&postgres, &asking(Method::Scram), None).await;
    let password = Front::start(&postgres, &asking(Method::Password), None).await;
    for front in [&scram, &password] {
        for user in ["scram", "md5", "other"] {
            front.psql(&postgres, user, SECRET, PLAIN).await.unwrap();
            assert!(front.psql(&postgres, user, "falsch", PLAIN).await.is_err());
        }
    }
    assert_eq!(
        password.psql(&postgres, "nobody", SECRET, PLAIN).await.map(drop).unwrap_err().lines().count(),
        1
    );
    let change =
        "ALTER ROLE scram PASSWORD 'neu'; SET password_encryption = 'md5'; ALTER ROLE md5 PASSWORD 'neu'";
    postgres.psql("127.0.0.1", postgres.port, &[], change).await.unwrap();
    for user in ["scram", "md5"] {
        password.psql(&postgres, user, "neu", PLAIN).await.unwrap();
    }
    scram.psql(&postgres, "md5", "neu", PLAIN).await.unwrap();
    // The salt is the old one in the first exchange.
    assert!(scram.psql(&postgres, "scram", "neu", PLAIN).await.is_err());
    scram.psql(&postgres, "scram", "neu", PLAIN).await.unwrap();
    // The connection that asks is ended by the server.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'monitor'";
    postgres.psql("127.0.0.1", postgres.port, &[], end).await.unwrap();
    scram.psql(&postgres, "tls", "falsch", PLAIN).await.unwrap_err();
    scram.psql(&postgres, "late", SECRET, PLAIN).await.unwrap_err();
    assert_eq!(scram.last(), "password authentication failed for user \"late\"");
    // What cannot be asked is not the user's fault.
    postgres.psql("127.0.0.1", postgres.port, &[], "ALTER ROLE monitor NOSUPERUSER").await.unwrap();
    let error = scram.psql(&postgres, "trust", SECRET, PLAIN).await.unwrap_err();
    assert!(error.contains("the user cannot be looked up") && error.contains("HINT:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_users_is_enough_and_is_followed() {
    let Some(postgres) = server().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let query = "SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'";
    let verifier = postgres.psql("127.0.0.1", postgres.port, &[], query).await.unwrap();
    let verifier = verifier.lines().find(|line| line.contains("SCRAM")).unwrap().trim().to_owned();
    let list = |other: &str| {
        let text = format!(
            "\"scram\" \"{verifier}\"\n\"other\" \"{other}\"\n\"md5\" \"{SECRET}\"\n\"password\" \"{SECRET}\"\n"
        );
        fs::write(&file, text).unwrap();
    };
    list(SECRET);
    let settings = |method| AuthSettings { method, users: Some(file.clone()), ..AuthSettings::default() };
    let front = Front::start(&postgres, &settings(Method::Scram), None).await;
    for user in ["scram", "other", "md5", "password"] {
        front.psql(&postgres, user, SECRET, PLAIN).await.unwrap();
        assert_eq!(
            front.last(),
            if user == "scram" { "Key(ClientKey { .. })" } else { "Password(Password)" }
        );
        assert!(front.psql(&postgres, user, "falsch", PLAIN).await.is_err());
    }
    assert!(front.psql(&postgres, "tls", SECRET, PLAIN).await.is_err());
    let trusting = Front::start(&postgres, &settings(Method::Trust), None).await;
    trusting.psql(&postgres, "other", "", PLAIN).await.unwrap();
    trusting.psql(&postgres, "trust", "", PLAIN).await.unwrap();
    assert_eq!(trusting.last(), "Trust");
    // A broken file changes nothing; a right one does.
    fs::write(&file, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    front.psql(&postgres, "other", SECRET, PLAIN).await.unwrap();
    list("neu");
    let deadline = soon();
    while front.psql(&postgres, "other", SECRET, PLAIN).await.is_ok() {
        assert!(Instant::now() < deadline, "the file is not read again");
    }
    let change = "ALTER ROLE other PASSWORD 'neu'";
    postgres.psql("127.0.0.1", postgres.port, &[], change).await.unwrap();
    front.psql(&postgres, "other", "neu", PLAIN).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_is_asked_for_many_clients() {
    let Some(postgres) = server().await else { return };
    allow(&postgres).await;
    postgres.psql("127.0.0.1", postgres.port, &[], "CREATE TABLE asked (who name)").await.unwrap();
    let query = "WITH noted AS (INSERT INTO asked VALUES ($1)) SELECT rolname, rolpassword FROM pg_authid, \
                 pg_sleep(0.5) WHERE rolname = $1";
    let front =
        Front::start(&postgres, &AuthSettings { query: query.to_owned(), ..asking(Method::Scram) }, None)
            .await;
    let at_once = futures_util::future::join_all(
        ["scram", "scram", "scram", "nobody", "nobody", "scram"]
            .map(|user| front.psql(&postgres, user, SECRET, PLAIN)),
    );
    assert_eq!(at_once.await.iter().filter(|who| who.is_ok()).count(), 4);
    front.psql(&postgres, "scram", SECRET, PLAIN).await.unwrap();
    let count = "SELECT concat('n=', count(*), ' of ', count(DISTINCT who)) FROM asked WHERE who = 'scram'";
    let asked = postgres.psql("127.0.0.1", postgres.port, &[], count).await.unwrap();
    assert!(asked.contains("n=1 of 1"), "{asked}");
}
