//! Redis itself behind the sidecar, with its own client programs and raw ones in front.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

mod redis_server;

use std::process::Stdio;

use qudag_filter_common::testing::{PATIENCE, metric, nowhere, until};
use redis_server::{Raw, Server, Sidecar, command, connections, line, listener, passed, pooled};
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

const MANY: &[&str] = &[
    "SET a 1",
    "GET a",
    "INCR a",
    "GET missing",
    "LPUSH l a b c",
    "LRANGE l 0 -1",
    "HSET h a 1 b 2",
    "HGETALL h",
    "ZADD z 1.5 a",
    "ZSCORE z a",
    "SADD s a",
    "SMEMBERS s",
    "INCR l",
    "NONSENSE x",
    "GET",
    "ECHO hello",
    "TYPE h",
    "EXISTS a l",
    "EVAL return{1,{2,'x'},{err='E'}} 0",
    "COMMAND COUNT",
    "OBJECT ENCODING a",
    "XADD x 1-1 a b",
    "XRANGE x - +",
    "XREAD STREAMS x 0",
    "MULTI",
    "GET a",
    "INCR a",
    "EXEC",
    "EXEC",
    "SELECT 3",
    "GET a",
    "SET a three",
    "SELECT 0",
    "GET a",
    "SELECT 99",
    "GET a",
    "SELECT x",
    "CLIENT SETNAME me",
    "CLIENT GETNAME",
    "CLIENT SETNAME",
    "MULTI",
    "SELECT 3",
    "EXEC",
    "GET a",
    "DEBUG PROTOCOL attrib",
    "PING",
    "FLUSHALL",
    "RESET",
    "QUIT",
];

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_as_direct_in_both_protocols() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_passed, passed) = passed(&server).await;
    let (_pooled, pooled) = pooled(&server, json!({ "size": 2 }), json!({})).await;
    for first in [None, Some("HELLO 3"), Some("HELLO 2"), Some("HELLO 3 SETNAME me")] {
        let mut direct = server.direct().await;
        let mut wanted = Vec::new();
        for words in first.iter().chain(MANY) {
            let said = direct.try_ask(words).await.unwrap();
            // The number of the connection is in it.
            wanted.push(
                if words.starts_with("HELLO") { said.len() / 8 * 8 } else { 0 }.to_string() + &said[..0],
            );
            if !words.starts_with("HELLO") {
                wanted.pop();
                wanted.push(said);
            }
        }
        for at in [passed, pooled] {
            let mut client = Raw::to(at).await;
            for (words, wanted) in first.iter().chain(MANY).zip(&wanted) {
                let said = client.ask(words).await;
                if words.starts_with("HELLO") {
                    // The number of the connection is in it.
                    assert_eq!(said.starts_with('%'), words.starts_with("HELLO 3"), "{said}");
                } else {
                    assert_eq!(said, *wanted, "{words} after {first:?}");
                }
            }
            assert_eq!(client.try_next().await, None, "closed after QUIT");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_few_connections_in_order() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_sidecar, at) = pooled(&server, json!({ "size": 3 }), json!({})).await;
    let clients = (0..40).map(|client| {
        tokio::spawn(async move {
            let mut raw = Raw::to(at).await;
            for turn in 0..20 {
                let key = format!("k{client}");
                let batch: Vec<u8> = (0..10)
                    .flat_map(|step| {
                        [line(&format!("SET {key} {turn}.{step}")), line(&format!("GET {key}"))].concat()
                    })
                    .collect();
                raw.send(&batch).await;
                for step in 0..10 {
                    assert_eq!(raw.next().await, "+OK");
                    let value = format!("{turn}.{step}");
                    assert_eq!(raw.next().await, format!("${}\r\n{value}", value.len()));
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!((1..=3).contains(&connections(&server).await), "{}", connections(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_keeps_its_connection_and_others_go_on() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_sidecar, at) = pooled(&server, json!({ "size": 2 }), json!({})).await;
    let (mut one, mut two) = (Raw::to(at).await, Raw::to(at).await);
    assert_eq!(one.ask("WATCH a").await, "+OK");
    assert_eq!(one.ask("GET a").await, "$-1");
    for turn in 0..20 {
        assert_eq!(two.ask(&format!("SET a {turn}")).await, "+OK");
    }
    assert_eq!(one.ask("MULTI").await, "+OK");
    assert_eq!(one.ask("SET a mine").await, "+QUEUED");
    assert_eq!(two.ask("GET a").await, "$2\r\n19");
    assert_eq!(one.ask("EXEC").await, "*-1", "another client has changed what was watched");
    assert_eq!(one.ask("GET a").await, "$2\r\n19");
    // All at once.
    one.send(&[line("MULTI"), line("INCR n"), line("INCR n"), line("EXEC"), line("GET n")].concat()).await;
    let mut said = Vec::new();
    for _ in 0..5 {
        said.push(one.next().await);
    }
    assert_eq!(said, ["+OK", "+QUEUED", "+QUEUED", "*2\r\n:1\r\n:2", "$1\r\n2"]);
    // A client that goes in its transaction leaves nothing of it behind.
    assert_eq!(two.ask("MULTI").await, "+OK");
    assert_eq!(two.ask("SET n 100").await, "+QUEUED");
    drop(two);
    for _ in 0..10 {
        assert_eq!(Raw::to(at).await.ask("GET n").await, "$1\r\n2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_and_blocked_clients_have_connections_of_their_own() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_sidecar, at) = pooled(&server, json!({ "size": 1, "max_own": 3 }), json!({})).await;
    let (mut old, mut new, mut blocked) = (Raw::to(at).await, Raw::to(at).await, Raw::to(at).await);
    assert!(new.ask("HELLO 3").await.starts_with('%'));
    assert!(old.ask("SUBSCRIBE c").await.starts_with("*3\r\n$9\r\nsubscribe"));
    assert!(new.ask("SUBSCRIBE c").await.starts_with(">3\r\n$9\r\nsubscribe"));
    blocked.send(&line("BLPOP queue 0")).await;
    let mut other = Raw::to(at).await;
    until("three own", || metric("qudag_sidecar_redis_servers", &["of=\"session\""]) == 3.0).await;
    let refused = other.ask("BRPOP queue 0").await;
    assert!(refused.starts_with("-LOADING qudag-sidecar: overloaded: too many sessions with"), "{refused}");
    assert_eq!(other.ask("PUBLISH c hello").await, ":2");
    assert_eq!(old.next().await, "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello");
    assert_eq!(new.next().await, ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello");
    assert_eq!(new.ask("PING").await, "+PONG");
    assert_eq!(other.ask("RPUSH queue x").await, ":1");
    assert_eq!(blocked.next().await, "*2\r\n$5\r\nqueue\r\n$1\r\nx");
    drop((old, new, blocked));
    until("none own", || metric("qudag_sidecar_redis_servers", &["of=\"session\""]) == 0.0).await;
    // Nothing is said of writes that went elsewhere.
    other.send(&[line("SET a 1"), line("WAIT 0 10"), line("SET a 2"), line("WAIT 0 10")].concat()).await;
    let said = [other.next().await, other.next().await, other.next().await, other.next().await];
    assert_eq!(said, ["+OK", ":0", "+OK", ":0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_decides_who_is_let_in() {
    let Some(server) =
        Server::start(&["--requirepass", "sesame", "--user", "ann", "on", ">open", "~a*", "+@all"]).await
    else {
        return;
    };
    let (_sidecar, at) = pooled(&server, json!({}), json!({})).await;
    let mut client = Raw::to(at).await;
    assert!(client.ask("GET a").await.starts_with("-NOAUTH"));
    assert!(client.ask("HELLO 3").await.starts_with("-NOAUTH"));
    assert!(client.ask("AUTH wrong").await.starts_with("-WRONGPASS"));
    assert!(client.ask("GET a").await.starts_with("-NOAUTH"));
    assert!(client.ask("AUTH").await.starts_with("-ERR wrong number"));
    assert_eq!(client.ask("AUTH sesame").await, "+OK");
    assert_eq!(client.ask("SET b 1").await, "+OK");
    assert!(client.ask("HELLO 3 AUTH ann open").await.starts_with('%'));
    assert!(client.ask("GET b").await.starts_with("-NOPERM"));
    assert_eq!(client.ask("GET a").await, "_");
    assert!(client.ask("AUTH ann closed").await.starts_with("-WRONGPASS"));
    assert_eq!(client.ask("ACL WHOAMI").await, "$3\r\nann");
    // Others have nothing of it.
    let mut other = Raw::to(at).await;
    assert!(other.ask("GET a").await.starts_with("-NOAUTH"));
    assert_eq!(client.ask("RESET").await, "+RESET");
    assert!(client.ask("GET a").await.starts_with("-NOAUTH"));
    // A password that was changed is not good any more.
    let mut admin = Raw::to(at).await;
    assert_eq!(admin.ask("AUTH sesame").await, "+OK");
    assert_eq!(admin.ask("ACL SETUSER ann >other <open").await, "+OK");
    assert!(other.ask("AUTH ann open").await.starts_with("-WRONGPASS"));
    assert_eq!(other.ask("AUTH ann other").await, "+OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_logs_in_for_its_clients() {
    let Some(server) = Server::start(&["--requirepass", "sesame"]).await else { return };
    let password = server.folder.path().join("password");
    std::fs::write(&password, "sesame\n").unwrap();
    let mut listener = listener(&server);
    listener["password"] = json!({ "file": password });
    let sidecar = Sidecar::start(nowhere(), listener, json!({ "redis_pool": { "enabled": true } })).await;
    assert_eq!(Raw::to(sidecar.tcp()).await.ask("SET a 1").await, "+OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_overload_every_command_gets_its_error_and_the_connection_stays() {
    let Some(server) = Server::start(&[]).await else { return };
    let pressure = json!({ "redis_backpressure": { "enabled": true, "wait": "100ms" } });
    let (_sidecar, at) = pooled(&server, json!({ "size": 1 }), pressure).await;
    let (mut slow, mut client, mut torn) = (Raw::to(at).await, Raw::to(at).await, Raw::to(at).await);
    // Other sessions are there already.
    assert_eq!((client.ask("PING").await, torn.ask("PING").await), ("+PONG".into(), "+PONG".into()));
    assert_eq!(slow.ask("MULTI").await, "+OK");
    client.send(&[line("MULTI"), line("SET a 1"), line("EXEC"), line("GET a")].concat()).await;
    torn.send(&line("MULTI")).await;
    for _ in 0..4 {
        let said = client.next().await;
        assert!(said.starts_with("-LOADING qudag-sidecar: overloaded (late)"), "{said}");
        assert!(said.contains("; retry after ") && said.ends_with(" ms"), "{said}");
    }
    // A transaction that was refused and not finished: what follows it must not be carried out outside of it.
    assert!(torn.next().await.starts_with("-LOADING"));
    assert_eq!(torn.try_next().await, None);
    assert_eq!(slow.ask("DISCARD").await, "+OK");
    assert_eq!(client.ask("GET a").await, "$-1");
    // A long command that is refused is read to its end.
    assert_eq!(slow.ask("MULTI").await, "+OK");
    let long = command(&[b"SET", b"a", &vec![b'x'; 1 << 20]]);
    client.send(&[&long[..], &line("PING")].concat()).await;
    assert!(client.next().await.starts_with("-LOADING"));
    assert!(client.next().await.starts_with("-LOADING"));
    drop(slow);
    assert_eq!(client.ask("PING").await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_values_pass_both_ways_and_a_server_that_comes_back_is_used() {
    let Some(mut server) = Server::start(&[]).await else { return };
    let (_sidecar, at) = pooled(&server, json!({ "size": 2, "wait": "5s" }), json!({})).await;
    let mut client = Raw::to(at).await;
    let value: Vec<u8> =
        (0..20_u32 << 20).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let set = command(&[b"SET", b"long", &value]);
    // Much of the long one is there before the short one is answered.
    client.send(&[&line("SET short x")[..], &set, &line("PING")].concat()).await;
    let said = [client.next().await, client.next().await, client.next().await];
    assert_eq!(said, ["+OK", "+OK", "+PONG"]);
    client.send(&line("GET long")).await;
    let said = client.try_next().await.unwrap();
    assert!(said.ends_with(&[&value[..], b"\r\n"].concat()), "another value of {} bytes", said.len());

    server.kill().await;
    let refused = client.ask("GET long").await;
    assert!(refused.starts_with("-LOADING qudag-sidecar: the upstream is not available"), "{refused}");
    server.start_again().await;
    let deadline = Instant::now() + PATIENCE;
    while client.ask("GET long").await != "$-1" {
        assert!(Instant::now() < deadline);
    }
    // With an answer outstanding nobody knows what was done: the session ends, as it would without the sidecar.
    client.send(&line("DEBUG SLEEP 30")).await;
    until("it is there", || metric("qudag_sidecar_redis_commands_total", &[]) > 4.0).await;
    server.kill().await;
    assert_eq!(client.try_next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_answered_as_servers_do() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_sidecar, at) = pooled(&server, json!({}), json!({})).await;
    let mut client = Raw::to(at).await;
    client.send(b"PING\r\n\r\nset a 'b c'\r\nget a\r\n*1\r\n$x\r\n").await;
    let said = [client.next().await, client.next().await, client.next().await, client.next().await];
    assert_eq!(said, ["+PONG", "+OK", "$3\r\nb c", "-ERR Protocol error: invalid bulk length"]);
    assert_eq!(client.try_next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_and_redis_benchmark_work() {
    let Some(server) = Server::start(&[]).await else { return };
    let (_pooled, at) = pooled(&server, json!({ "size": 4 }), json!({})).await;
    let run = async |program: &str, args: &str| {
        let mut command = Command::new(program);
        command.args(["-h", "127.0.0.1", "-p", &at.port().to_string()]).args(args.split(' '));
        let output = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "{program} {args}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("redis-cli", "SET a 1").await, "OK\n");
    assert_eq!(run("redis-cli", "-3 -n 2 HSET h a 1").await, "1\n");
    assert_eq!(run("redis-cli", "-3 -n 2 HGETALL h").await, "a 1\n");
    let said = run("redis-benchmark", "-q -n 2000 -c 20 -P 8 -t set,get,incr,lpush,lrange_100").await;
    assert!(said.contains("requests per second"), "{said}");
    assert!(connections(&server).await <= 7, "four, and what RESP3 and another database took");
}
