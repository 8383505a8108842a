//! Every filter on or off, in pairs: the replies are the same, byte for byte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::collections::BTreeMap;

use qudag_e2e::compare::{dns_answers, http_replies, http_replies_direct, rpc_replies};
use qudag_e2e::world::{Doors, FILTERS};
use qudag_e2e::{Filters, World};
use qudag_kit::http::Client;
use qudag_kit::postgres::psql;
use qudag_kit::rpc::Server;
use qudag_kit::{Postgres, needs_node, needs_program, peer, skip};

/// Sets of filters in which each pair of filters is met with both on, both off, and either on alone.
fn rows() -> Vec<Vec<&'static str>> {
    let alone = FILTERS.iter().map(|filter| vec![*filter]);
    let without = FILTERS.iter().map(|off| FILTERS.iter().copied().filter(|filter| filter != off).collect());
    [vec![], FILTERS.to_vec()].into_iter().chain(alone).chain(without).collect()
}

#[test]
fn the_rows_cover_every_pair() {
    let rows = rows();
    for (at, one) in FILTERS.iter().enumerate() {
        for two in &FILTERS[at + 1..] {
            let mut met = BTreeMap::new();
            for row in &rows {
                met.insert((row.contains(one), row.contains(two)), ());
            }
            assert_eq!(met.len(), 4, "{one} and {two}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_do_not_depend_on_filters() {
    needs_node!();
    needs_program!("unbound");
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let world = World::with_postgres().await;
    let database = world.postgres.as_ref().unwrap();
    let query = ["-c", "select n, md5(n::text) from generate_series(1, 100) n"];
    let dns = dns_answers(world.unbound.addr()).await;
    let http = http_replies_direct(world.http.addr()).await;
    let rpc = rpc_replies(&world.rpc_direct()).await;
    let db = psql(database.addr(), &query).await.ok();

    let sidecar = world.sidecar(&Filters::none()).await;
    let doors = Doors::of(&sidecar).await;
    let door = sidecar.listener("db").await;
    for row in rows() {
        sidecar.reload_with(&world.yaml(&Filters::only(&row))).await.ok();
        let status = sidecar.status().await;
        for filter in status["filters"].as_array().unwrap() {
            let name = format!("{}.{}", filter["kind"].as_str().unwrap(), filter["name"].as_str().unwrap());
            assert_eq!(filter["enabled"], row.contains(&name.as_str()), "{name} in {row:?}");
        }
        assert_eq!(dns_answers(doors.dns).await, dns, "DNS with {row:?}");
        let mut one = Client::http1(doors.http).await.unwrap();
        assert_eq!(http_replies(&mut one).await, http, "HTTP/1.1 with {row:?}");
        let mut two = Client::http2(doors.http).await.unwrap();
        assert_eq!(http_replies(&mut two).await, http, "HTTP/2 with {row:?}");
        assert_eq!(rpc_replies(&Server::Tcp(doors.rpc)).await, rpc, "RPC with {row:?}");
        assert_eq!(psql(door, &query).await.ok(), db, "PostgreSQL with {row:?}");
        for door in [doors.outbound, doors.inbound] {
            peer::echo(door, 100_000).await.unwrap_or_else(|why| panic!("peer with {row:?}: {why}"));
        }
    }
    println!("{} rows of {} filters", rows().len(), FILTERS.len());
}
