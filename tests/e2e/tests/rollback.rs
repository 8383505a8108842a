//! Names move from the sidecar to its node and back: by the zone that the sidecar serves, by updates of another server, and by a
//! second name server when the sidecar is dead.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use qudag_e2e::loads::names;
use qudag_kit::dns::{self, hickory_proto::rr::RData, hickory_proto::rr::RecordType};
use qudag_kit::dynamic_zone::{KEY, SECRET};
use qudag_kit::program::Start;
use qudag_kit::{
    DynamicZone, HttpNode, Load, Namespace, Setup, TestSidecar, Unbound, eventually, http, needs_namespaces,
    needs_program, ports,
};
use serde_json::Value;
use tokio::net::UdpSocket;

/// The bound for names: their time to live and a second.
const NAMES: Duration = Duration::from_secs(6);
/// The bound when the sidecar is killed.
const KILLED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);

/// The addresses of a name, asked of a server.
async fn addresses(server: SocketAddr, name: &str, rtype: RecordType) -> Vec<IpAddr> {
    dns::addresses(&dns::ask(server, name, rtype).await.unwrap())
}

async fn serial(server: SocketAddr, zone: &str) -> u32 {
    match &dns::ask(server, zone, RecordType::SOA).await.unwrap().answers[0].data {
        RData::SOA(soa) => soa.serial,
        other => panic!("{other:?}"),
    }
}

