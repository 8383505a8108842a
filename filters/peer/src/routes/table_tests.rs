use std::time::{Duration, Instant};

use proptest::prelude::*;
use qudag_filter_api::Address;

use super::*;
use crate::kind::Sidecar;
use crate::routes::Bounds;

const BOUNDS: Bounds = Bounds { min: Duration::from_secs(1), max: Duration::from_secs(300) };

fn route(name: &str, to: &str, sidecar: Option<(&str, bool)>) -> Arc<Route> {
    let sidecar = sidecar.map(|(to, require_tunnel)| {
        let sidecar =
            serde_json::json!({ "to": [to], "name": "spiffe://test/b", "require_tunnel": require_tunnel });
        serde_json::from_value::<Sidecar>(sidecar).unwrap()
    });
    let bind = "127.0.0.1:1".parse().unwrap();
    Arc::new(Route { name: name.to_owned(), bind, to: to.parse().unwrap(), sidecar })
}

fn book(names: &[(&str, &[&str])]) -> Book {
    let (mut book, now) = (Book::default(), Instant::now());
    book.keep(&names.iter().map(|(name, _)| (*name).to_owned()).collect(), now);
    for (name, ips) in names {
        if !ips.is_empty() {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            book.answered(name, ips, BOUNDS.max, BOUNDS, now);
        }
    }
    book
}

fn found(table: &Table, address: &str) -> Option<String> {
    table.find(address.parse().unwrap()).map(|route| route.name.clone())
}

#[test]
fn the_first_route_to_an_address_counts() {
    let routes = [
        route("a", "192.0.2.1:4001", None),
        route("b", "[2001:db8::1]:4001", None),
        route("c", "192.0.2.1:4001", None),
        route("d", "192.0.2.4:4001", None),
    ];
    let table = Table::compile(&routes, 3, &Book::default());
    assert_eq!(found(&table, "192.0.2.1:4001").as_deref(), Some("a"));
    assert_eq!(found(&table, "[::ffff:192.0.2.1]:4001").as_deref(), Some("a"));
    assert_eq!(found(&table, "[2001:db8::1]:4001").as_deref(), Some("b"));
    assert_eq!(found(&table, "192.0.2.1:4002"), None);
    assert_eq!(found(&table, "192.0.2.4:4001"), None, "not of captured connections");
    assert!(table.is_settled());
    let to = |name: &str| table.entry(name).unwrap().to.to_vec();
    assert_eq!(to("d"), ["192.0.2.4:4001".parse().unwrap()]);
    assert!(table.entry("e").is_none());
}

#[test]
fn a_route_that_requires_the_tunnel_guards_its_port_until_its_name_is_known() {
    let routes = [
        route("a", "a.test:4001", Some(("s.test:4433", true))),
        route("b", "b.test:4002", Some(("s.test:1", false))),
    ];
    let unknown = Table::compile(&routes, 2, &book(&[]));
    assert_eq!((unknown.guarded(4001), unknown.guarded(4002)), (Some(false), None));
    assert!(!unknown.is_settled());
    let known = Table::compile(&routes, 2, &book(&[("a.test", &["192.0.2.1"]), ("b.test", &["192.0.2.2"])]));
    assert_eq!((known.guarded(4001), known.is_settled()), (Some(true), true));
    assert!(!known.is_same(&unknown) && known.is_same(&known));
    assert_eq!(Table::compile(&routes, 0, &book(&[])).guarded(4001), None, "nothing is captured");
}

/// Host and port, and the number of the sidecar's name with whether the tunnel is required.
type Drawn = (String, u16, Option<(u8, bool)>);

/// A configuration with few names, addresses and ports, so that they meet.
fn routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    let host = prop_oneof![
        (0..4_u8).prop_map(|it| format!("192.0.2.{it}")),
        (0..3_u8).prop_map(|it| format!("n{it}.test")),
    ];
    let sidecar = prop::option::of((0..3_u8, any::<bool>()));
    prop::collection::vec((host, 1..3_u16, sidecar), 0..8).prop_map(|routes| {
        let route = |(index, (host, port, sidecar)): (usize, Drawn)| {
            let sidecar = sidecar.map(|(name, required)| (format!("n{name}.test:4433"), required));
            let sidecar = sidecar.as_ref().map(|(to, required)| (to.as_str(), *required));
            route(&format!("r{index}"), &format!("{host}:{port}"), sidecar)
        };
        routes.into_iter().enumerate().map(route).collect()
    })
}

proptest! {
    /// The compiled table says what reading the routes one after the other says.
    #[test]
    fn it_answers_like_reading_the_routes(
        routes in routes(),
        captured in 0..9_usize,
        known in prop::collection::vec(prop::collection::vec(0..4_u8, 0..3), 3),
    ) {
        let ips: Vec<Vec<String>> =
            known.iter().map(|ips| ips.iter().map(|it| format!("192.0.2.{it}")).collect()).collect();
        let names: Vec<_> = (0..3).map(|it| format!("n{it}.test")).collect();
        let (mut book, now) = (Book::default(), Instant::now());
        book.keep(&names.iter().cloned().collect(), now);
        for (name, ips) in names.iter().zip(&ips).filter(|(_, ips)| !ips.is_empty()) {
            book.answered(name, ips.iter().map(|ip| ip.parse().unwrap()).collect(), BOUNDS.max, BOUNDS, now);
        }
        let table = Table::compile(&routes, captured, &book);

        let resolve = |place: &HostPort| match &place.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, place.port)],
            Host::Name(name) => book.ips(name).iter().map(|ip| SocketAddr::new(*ip, place.port)).collect(),
        };
        let leads = |route: &Route| match &route.to {
            Address::Tcp(place) => resolve(place),
            Address::Unix(_) => Vec::new(),
        };
        for last in 0..5_u8 {
            for port in 1..4_u16 {
                let address = SocketAddr::from(([192, 0, 2, last], port));
                let model = routes.iter().take(captured).find(|route| leads(route).contains(&address));
                prop_assert_eq!(table.find(address).map(|route| &route.name), model.map(|route| &route.name));
            }
        }
        for route in &routes {
            let entry = table.entry(&route.name).unwrap();
            prop_assert_eq!(&*entry.to, leads(route));
            let sidecar = route.sidecar.iter().flat_map(|it| it.to.iter().flat_map(resolve)).collect::<Vec<_>>();
            prop_assert_eq!(&*entry.sidecar, sidecar);
        }
        prop_assert!(table.is_same(&Table::compile(&routes, captured, &book)));
    }
}
