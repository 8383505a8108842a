//! Generations with real listeners, as a reload and a toggle make them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use qudag_filter_api::Lanes;

use super::{Adopted, Generation, Manager, Refused};
use crate::bypass::Serials;
use crate::config::parse;
use crate::control::{ConfigOrigin, Override};
use crate::flags::{Flags, KillFile, Operator};
use crate::resolve::SystemResolver;

struct House {
    manager: Manager,
    operator: Arc<Operator>,
    _state: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let kill_file = Arc::new(KillFile::new(None));
        let operator = Arc::new(Operator::open(state.path().join("operator.json")));
        let flags = Arc::new(Flags::new(Arc::clone(&kill_file), false, Arc::clone(&operator)));
        let serials = Serials::open(state.path().join("serial.json"));
        let manager = Manager::new(
            flags,
            kill_file,
            serials,
            Arc::new(SystemResolver::new()),
            Handle::current(),
            Lanes::default(),
        );
        Self { manager, operator, _state: state }
    }

    async fn adopt(&self, text: &str) -> Result<u64, Refused> {
        let loaded = parse(text).map_err(|why| Refused(why.lines()))?;
        self.manager.adopt(Adopted { loaded: Arc::new(loaded), origin: ConfigOrigin::File }).await
    }

    fn addresses(&self) -> Vec<String> {
        self.manager.listeners().iter().map(|listener| listener.addr.to_string()).collect()
    }

    fn now(&self) -> Arc<Generation> {
        self.manager.current()
    }
}

fn peer(routes: &str) -> String {
    format!("version: 1\nlisteners:\n  peer: {{ outbound: [{routes}] }}\n")
}

/// An upstream that answers each connection with one byte.
fn upstream(byte: u8) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(&[byte]);
        }
    });
    port
}

async fn read_one(address: String) -> u8 {
    tokio::task::spawn_blocking(move || {
        let mut byte = [0];
        TcpStream::connect(address).unwrap().read_exact(&mut byte).unwrap();
        byte[0]
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_sockets_and_changes_what_is_behind_them() {
    let house = House::new();
    let (one, two) = (upstream(1), upstream(2));
    let route =
        |name: &str, to: u16| format!("{{ name: {name}, bind: \"127.0.0.1:0\", to: \"127.0.0.1:{to}\" }}");
    assert_eq!(house.adopt(&peer(&route("a", one))).await.unwrap(), 1);
    let before = house.addresses();
    assert_eq!(read_one(before[0].clone()).await, 1);

    assert_eq!(house.adopt(&peer(&route("a", two))).await.unwrap(), 2);
    assert_eq!(house.addresses(), before);
    assert_eq!(read_one(before[0].clone()).await, 2);

    assert_eq!(house.adopt(&peer(&format!("{}, {}", route("a", two), route("b", one)))).await.unwrap(), 3);
    let both = house.addresses();
    assert_eq!(both.len(), 2);
    assert_eq!(read_one(both[1].clone()).await, 1);

    house.adopt(&peer(&route("b", one))).await.unwrap();
    assert_eq!(house.addresses(), both[1..]);
    let gone = both[0].clone();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while TcpStream::connect(&gone).is_ok() {
        assert!(std::time::Instant::now() < deadline, "the removed listener still accepts");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_may_be_renamed() {
    let house = House::new();
    let port = upstream(1);
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let route =
        |name: &str| format!("{{ name: {name}, bind: \"127.0.0.1:{free}\", to: \"127.0.0.1:{port}\" }}");
    house.adopt(&peer(&route("old"))).await.unwrap();
    house.adopt(&peer(&route("new"))).await.unwrap();
    assert_eq!(house.manager.listeners()[0].name, "new");
    assert_eq!(read_one(format!("127.0.0.1:{free}")).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_changes_nothing() {
    let house = House::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap();
    let good = "version: 1\nlisteners:\n  http: { bind: \"127.0.0.1:0\" }\n";
    house.adopt(good).await.unwrap();
    let before = house.addresses();

    let bad = format!("{good}  rpc: {{ bind: \"127.0.0.1:0\" }}\n  dns: {{ bind: \"{taken}\" }}\n");
    let refused = house.adopt(&bad).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("cannot listen on {taken} for dns")), "{refused}");
    let fixed = format!("{good}runtime: {{ workers: 1 }}\n");
    let refused = house.adopt(&fixed).await.unwrap_err();
    assert!(refused.to_string().contains("runtime.workers"), "{refused}");
    assert!(refused.to_string().contains("restart"), "{refused}");

    assert_eq!(house.now().number, 1);
    assert_eq!(house.addresses(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn toggles_make_generations_and_keep_states() {
    let house = House::new();
    let text = "version: 1\nlisteners:\n  dns: { bind: \"127.0.0.1:0\" }\n\
        filters:\n  dns:\n    dns_cache: { enabled: true }\n    dns_upstream: { servers: [\"127.0.0.1:9\"] }\n";
    house.adopt(text).await.unwrap();
    let cache = |generation: &Generation| {
        let line = generation.kinds.dns.as_ref().unwrap();
        Arc::clone(&line.states.dns_cache.as_ref().unwrap().state)
    };
    let before = cache(&house.now());
    assert_eq!(house.manager.rebuild().await.unwrap(), 1, "nothing changed");

    let off = Override { enabled: false, rollout: None, ttl: None };
    house.operator.set("dns.dns_cache", off).unwrap();
    assert_eq!(house.manager.rebuild().await.unwrap(), 2);
    let switch =
        |house: &House| house.now().switches.statuses().find(|filter| filter.name == "dns_cache").unwrap();
    assert_eq!((switch(&house).enabled, switch(&house).layer), (false, "override"));

    house.operator.clear("dns.dns_cache").unwrap();
    assert_eq!(house.manager.rebuild().await.unwrap(), 3);
    assert_eq!((switch(&house).enabled, switch(&house).layer), (true, "yaml"));
    assert!(Arc::ptr_eq(&before, &cache(&house.now())), "the cache outlives toggles");
    house.adopt(text).await.unwrap();
    assert!(Arc::ptr_eq(&before, &cache(&house.now())), "and reloads");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_file_of_a_refused_configuration_is_not_followed() {
    let house = House::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kill"), "").unwrap();
    let text = |kill: &Path, bind: &str| {
        format!(
            "version: 1\nlisteners:\n  http: {{ bind: \"{bind}\" }}\nflags: {{ kill_file: {} }}\n\
             filters:\n  http:\n    retry: {{ enabled: true }}\n",
            kill.display()
        )
    };
    house.adopt(&text(&dir.path().join("none"), "127.0.0.1:0")).await.unwrap();
    house.adopt(&text(&dir.path().join("kill"), "192.0.2.1:1")).await.unwrap_err();
    assert_eq!(house.manager.rebuild().await.unwrap(), 1);
    house.adopt(&text(&dir.path().join("kill"), "127.0.0.1:0")).await.unwrap();
    let retry = house.now().switches.statuses().find(|f| f.kind == "http" && f.name == "retry").unwrap();
    assert_eq!((retry.enabled, retry.layer), (false, "kill_file"));
}