/// The state of a step in a report.
fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["verification"]["steps"].as_array().unwrap_or_else(|| panic!("{report:#}"));
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[tokio::test]
async fn a_bypass_under_load_moves_names_and_fails_nobody() {
    needs_program!("unbound");
    let unbound = Unbound::start(&["kept.test. 300 IN A 192.0.2.77"]).await;
    let port = ports::free().port();
    let node = HttpNode::start_on(SocketAddr::from(([127, 0, 0, 2], port))).await;
    let yaml = format!(
        "node: {{ http: \"{node}\" }}\nlisteners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\n  http: {{ bind: \
         \"127.0.0.1:{port}\" }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true }}\n    rate_limit: {{ enabled: true, \
         per_client: {{ rate: 1000000, burst: 1000000 }} }}\n    dns_upstream: {{ servers: [\"{upstream}\"] }}\n  http:\n    \
         retry: {{ enabled: true }}\nbypass:\n  zone: svc.internal\n  names:\n    - name: web.svc.internal\n      sidecar: \
         [127.0.0.1]\n      node: [127.0.0.2]\n      port: {port}\n  verify: {{ resolver: false }}\n",
        node = node.addr(),
        upstream = unbound.addr(),
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let server = sidecar.listener("dns").await;
    let before = serial(server, "svc.internal.").await;

    // Together more than 1,000 queries a second where the machine allows, of names that go on and of the name that moves.
    let kept = names(server);
    let by_name = Load::start(
        "by name",
        8,
        Duration::from_millis(8),
        |_| (),
        move |(): &mut ()| {
            Box::pin(async move {
                let answer = dns::ask(server, "web.svc.internal.", RecordType::A).await?;
                match dns::addresses(&answer).as_slice() {
                    [ip] if answer.answers[0].ttl == 5 => {
                        let reply = http::get(SocketAddr::new(*ip, port), "/health").await?;
                        if reply.status == 200 { Ok(()) } else { Err(format!("{}", reply.status)) }
                    }
                    other => Err(format!("{other:?}")),
                }
            })
        },
    );
    let asked = Load::start(
        "queries",
        10,
        Duration::from_millis(6),
        |_| (),
        move |(): &mut ()| {
            Box::pin(async move {
                let found = dns::addresses(&dns::ask(server, "web.svc.internal.", RecordType::A).await?);
                if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
            })
        },
    );
    eventually(PATIENCE, "load is under way", async || {
        (by_name.so_far().done > 20 && asked.so_far().done > 200 && kept.so_far().done > 20).then_some(())
    })
    .await;

    let mut last = before;
    for (word, ip, direct) in
        [("on", "127.0.0.2", true), ("off", "127.0.0.1", false), ("on", "127.0.0.2", true)]
    {
        let start = Instant::now();
        let words = ["bypass", word, "--json"];
        let command = sidecar.cli(&words);
        let moved = async {
            eventually(NAMES, "the name has moved", async || {
                (addresses(server, "web.svc.internal.", RecordType::A).await
                    == [ip.parse::<IpAddr>().unwrap()])
                .then_some(())
            })
            .await;
            start.elapsed()
        };
        let (finished, took) = tokio::join!(command, moved);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
        println!("bypass {word}: the name moved in {took:?}; {:#}", report["verification"]);
        assert_eq!(finished.code, 0, "{report:#}");
        assert!(took < NAMES, "{took:?}");
        let wanted = if direct {
            vec!["switches", "zone", "connect", "drain"]
        } else {
            vec!["switches", "zone", "connect"]
        };
        for name in wanted {
            assert_eq!(step(&report, name)["state"], "ok", "{name}: {report:#}");
        }
        for name in ["update", "authoritatives", "resolver"] {
            assert_eq!(step(&report, name)["state"], "skipped");
        }
        let now = serial(server, "svc.internal.").await;
        assert!(now > last, "{now} after {last}");
        last = now;
    }
    let seen = sidecar.cli_json(&["bypass", "status"]).await;
    assert_eq!(
        (&seen["by"], &seen["zone"]["names"][0]["addresses"][0]),
        (&"bypass".into(), &"127.0.0.2".into())
    );
    assert_eq!(sidecar.metric("qudag_sidecar_bypass_verified", &[]).await, 1.0);
    assert_eq!(sidecar.metric("qudag_sidecar_service_zone_serial", &[]).await, f64::from(last));
    assert!(
        sidecar.metric("qudag_sidecar_bypass_steps_total", &[("step", "drain"), ("outcome", "ok")]).await
            >= 2.0
    );

    for load in [kept, by_name, asked] {
        load.stop_clean().await;
    }
}

#[tokio::test]
async fn what_is_left_in_the_sidecar_is_waited_for_and_then_named() {
    let port = ports::free().port();
    let node = HttpNode::start_on(SocketAddr::from(([127, 0, 0, 2], port))).await;
    let yaml = format!(
        "node: {{ http: \"{}\" }}\nlisteners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\n  http: {{ bind: \"127.0.0.1:0\" \
         }}\nbypass:\n  zone: svc.internal\n  names: [{{ name: web.svc.internal, sidecar: [127.0.0.1], node: [127.0.0.2], \
         port: {port} }}]\n  verify: {{ resolver: false, drain_timeout: 2s }}\n",
        node.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let open = http::Client::http1(sidecar.listener("http").await).await.unwrap();
    let finished = sidecar.cli(&["bypass", "on"]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stdout.contains("1 http still in the sidecar"), "{finished:?}");
    drop(open);
    let finished = sidecar.cli(&["bypass", "on"]).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("verified in"), "{finished:?}");
    // The node is gone: the step says so.
    drop(node);
    let report: Value = serde_json::from_str(&sidecar.cli(&["bypass", "on", "--json"]).await.stdout).unwrap();
    assert_eq!(step(&report, "connect")["state"], "failed", "{report:#}");
}

#[tokio::test]
async fn the_kill_file_and_the_environment_move_names_too_and_serials_never_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let kill = dir.path().join("kill");
    let yaml = format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nflags: {{ kill_file: \"{}\" }}\nbypass:\n  zone: svc.internal\n  \
         names: [{{ name: web.svc.internal, sidecar: [127.0.0.1, \"::1\"], node: [127.0.0.2, \"2001:db8::2\"] }}]\n",
        kill.display()
    );
    let mut sidecar = TestSidecar::start(&yaml).await;
    let server = sidecar.listener("dns").await;
    let leads_to = async |server, v4: &str, v6: &str| {
        eventually(PATIENCE, "both families lead there", async || {
            let found = (
                addresses(server, "web.svc.internal.", RecordType::A).await,
                addresses(server, "web.svc.internal.", RecordType::AAAA).await,
            );
            (found == (vec![v4.parse().unwrap()], vec![v6.parse().unwrap()])).then_some(())
        })
        .await;
        serial(server, "svc.internal.").await
    };
    let first = leads_to(server, "127.0.0.1", "::1").await;
    std::fs::write(&kill, "").unwrap();
    let second = leads_to(server, "127.0.0.2", "2001:db8::2").await;
    let refused = sidecar.cli(&["bypass", "off"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stdout.contains("the layer kill_file keeps everything bypassed"), "{refused:?}");
    std::fs::remove_file(&kill).unwrap();
    let third = leads_to(server, "127.0.0.1", "::1").await;
    sidecar.start_again().await;
    let server = sidecar.listener("dns").await;
    let fourth = leads_to(server, "127.0.0.1", "::1").await;
    assert!(first < second && second < third && third == fourth, "{first} {second} {third} {fourth}");

    let env = [("QUDAG_DISABLE_ALL_OPTIMIZATIONS", "1")];
    let sidecar = TestSidecar::with(Setup { yaml: &yaml, env: &env, ..Setup::default() }).await;
    leads_to(sidecar.listener("dns").await, "127.0.0.2", "2001:db8::2").await;
    assert_eq!(sidecar.cli_json(&["bypass", "status"]).await["by"], "environment");
}

/// A sidecar that moves `rpc.example.test.` on some servers, from the node's 127.0.0.2 to its own 127.0.0.1.
fn updating(servers: &[SocketAddr], secret: &str, dir: &Path) -> String {
    let file = dir.join("secret");
    std::fs::write(&file, secret).unwrap();
    let servers: Vec<_> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    format!(
        "listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\nbypass:\n  names:\n    - {{ name: rpc.example.test, sidecar: \
         [127.0.0.1, \"::1\"], node: [127.0.0.2, \"2001:db8::2\"] }}\n  update:\n    zone: example.test\n    servers: [{}]\n    \
         key: {{ name: {KEY}, secret: {{ file: \"{}\" }} }}\n    timeout: 2s\n    refresh: 1s\n  verify: {{ resolver: false \
         }}\n",
        servers.join(", "),
        file.display()
    )
}

const RPC: &str = "rpc.example.test.";
const RESTING: &[&str] = &["rpc A 127.0.0.2", "rpc AAAA 2001:db8::2"];
const DIRECT: [&str; 2] = ["127.0.0.2", "2001:db8::2"];
const CLAIMED: [&str; 2] = ["127.0.0.1", "::1"];

async fn knot_has(knot: &DynamicZone, expected: [&str; 2]) {
    eventually(PATIENCE, &format!("the name leads to {expected:?}"), async || {
        (knot.addresses(RPC).await.ok()? == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn updates_move_a_name_on_a_real_server_and_back() {
    needs_program!("knotd");
    let dir = tempfile::tempdir().unwrap();
    let knot = DynamicZone::start(RESTING).await;
    // The first server is nowhere: the second one takes the update.
    let mut sidecar = TestSidecar::start(
        &updating(&[ports::free(), knot.addr()], SECRET, dir.path())
            .replace("    key:", &format!("    authoritatives: [\"{}\"]\n    key:", knot.addr())),
    )
    .await;
    knot_has(&knot, CLAIMED).await;
    let claimed = knot.serial().await;
    for (word, expected) in [("on", DIRECT), ("off", CLAIMED)] {
        let start = Instant::now();
        let report = sidecar.cli_json(&["bypass", word]).await;
        println!("bypass {word} by update took {:?}", start.elapsed());
        assert!(start.elapsed() < NAMES);
        for name in ["update", "authoritatives"] {
            assert_eq!(step(&report, name)["state"], "ok", "{report:#}");
        }
        assert_eq!(knot.addresses(RPC).await.unwrap(), expected);
    }
    assert_eq!(knot.serial().await, claimed + 2, "A and AAAA in one transaction each time");
    // A server whose answer came too late has changed it already.
    let moved = sidecar.metric("qudag_sidecar_bypass_updates_total", &[("outcome", "changed")]).await
        + sidecar.metric("qudag_sidecar_bypass_updates_total", &[("outcome", "already")]).await;
    assert!(moved >= 3.0, "{moved}");
    assert_eq!(sidecar.metric("qudag_sidecar_bypass_published", &[]).await, 1.0);
    // A sidecar that stops gives the name back.
    sidecar.stop(PATIENCE).await;
    knot_has(&knot, DIRECT).await;
}

#[tokio::test]
async fn a_wrong_key_and_somebody_elses_name_change_nothing() {
    needs_program!("knotd");
    let dir = tempfile::tempdir().unwrap();
    let knot = DynamicZone::start(RESTING).await;
    let wrong = "d3Jvbmd3cm9uZ3dyb25nd3Jvbmd3cm9uZ3dyb25nMTI=";
    let sidecar = TestSidecar::start(&updating(&[knot.addr()], wrong, dir.path())).await;
    eventually(PATIENCE, "the signature is refused", async || {
        let labels = [("outcome", "bad_sig")];
        (sidecar.metric("qudag_sidecar_bypass_updates_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(knot.addresses(RPC).await.unwrap(), DIRECT);
    let finished = sidecar.cli(&["bypass", "off"]).await;
    assert_eq!(finished.code, 1);
    assert!(finished.stdout.contains("BADSIG"), "{finished:?}");
    // The secret is read anew for each update.
    std::fs::write(dir.path().join("secret"), SECRET).unwrap();
    knot_has(&knot, CLAIMED).await;
    drop(sidecar);

    let knot = DynamicZone::start(&["rpc A 192.0.2.66"]).await;
    let sidecar = TestSidecar::start(&updating(&[knot.addr()], SECRET, dir.path())).await;
    let finished = sidecar.cli(&["bypass", "on"]).await;
    assert_eq!(finished.code, 1);
    assert!(finished.stdout.contains("it is left alone"), "{finished:?}");
    assert_eq!(knot.addresses(RPC).await.unwrap(), ["192.0.2.66"]);
}

/// Another program that may update the zone gives the name another IPv4 address.
async fn overwrite(server: SocketAddr, ip: &str) {
    let (at, port) = (server.ip(), server.port());
    let script = format!(
        "server {at} {port}\nzone example.test\nupdate delete rpc.example.test A\nupdate add rpc.example.test 5 A {ip}\nsend\n"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let key = format!("hmac-sha256:{KEY}:{SECRET}");
    Start::new("knsupdate").args(["-y", &key]).arg(file.path()).output().await.ok();
}

/// Passes datagrams on to a server; before the first update it lets somebody else change the name.
async fn rival(server: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut first = true;
        let mut buffer = vec![0; 65_535];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            if buffer[2] >> 3 & 15 == 5 && std::mem::take(&mut first) {
                overwrite(server, "192.0.2.66").await;
            }
            let answer = dns::exchange_udp(server, &buffer[..length]).await.unwrap();
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn a_change_in_between_is_noticed_by_the_server_itself() {
    needs_program!("knotd", "knsupdate");
    let dir = tempfile::tempdir().unwrap();
    let knot = DynamicZone::start(RESTING).await;
    let relay = rival(knot.addr()).await;
    let sidecar = TestSidecar::start(&updating(&[relay], SECRET, dir.path())).await;
    eventually(PATIENCE, "the conflict is noticed", async || {
        let labels = [("outcome", "conflict")];
        (sidecar.metric("qudag_sidecar_bypass_updates_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(knot.addresses(RPC).await.unwrap(), ["192.0.2.66", "2001:db8::2"]);
    assert_eq!(sidecar.metric("qudag_sidecar_bypass_updates_total", &[("outcome", "changed")]).await, 0.0);
}

#[tokio::test]
async fn a_name_that_was_put_to_rest_by_hand_is_claimed_again() {
    needs_program!("knotd", "knsupdate");
    let dir = tempfile::tempdir().unwrap();
    let knot = DynamicZone::start(&["rpc A 127.0.0.2"]).await;
    let yaml = updating(&[knot.addr()], SECRET, dir.path())
        .replace(", \"::1\"", "")
        .replace(", \"2001:db8::2\"", "");
    let _sidecar = TestSidecar::start(&yaml).await;
    let has = async |ip: &str| {
        eventually(PATIENCE, ip, async || (knot.addresses(RPC).await.ok()? == [ip]).then_some(())).await;
    };
    has("127.0.0.1").await;
    let claimed = knot.serial().await;
    overwrite(knot.addr(), "127.0.0.2").await;
    has("127.0.0.1").await;
    assert_eq!(knot.serial().await, claimed + 2);
}

#[tokio::test]
async fn a_server_that_was_down_is_made_up_with_when_it_is_back() {
    needs_program!("knotd");
    let dir = tempfile::tempdir().unwrap();
    let mut knot = DynamicZone::start(RESTING).await;
    let sidecar = TestSidecar::start(&updating(&[knot.addr()], SECRET, dir.path())).await;
    knot_has(&knot, CLAIMED).await;
    knot.pause();
    let start = Instant::now();
    let finished = sidecar.cli(&["bypass", "on"]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(finished.stdout.contains("cannot be reached"), "{finished:?}");
    assert_eq!(sidecar.metric("qudag_sidecar_bypass_verified", &[]).await, 0.0);
    knot.resume().await;
    knot_has(&knot, DIRECT).await;
    assert_eq!(sidecar.cli(&["bypass", "on"]).await.code, 0);
}

#[tokio::test]
async fn a_killed_sidecars_names_are_withdrawn_by_its_guard_and_by_command() {
    needs_program!("knotd");
    let dir = tempfile::tempdir().unwrap();
    let knot = DynamicZone::start(RESTING).await;
    let admin = ports::free();
    let yaml = format!("admin: {{ bind: \"{admin}\" }}\n{}", updating(&[knot.addr()], SECRET, dir.path()));
    let mut sidecar = TestSidecar::start(&yaml).await;
    knot_has(&knot, CLAIMED).await;
    let config = sidecar.config().display().to_string();
    let guard =
        Start::new(TestSidecar::binary()).named("guard").args(["bypass", "guard", "--config", &config]);
    let guard = guard.spawn(dir.path());
    // The guard does nothing while the sidecar lives.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(knot.addresses(RPC).await.unwrap(), CLAIMED);
    let start = Instant::now();
    sidecar.program().kill();
    knot_has(&knot, DIRECT).await;
    let took = start.elapsed();
    println!("the guard moved the name {took:?} after the kill");
    // Clients keep what they know for five seconds more.
    assert!(took + Duration::from_secs(5) < KILLED, "{took:?}");
    drop(guard);

    sidecar.start_again().await;
    knot_has(&knot, CLAIMED).await;
    sidecar.program().kill();
    let finished =
        Start::new(TestSidecar::binary()).args(["bypass", "withdraw", "--config", &config]).output().await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(knot.addresses(RPC).await.unwrap(), DIRECT);
}

/// The private resolv.conf of a namespace; removed on drop.
struct ResolvConf(std::path::PathBuf);

impl ResolvConf {
    fn new(namespace: &Namespace, text: &str) -> Self {
        let dir = Path::new("/etc/netns").join(namespace.name());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("resolv.conf"), text).unwrap();
        Self(dir)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles a program that looks a name up as musl does; `None` where there is no musl.
async fn musl_lookup(dir: &Path) -> Option<String> {
    qudag_kit::program::find("musl-gcc")?;
    let (source, program) = (dir.join("lookup.c"), dir.join("lookup"));
    let text = "#include <stdio.h>\n#include <string.h>\n#include <netdb.h>\n#include <arpa/inet.h>\n\
        int main(int argc, char **argv) {\n\
          struct addrinfo hints = {0}, *found;\n  char text[64];\n  hints.ai_socktype = SOCK_STREAM;\n\
          hints.ai_family = AF_INET;\n  (void)argc;\n\
          int failed = getaddrinfo(argv[1], NULL, &hints, &found);\n\
          if (failed) { fprintf(stderr, \"%s\\n\", gai_strerror(failed)); return 1; }\n\
          inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text);\n\
          puts(text);\n  return 0;\n}\n";
    std::fs::write(&source, text).unwrap();
    let compile = Start::new("musl-gcc").args(["-static", "-o"]).arg(&program).arg(&source);
    compile.output().await.ok();
    Some(program.display().to_string())
}

/// The sidecar is the first name server of its host, a real one whose zone rests on the node is the second.
#[tokio::test]
async fn glibc_and_musl_follow_the_bypass_and_survive_the_sidecar() {
    needs_namespaces!();
    needs_program!("knotd", "getent");
    let dir = tempfile::tempdir().unwrap();
    // getent asks for families only of which the host has addresses besides loopback's (AI_ADDRCONFIG).
    let (space, outside) = (Namespace::new(), Namespace::new());
    space.connect("10.93.0.1/24", &outside, "10.93.0.2/24");
    let _resolv =
        ResolvConf::new(&space, "nameserver 127.0.0.1\nnameserver 127.0.0.2\noptions timeout:1 attempts:2\n");
    let _knot = DynamicZone::within(&space, "127.0.0.2:53".parse().unwrap(), &["api A 127.0.0.9"]).await;
    let yaml = "listeners:\n  dns: { bind: \"127.0.0.1:53\" }\nfilters:\n  dns:\n    dns_upstream: { servers: \
        [\"127.0.0.2\"] }\nbypass:\n  zone: example.test\n  names: [{ name: api.example.test, sidecar: [127.0.0.8], node: \
        [127.0.0.9] }]\n";
    let mut sidecar = TestSidecar::with(Setup { yaml, namespace: Some(&space), ..Setup::default() }).await;
    let musl = musl_lookup(dir.path()).await;

    let glibc = async || {
        let found = space.run("getent", &["ahostsv4", "api.example.test"]).await;
        found.stdout.split_whitespace().next().map(str::to_owned)
    };
    let musl = async || match &musl {
        Some(program) => Some(space.run(program, &["api.example.test"]).await.stdout.trim().to_owned()),
        None => None,
    };
    assert_eq!(glibc().await.as_deref(), Some("127.0.0.8"), "the sidecar lives");
    // musl asks both at once and takes the first answer: either is right.
    if let Some(found) = musl().await {
        assert!(["127.0.0.8", "127.0.0.9"].contains(&found.as_str()), "{found}");
    }

    let report = sidecar.cli_json(&["bypass", "on"]).await;
    assert_eq!(step(&report, "resolver")["state"], "ok", "{report:#}");
    assert_eq!(glibc().await.as_deref(), Some("127.0.0.9"), "bypassed");
    if let Some(found) = musl().await {
        assert_eq!(found, "127.0.0.9", "bypassed");
    }
    let report = sidecar.cli_json(&["bypass", "off"]).await;
    assert_eq!(step(&report, "resolver")["state"], "ok", "{report:#}");
    assert_eq!(glibc().await.as_deref(), Some("127.0.0.8"), "back");

    let start = Instant::now();
    sidecar.program().kill();
    eventually(KILLED, "the name has moved", async || {
        (glibc().await.as_deref() == Some("127.0.0.9")).then_some(())
    })
    .await;
    let took = start.elapsed();
    println!("glibc went to the node {took:?} after the kill");
    assert!(took < KILLED, "{took:?}");
    let again = Instant::now();
    assert_eq!(glibc().await.as_deref(), Some("127.0.0.9"));
    println!("glibc takes {:?} for a look-up while the first name server is dead", again.elapsed());
    if let Some(found) = musl().await {
        assert_eq!(found, "127.0.0.9", "killed");
    }
}
