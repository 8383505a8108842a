//! Replies of PostgreSQL itself that are given again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod cached;
mod postgres;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use cached::{Client, Form, ITEM, PLAIN, Stand, bodies, extended, filters, listener, query, values};
use qudag_filter_common::testing::{PATIENCE, metric, until};
use qudag_filter_db::wire::{backend, build};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_given_again_is_the_servers_byte_for_byte() {
    let Some(mut stand) = Stand::start().await else { return };
    let mut prepared = stand.client("").await;
    let named = Form { name: "s", ..PLAIN };
    let mut direct = Client::connect(stand.postgres.port, "ann", "").await;
    let forms = [
        PLAIN,
        Form { describe: false, ..PLAIN },
        Form { close: true, ..PLAIN },
        Form { formats: &[1], ..PLAIN },
        Form { formats: &[0, 1, 0, 1], ..PLAIN },
        named,
        Form { parse: false, ..named },
        Form { parse: false, describe: false, formats: &[1], ..named },
    ];
    let mut asks = 0;
    for (n, form) in forms.into_iter().enumerate() {
        let batch = extended(form, ITEM, "2");
        let expected = direct.ask(&batch).await;
        assert_eq!(bodies(&expected, backend::DATA_ROW).len(), 1, "{n}");
        let mut fresh = stand.client("").await;
        let first = if form.name.is_empty() { &mut fresh } else { &mut prepared };
        assert_eq!(first.ask(&batch).await, expected, "{n}: the server's");
        // What a statement is called makes no difference.
        asks += if form.name == "s" && form.parse { 1 } else { 2 };
        assert_eq!(stand.asks().await, asks, "{n}");
        // Other sessions, which may have to prepare it first.
        for round in 0..3 {
            let mut other = stand.client("").await;
            if form.name == "s" && !form.parse {
                let mut parse = BytesMut::new();
                build::parse(&mut parse, b"s", &[ITEM.as_bytes(), &[0, 0, 0]].concat());
                parse.extend_from_slice(build::SYNC);
                other.ask(&parse).await;
            }
            assert_eq!(other.ask(&batch).await, expected, "{n}: the cache's");
            if form.parse && form.name == "s" {
                // It has the statement, though no server was asked.
                let again = extended(Form { parse: false, ..named }, ITEM, "3");
                assert_eq!(values(&other.ask(&again).await)[0][2], "item 3");
                asks += u64::from(round == 0);
                assert_eq!(stand.asks().await, asks, "{n}");
                let twice = other.ask(&batch).await;
                assert_eq!(bodies(&twice, backend::ERROR).len(), 1, "the name is taken");
            }
        }
        assert_eq!(stand.asks().await, asks, "{n}");
    }
    // Simple queries, within a pipeline as well; values are a part of the question.
    let simple = |id: u32| query(&ITEM.replace("$1", &id.to_string()));
    let mut client = stand.client("").await;
    for id in [1, 2] {
        let expected = direct.ask(&simple(id)).await;
        assert_eq!(client.ask(&simple(id)).await, expected);
        assert_eq!(client.ask(&simple(id)).await, expected);
        asks += 2;
        assert_eq!(stand.asks().await, asks);
        let others = query("SELECT 5");
        let pipeline = [&simple(id)[..], &extended(PLAIN, ITEM, "2"), &simple(id), &others, &others].concat();
        let (mut through, mut past) =
            (stand.client("").await, Client::connect(stand.postgres.port, "ann", "").await);
        through.send(&pipeline).await;
        past.send(&pipeline).await;
        for _ in 0..5 {
            assert_eq!(through.answer().await, past.answer().await);
        }
        asks += 3;
        assert_eq!(stand.asks().await, asks, "only what went past the sidecar");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_of_long_replies_waits_for_its_client() {
    let Some(mut stand) = Stand::start().await else { return };
    let long = "SELECT counted(), repeat('x', 60000)";
    let mut client = stand.client("").await;
    let expected = client.query(long).await;
    // Much more than the sidecar holds for a client, which reads nothing before it has sent all of it.
    let others = ["SELECT 'one after'", "SELECT 'two after'"].map(query);
    client.send(&[&query(long).repeat(300)[..], &others.concat()].concat()).await;
    for n in 0..300 {
        assert_eq!(client.answer().await, expected, "{n}");
    }
    assert_eq!(values(&client.answer().await), [["one after"]]);
    assert_eq!(values(&client.answer().await), [["two after"]]);
    assert_eq!(stand.asks().await, 1);
    // Who takes nothing holds nobody up.
    let mut idle = stand.client("").await;
    idle.send(&query(long).repeat(300)).await;
    assert_eq!(stand.client("").await.query(long).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_what_was_not_asked_for_by_one_like_it() {
    let Some(mut stand) = Stand::start().await else { return };
    let (port, mut asks) = (stand.port(), 0);
    let all = "SELECT (SELECT counted()), id FROM items";
    let item = ITEM.replace("$1", "1");
    // Each of them for the first time, then again.
    for (user, options, sets, sql, expected) in [
        ("ann", "", "", "SELECT counted(), current_user", "ann"),
        ("bob", "", "", "SELECT counted(), current_user", "bob"),
        ("ann", "", "", &item, "2024-05-06 07:08:09+00"),
        ("ann", "-c search_path=side,public", "", &item, "beside"),
        ("ann", "-c TimeZone=Asia/Tokyo", "", &item, "2024-05-06 16:08:09+09"),
        (
            "ann",
            "",
            "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'",
            &item,
            "06.05.2024 16:08:09 JST",
        ),
        ("ann", "-c geqo=off", "", all, "3"),
        ("ann", "-c geqo=on", "", all, "3"),
    ] {
        let mut first = None;
        for n in 0..3 {
            let mut client = Client::connect(port, user, options).await;
            if !sets.is_empty() {
                client.query(sets).await;
            }
            let reply = client.query(sql).await;
            let rows = values(&reply);
            assert!(
                rows.iter().flatten().any(|value| value == expected),
                "{user} {options} {sets}: {rows:?}"
            );
            assert_eq!(first.get_or_insert(reply.clone()), &reply);
            asks += u64::from(n == 0);
            assert_eq!(stand.asks().await, asks, "{user} {options} {sets} {sql}");
        }
    }
    // Values and formats of an extended query.
    for (form, value) in [
        (PLAIN, "1"),
        (PLAIN, "2"),
        (PLAIN, "02"),
        (Form { formats: &[1], ..PLAIN }, "1"),
        (Form { formats: &[0], ..PLAIN }, "1"),
    ] {
        for n in 0..3 {
            let mut client = stand.client("").await;
            let reply = client.ask(&extended(form, ITEM, value)).await;
            assert_eq!(bodies(&reply, backend::DATA_ROW).len(), 1);
            asks += u64::from(n == 0);
            assert_eq!(stand.asks().await, asks, "{value} {:?}", form.formats);
        }
    }
    // What the sidecar cannot bring along is not shared.
    for _ in 0..2 {
        let mut client = stand.client("").await;
        client.query("SET search_path = side, public").await;
        assert_eq!(values(&client.query(&item).await)[0][2], "beside");
        asks += 1;
        assert_eq!(stand.asks().await, asks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn some_are_never_kept_and_none_for_long() {
    let Some(mut stand) = Stand::start().await else { return };
    let mut client = stand.client("").await;
    let all = "SELECT (SELECT counted()), id FROM items";
    let mut asks = 0;
    let refused =
        |reason: &str| metric("qudag_sidecar_db_cache_refused_total", &[&format!("reason=\"{reason}\"")]);
    // Errors, notices, what is too long, no plain SELECT, and what no rule names.
    for (sql, reason) in [
        ("SELECT counted_in_vain(0)", "error"),
        ("SELECT counted_aloud()", "notice"),
        ("SELECT counted(), repeat('x', 5000000)", "large"),
        ("WITH x AS (DELETE FROM others RETURNING id) SELECT counted(), count(*) FROM x", ""),
        ("SELECT counted(), id FROM items WHERE id = 1 FOR UPDATE", ""),
        ("SELECT counted(), 5", ""),
        ("SELECT (SELECT counted()), id FROM items; SELECT 1", ""),
        ("BEGIN; SELECT (SELECT counted()), id FROM items; COMMIT", ""),
    ] {
        let before = refused(reason);
        for _ in 0..2 {
            let through = client.query(sql).await;
            asks += 1;
            assert_eq!(stand.asks().await, asks, "{sql}");
            assert_eq!(through, stand.direct.query(sql).await, "{sql}");
            asks += 1;
        }
        if !reason.is_empty() {
            assert_eq!(refused(reason), before + 2.0, "{sql}");
        }
    }
    // Not within a transaction, whether it was kept before or not.
    for _ in 0..2 {
        for sql in ["BEGIN", all, all, "COMMIT"] {
            client.query(sql).await;
        }
        asks += 2;
        assert_eq!(stand.asks().await, asks);
    }
    client.query(all).await;
    asks += 1;
    assert_eq!(stand.asks().await, asks);
    for sql in ["BEGIN", all, "ROLLBACK"] {
        client.query(sql).await;
    }
    asks += 1;
    assert_eq!(stand.asks().await, asks, "it is kept, and not for a transaction");

    // Its time is over, counted from when the server was asked.
    let short = "SELECT counted(), 'short'::text AS short";
    let begun = Instant::now();
    client.query(short).await;
    asks += 1;
    loop {
        client.query(short).await;
        let age = begun.elapsed();
        if stand.asks().await > asks {
            assert!(age >= Duration::from_millis(300), "{age:?}");
            break;
        }
        assert!(age < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_who_ask_the_same_are_one_for_the_server() {
    let Some(mut stand) = Stand::start().await else { return };
    let ask_all = async |sql: &'static str, clients: usize| {
        let mut asking = Vec::new();
        for _ in 0..clients {
            let mut client = stand.client("").await;
            asking.push(tokio::spawn(async move { client.query(sql).await }));
        }
        let mut replies = Vec::new();
        for one in asking {
            replies.push(one.await.unwrap());
        }
        replies
    };
    let replies = ask_all("SELECT counted_slowly()", 8).await;
    assert!(replies.iter().all(|reply| *reply == replies[0] && values(reply) == [["1"]]));
    // Nobody asks twice, but who fails does so for itself, and nobody waits for one after the other.
    let begun = Instant::now();
    let failed = ask_all("SELECT counted_in_vain(0)", 6).await;
    assert!(failed.iter().all(|reply| bodies(reply, backend::ERROR).len() == 1));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(stand.asks().await, 1 + 6);
    assert!(metric("qudag_sidecar_db_cache_lookups_total", &["result=\"joined\""]) >= 1.0);

    // The one who asks goes: the next one asks, and the others wait for that.
    assert!(stand.console("FLUSH").await.is_ok());
    let mut leader = stand.client("").await;
    leader.send(&query("SELECT counted_slowly()")).await;
    let deadline = Instant::now() + PATIENCE;
    while stand.asks().await < 8 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut client = stand.client("").await;
        client.send(&query("SELECT counted_slowly()")).await;
        others.push(client);
    }
    drop(leader);
    for mut client in others {
        assert_eq!(values(&client.answer().await), [["1"]]);
    }
    let asks = stand.asks().await;
    assert!((8..=9).contains(&asks), "{asks}: the one who went, and one of the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flushed_or_written_is_asked_for_again() {
    let Some(mut stand) = Stand::start().await else { return };
    let (all, view, who) = (
        "SELECT (SELECT counted()), id FROM items",
        "SELECT (SELECT counted()), id FROM named",
        "SELECT counted(), current_user",
    );
    let mut client = stand.client("").await;
    let mut writer = stand.client("").await;
    let mut asks = 0;
    // How many of the three are asked for again, after they were all kept.
    let again = async |stand: &mut Stand, client: &mut Client, asks: &mut u64| {
        let mut asked = Vec::new();
        for sql in [all, view, who] {
            client.query(sql).await;
            let now = stand.asks().await;
            // The view has as many rows as the table.
            asked.push(u8::from(now > *asks));
            *asks = now;
        }
        asked
    };
    assert_eq!(again(&mut stand, &mut client, &mut asks).await, [1, 1, 1]);
    assert_eq!(again(&mut stand, &mut client, &mut asks).await, [0, 0, 0]);
    for (command, expected) in [
        ("FLUSH RULE who", [0, 0, 1]),
        ("flush table public.items", [1, 1, 0]),
        ("FLUSH TABLE named", [0, 1, 0]),
        ("FLUSH TABLE nothing", [0, 0, 0]),
        ("FLUSH", [1, 1, 1]),
    ] {
        stand.console(command).await.unwrap();
        assert_eq!(again(&mut stand, &mut client, &mut asks).await, expected, "{command}");
    }
    assert!(stand.console("FLUSH RULE nobody").await.unwrap_err().contains("no rule"));
    let shown = stand.console("SHOW CACHE").await.unwrap();
    let row = shown.lines().find(|line| line.trim_start().starts_with("all ")).unwrap();
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    assert_eq!((cells[1], cells[2], cells[5], cells[6]), ("300.000", "1", "3", "3"), "{shown}");

    let named = Form { name: "insert", describe: false, ..PLAIN };
    let insert = extended(named, "INSERT INTO items VALUES ($1, 'new', now())", "8");
    for (batches, expected) in [
        (vec![query("INSERT INTO items VALUES (7, 'new', now())")], [1, 1, 0]),
        (vec![insert], [1, 1, 0]),
        (vec![extended(Form { parse: false, ..named }, "", "9")], [1, 1, 0]),
        (
            vec![query("BEGIN"), query("DELETE FROM items WHERE id = 7"), query("SELECT 1"), query("COMMIT")],
            [1, 1, 0],
        ),
        (vec![query("WITH x AS (DELETE FROM items WHERE id = 8 RETURNING 1) SELECT * FROM x")], [1, 1, 0]),
        (vec![query("UPDATE others SET id = 1")], [0, 0, 0]),
        (vec![query("CREATE TABLE more ()")], [1, 1, 1]),
        (vec![query("LISTEN x"), query("UPDATE items SET name = 'other'")], [1, 1, 0]),
        // It keeps its server now.
        (vec![query("UPDATE items SET name = 'third'")], [1, 1, 0]),
        (vec![query("SELECT 1")], [0, 0, 0]),
    ] {
        for batch in &batches {
            let reply = writer.ask(batch).await;
            assert!(bodies(&reply, backend::ERROR).is_empty(), "{:?}", String::from_utf8_lossy(batch));
        }
        assert_eq!(
            again(&mut stand, &mut client, &mut asks).await,
            expected,
            "{:?}",
            String::from_utf8_lossy(&batches[0])
        );
    }
    // A session reads what it has written, also what the text does not say.
    let call = "CREATE FUNCTION add() RETURNS void LANGUAGE sql AS 'INSERT INTO items VALUES (50)'";
    client.query(call).await;
    let count = |reply: &[u8]| bodies(reply, backend::DATA_ROW).len();
    let before = count(&client.query(all).await);
    client.query("DO 'BEGIN PERFORM add(); END'").await;
    assert_eq!(count(&client.query(all).await), before + 1);
    // Who writes past the sidecar is not seen.
    let mut other = stand.client("").await;
    assert_eq!(count(&other.query(all).await), before + 1);
    stand.direct.query("INSERT INTO items VALUES (51)").await;
    assert_eq!(count(&other.query(all).await), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_switched_at_any_time() {
    let Some(mut stand) = Stand::start().await else { return };
    let all = "SELECT (SELECT counted()), id FROM items";
    let mut client = stand.client("").await;
    let expected = client.query(all).await;
    assert_eq!(client.query(all).await, expected);
    assert_eq!(stand.asks().await, 1);
    // A transaction that begins before and ends after the switch.
    let mut writer = stand.client("").await;
    for round in 0..3u64 {
        stand.sidecar.reload(listener(&stand.postgres), filters(false));
        let asks = stand.asks().await;
        for _ in 0..2 {
            assert_eq!(client.query(all).await, expected);
        }
        assert_eq!(stand.asks().await, asks + 2, "{round}");
        writer.query("BEGIN; UPDATE items SET name = 'x' WHERE false").await;
        stand.sidecar.reload(listener(&stand.postgres), filters(true));
        // The first one shows the cache again, the second one is kept.
        for _ in 0..4 {
            assert_eq!(client.query(all).await, expected);
        }
        assert_eq!(stand.asks().await, asks + 4, "{round}: nothing from before");
        // What was written while nobody looked ends with everything that is kept.
        writer.query("UPDATE others SET id = 1").await;
        writer.query("INSERT INTO others VALUES (1); COMMIT").await;
        client.query(all).await;
        assert_eq!(stand.asks().await, asks + 5, "{round}");
    }
    assert!(metric("qudag_sidecar_db_transactions_total", &["outcome=\"cached\""]) > 0.0);
    assert!(metric("qudag_sidecar_db_cache_bytes", &[]) > 0.0);
    stand.console("FLUSH").await.unwrap();
    until("what was flushed is gone", || metric("qudag_sidecar_db_cache_bytes", &[]) == 0.0).await;
}
