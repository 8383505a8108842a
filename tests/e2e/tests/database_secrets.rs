//! No password and no value that passes through the sidecar is in anything that it says or keeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests report by panicking")]

use std::path::Path;
use std::time::Duration;

use qudag_e2e::postgres::{Link, Login, Stand, Way};
use qudag_kit::{Postgres, eventually, skip};
use serde_json::Value;

const PASSWORD: &str = "hush-1f83a-password";
/// One that is not right.
const WRONG: &str = "hush-2c90b-wrong";
/// One that is set through the sidecar.
const NEXT: &str = "hush-3d71c-next";
/// What queries hold.
const VALUES: [&str; 5] = [
    "hush-4e52d-literal",
    "hush-5f33e-parameter",
    "hush-6a14f-copied",
    "hush-7b05a-in-an-error",
    "hush-8c96b-in-a-notice",
];
const USER: &str = "keeper_of_secrets";
const PATIENCE: Duration = Duration::from_secs(20);

fn login(password: &str) -> Login {
    Login { user: USER.into(), password: password.into(), ..Login::default() }
}

/// A session that does everything with the secrets, and what its client was told of them that it did not ask to be told.
async fn session(stand: &Stand) -> Vec<String> {
    let [literal, parameter, copied, in_error, in_notice] = VALUES;
    let mut link = Link::log_in(stand.door, &login(PASSWORD)).await.unwrap();
    // What the query cache keeps of pooled sessions, and gives again.
    for _ in 0..2 {
        link.query(&format!("select '{literal}' as cached"));
        assert_eq!(link.ask().await.unwrap().rows, [[Some(literal.into())]]);
        link.parse("", "select $1::text as cached");
        link.bind("", "", &[parameter]);
        link.execute("", 0);
        link.sync();
        assert_eq!(link.ask().await.unwrap().rows, [[Some(parameter.into())]]);
    }
    link.query(&format!("create temp table kept (text text); insert into kept values ('{literal}')"));
    assert!(link.ask().await.unwrap().errors.is_empty());
    link.parse("named", "select text from kept where text <> $1");
    link.bind("", "named", &[parameter]);
    link.execute("", 0);
    link.sync();
    let batch = link.ask().await.unwrap();
    assert_eq!(batch.rows, [[Some(literal.into())]]);
    link.query("copy kept from stdin");
    link.copy_data(&format!("{copied}\n"));
    link.copy_done();
    assert_eq!(link.ask().await.unwrap().tags, ["COPY 1"]);
    link.query(&format!("select '{in_error}'::int"));
    assert_eq!(link.ask().await.unwrap().errors.len(), 1);
    link.query(&format!("do $$ begin raise notice '{in_notice}'; end $$"));
    assert_eq!(link.ask().await.unwrap().notices.len(), 1);
    // Rolled back, since a password that is set again has another salt.
    link.query(&format!("begin; alter role {USER} password '{NEXT}'; rollback"));
    assert!(link.ask().await.unwrap().errors.is_empty());
    // A statement that is not one, and a session that breaks the protocol.
    link.query(&format!("selekt '{literal}'"));
    let wrong_syntax = link.ask().await.unwrap();
    link.query("select 1");
    link.out.extend_from_slice(b"\xffhush-");
    let broken = match link.ask().await {
        Ok(_) => link.batch().await.err(),
        Err(lost) => Some(lost),
    };
    let refused = Link::log_in(stand.door, &login(WRONG)).await.err().expect("a wrong password");
    vec![
        format!("{:?}", wrong_syntax.errors.first().map(|fault| &fault.hint)),
        format!("{broken:?}"),
        refused.0,
    ]
}

/// The text of every file below a folder.
fn files(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, into);
        } else if let Ok(bytes) = std::fs::read(&path) {
            into.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
}

