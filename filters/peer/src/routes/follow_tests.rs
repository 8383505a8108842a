use std::io;
use std::sync::atomic::AtomicUsize;

use tokio::time::sleep;

use super::*;

const BOUNDS: Bounds = Bounds { min: Duration::from_secs(1), max: Duration::from_secs(300) };

/// Answers with 192.0.2.N to the Nth question, for ten seconds; after two seconds. Those that are to fail fail.
struct Slow {
    asked: AtomicUsize,
    fails: fn(usize) -> bool,
}

impl Slow {
    fn new(first: usize, fails: fn(usize) -> bool) -> Arc<Self> {
        Arc::new(Self { asked: AtomicUsize::new(first), fails })
    }

    fn count(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Resolve for Slow {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let fails = (self.fails)(number);
        Box::pin(async move {
            sleep(Duration::from_secs(2)).await;
            if fails {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(vec![IpAddr::from([192, 0, 2, u8::try_from(number).unwrap()])])
        })
    }
}

fn named(to: &str, require_tunnel: bool) -> Vec<Arc<Route>> {
    let sidecar = serde_json::json!({
        "to": ["sidecar.example:4433"], "name": "spiffe://test/b", "require_tunnel": require_tunnel,
    });
    let (bind, to) = ("127.0.0.1:1".parse().unwrap(), to.parse().unwrap());
    let sidecar = Some(serde_json::from_value(sidecar).unwrap());
    vec![Arc::new(Route { name: "named".to_owned(), bind, to, sidecar })]
}

fn made(routes: Vec<Arc<Route>>, captured: usize, names: &Arc<Names>, slow: &Arc<Slow>) -> Arc<Routes> {
    let resolve: Arc<dyn Resolve> = Arc::clone(slow) as _;
    Routes::new(routes, captured, BOUNDS, names, &resolve)
}

async fn found(routes: &Routes, addr: &str, patience: u64) -> Option<String> {
    match routes.find(addr.parse().unwrap(), Duration::from_secs(patience)).await {
        Found::Route(route) => Some(route.name.clone()),
        Found::Nobody => None,
        Found::Perhaps => Some("perhaps".to_owned()),
    }
}

fn sidecar(routes: &Routes) -> Vec<String> {
    let route = routes.routes.first().unwrap();
    routes.entry(route, |entry| entry.sidecar.iter().map(ToString::to_string).collect()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn captured_names_are_waited_for_once_followed_and_kept() {
    let (names, slow) = (Arc::default(), Slow::new(1, |number| number > 2));
    let routes = made(named("peer.example:4001", false), 1, &names, &slow);
    let start = Instant::now();
    assert_eq!(found(&routes, "192.0.2.1:4001", 1).await, None, "patience is over");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(found(&routes, "192.0.2.1:4001", 9).await.as_deref(), Some("named"));
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    assert_eq!(found(&routes, "192.0.2.77:4001", 9).await, None, "at once");
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    sleep(Duration::from_secs(14)).await;
    assert_eq!(found(&routes, "192.0.2.2:4001", 0).await.as_deref(), Some("named"), "the second answer");
    assert_eq!(found(&routes, "192.0.2.1:4001", 0).await, None);
    assert_eq!(slow.count(), 3, "nobody has asked for the sidecar's name");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(
        found(&routes, "192.0.2.2:4001", 0).await.as_deref(),
        Some("named"),
        "failures change nothing"
    );
    // The next generation knows it at once.
    let next = made(named("peer.example:4001", false), 1, &names, &slow);
    assert_eq!(found(&next, "192.0.2.2:4001", 0).await.as_deref(), Some("named"));
    drop((routes, next));
    sleep(UNWANTED).await;
    assert!(names.statuses().is_empty(), "names that nobody has are forgotten");
    assert!(!names.lock().running);
    let asked = slow.count();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(slow.count(), asked);
}

#[tokio::test(start_paused = true)]
async fn names_are_followed_while_connections_use_them() {
    let (names, slow) = (Arc::default(), Slow::new(1, |_| false));
    let routes = made(named("192.0.2.9:4001", false), 0, &names, &slow);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((slow.count(), sidecar(&routes)), (1, Vec::new()), "the filter is off");
    routes.want();
    sleep(Duration::from_millis(500)).await;
    for second in 0..30 {
        routes.want();
        sleep(Duration::from_secs(1)).await;
        let known: &[&str] = match second {
            0 => &[],
            1..13 => &["192.0.2.1:4433"],
            13..25 => &["192.0.2.2:4433"],
            _ => &["192.0.2.3:4433"],
        };
        assert_eq!(sidecar(&routes), known, "after {second} s: ten seconds, and two for an answer");
    }
    let status = names.statuses();
    assert_eq!((status.len(), &*status[0].name, status[0].state), (1, "sidecar.example", "known"));
    sleep(2 * UNWANTED).await;
    assert!(
        sidecar(&routes).is_empty(),
        "the filter was switched off: nothing is known of names that nobody follows"
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_whose_addresses_fail_is_asked_for_again_at_once() {
    let (names, slow) = (Arc::<Names>::default(), Slow::new(1, |_| false));
    let routes = made(named("192.0.2.9:4001", false), 0, &names, &slow);
    routes.want();
    sleep(Duration::from_secs(3)).await;
    routes.want();
    let places = ["sidecar.example:4433".parse().unwrap()];
    let tried = ["192.0.2.1:4433".parse().unwrap()];
    let others = async |patience: u64| {
        let deadline = Instant::now() + Duration::from_secs(patience);
        names.others(Over::Udp, &places, &tried, deadline).await
    };
    let start = Instant::now();
    let (one, two) = tokio::join!(others(9), others(9));
    assert_eq!((one.clone(), two), (Some(vec!["192.0.2.2:4433".parse().unwrap()]), one));
    assert_eq!((start.elapsed(), slow.count()), (Duration::from_secs(2), 3), "one question for both");
    assert_eq!(sidecar(&routes), ["192.0.2.2:4433"]);
    routes.want();
    // An answer that comes too late is of use to the next one.
    assert!(others(1).await.is_some(), "what is known already");
    assert_eq!(
        names.others(Over::Udp, &places, &["192.0.2.2:4433".parse().unwrap()], Instant::now()).await,
        None
    );
}

#[tokio::test(start_paused = true)]
async fn what_requires_the_tunnel_is_not_guessed() {
    let (names, slow) = (Arc::default(), Slow::new(1, |number| number < 3));
    let routes = made(named("peer.example:4001", true), 1, &names, &slow);
    assert_eq!(found(&routes, "192.0.2.3:4001", 1).await.as_deref(), Some("perhaps"));
    assert_eq!(found(&routes, "192.0.2.3:4002", 1).await, None, "another port");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(found(&routes, "192.0.2.3:4001", 0).await.as_deref(), Some("perhaps"), "it has failed");
    sleep(Duration::from_secs(12)).await;
    assert_eq!(found(&routes, "192.0.2.3:4001", 0).await.as_deref(), Some("named"));
    assert_eq!(found(&routes, "192.0.2.77:4001", 1).await, None, "known, and not this one");
    // The node knows the new address before this sidecar: one more question brings it.
    sleep(Duration::from_secs(2)).await;
    let next = format!("192.0.2.{}:4001", slow.count());
    assert_eq!(found(&routes, &next, 9).await.as_deref(), Some("named"));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_failed_changes_the_order_of_the_table_until_it_is_forgiven() {
    let (names, slow) = (Arc::default(), Slow::new(1, |_| false));
    let mut two = named("192.0.2.9:4001", false);
    let route = Arc::make_mut(&mut two[0]);
    route.sidecar.as_mut().unwrap().to = ["192.0.2.1:1", "192.0.2.2:1"].map(|it| it.parse().unwrap()).into();
    let routes = made(two, 0, &names, &slow);
    assert_eq!(sidecar(&routes), ["192.0.2.1:1", "192.0.2.2:1"], "known at once");
    names.blame(Over::Udp, "192.0.2.1:1".parse().unwrap());
    assert_eq!(sidecar(&routes), ["192.0.2.2:1", "192.0.2.1:1"]);
    names.praise(Over::Udp, "192.0.2.1:1".parse().unwrap());
    assert_eq!(sidecar(&routes), ["192.0.2.1:1", "192.0.2.2:1"]);
    names.blame(Over::Udp, "192.0.2.1:1".parse().unwrap());
    for _ in 0..40 {
        routes.want();
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(sidecar(&routes), ["192.0.2.1:1", "192.0.2.2:1"]);
    assert_eq!(slow.count(), 1, "addresses are not asked for");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_names_are_asked_for_a_few_at_a_time() {
    let (names, slow) = (Arc::default(), Slow::new(1, |_| true));
    let route = |number: usize| {
        let mut route = named(&format!("peer-{number}.example:4001"), false).remove(0);
        Arc::make_mut(&mut route).name = number.to_string();
        route
    };
    let routes = made((0..1000).map(route).collect(), 1000, &names, &slow);
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        assert!(slow.count() <= AT_ONCE + 1, "{}", slow.count());
    }
    sleep(Duration::from_secs(80)).await;
    assert!(routes.table.load().is_settled());
}