async fn nothing_is_told(way: Way) {
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let role = format!("create role {USER} login password '{PASSWORD}'");
    let stand =
        Stand::start_with(way, &role, "telemetry: { log: { level: trace }, flows: { db: all } }\n").await;
    let sidecar = &stand.sidecar;
    if way != Way::PassThrough {
        let rules =
            r#"filters.db.db_query_cache.rules=[{"name": "all", "pattern": "*as cached", "ttl": "60s"}]"#;
        sidecar.cli(&["set", rules]).await.ok();
        sidecar.cli(&["filters", "enable", "db_query_cache"]).await.ok();
    }
    let dir = tempfile::tempdir().unwrap();
    let tap = sidecar.command(&["tap", "db", "--json", "--for", "60s"]).named("tap").spawn(dir.path());
    let transactions = ["tap", "db", "--transactions", "--json", "--for", "60s"];
    let transactions = sidecar.command(&transactions).named("transactions").spawn(dir.path());
    // A tap that has begun shows the sessions that end from then on.
    let mut said = Vec::new();
    let shown = async || {
        said.extend(session(&stand).await);
        tap.log().contains(USER).then_some(())
    };
    eventually(PATIENCE, "the tap shows a session", shown).await;
    if way != Way::PassThrough {
        let cached = async || {
            said.extend(session(&stand).await);
            let shown = sidecar.admin("GET", "/db/cache", Value::Null).await.ok();
            let count = |key: &str| shown.get(key).and_then(Value::as_u64).unwrap();
            let seen = count("hits") >= 2 && transactions.log().contains("cached");
            seen.then(|| assert_eq!(count("entries"), 2))
        };
        eventually(PATIENCE, "replies come from the cache, and the tap shows it", cached).await;
    }
    let logged = async || sidecar.log().contains(USER).then_some(());
    eventually(PATIENCE, "the log shows a session", logged).await;

    let mut places = vec![
        ("the log".to_owned(), sidecar.log()),
        ("the tap".to_owned(), tap.log()),
        ("the tap of transactions".to_owned(), transactions.log()),
        ("errors to clients".to_owned(), said.join("\n")),
    ];
    for route in
        ["/metrics", "/status", "/config", "/filters", "/version", "/cache", "/readyz", "/db", "/db/cache"]
    {
        let answer = sidecar.admin("GET", route, Value::Null).await;
        places.push((route.to_owned(), answer.body.to_string()));
    }
    for command in [
        &["status"][..],
        &["config", "show", "--origin"],
        &["filters", "list"],
        &["check"],
        &["db", "statements"],
        &["db", "cache"],
        &["db", "cache", "flush", "--rule", "all"],
    ] {
        let printed = sidecar.cli(command).await;
        places.push((command.join(" "), printed.stdout + &printed.stderr));
    }
    for file in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{file}", sidecar.pid());
        places.push((path.clone(), String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()));
    }
    files(sidecar.dir(), &mut places);
    println!("{way:?}: looked at {} places", places.len());

    let mut secrets = vec![PASSWORD.to_owned(), WRONG.to_owned(), NEXT.to_owned(), "hush-".to_owned()];
    // As bytes are printed, and in hexadecimal.
    secrets.extend(["104, 117, 115, 104, 45".to_owned(), "687573682d".to_owned()]);
    // Not what stands for the password either: salt, stored key and server key.
    let verifier = stand.verifier(USER);
    let parts = verifier.rsplit_once('$').unwrap().1.split(':').map(str::to_owned);
    secrets.extend(parts.chain(verifier.split(['$', ':']).filter(|part| part.len() > 20).map(str::to_owned)));
    assert!(secrets.len() >= 9, "{secrets:?}");
    for (place, text) in &places {
        for secret in &secrets {
            let at = text.find(secret.as_str());
            let around = at.map(|at| text.get(at.saturating_sub(80)..(at + 80).min(text.len())));
            assert!(at.is_none(), "{secret} is in {place}: {around:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passed_through_sessions_are_not_told_of() {
    nothing_is_told(Way::PassThrough).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_sessions_are_not_told_of() {
    nothing_is_told(Way::Pooled(4)).await;
}
