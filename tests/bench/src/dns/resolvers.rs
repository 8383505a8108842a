//! The resolvers that stand side by side: each forwards to the same servers, caches, logs nothing, has the same number of threads
//! and as much cache as it needs, and what it has against expiry and failure is switched on where its manual names it.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use qudag_kit::{Program, Start, ports, program};
use tempfile::TempDir;

use super::question::{Questions, SIZE, Verdict};
use crate::Failure;
use crate::contenders::{Sidecar, Stage};

/// The version of hickory-dns that is compared; where it is, see [`hickory_program`].
const HICKORY: &str = "0.26.3";

/// Who can take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Who {
    /// This project's.
    Sidecar,
    /// NLnet Labs' resolver.
    Unbound,
    /// The resolver of small networks.
    Dnsmasq,
    /// PowerDNS' load balancer, with its packet cache.
    Dnsdist,
    /// The DNS server in Rust, as a forwarder.
    Hickory,
    /// A loop that answers without looking anything up: what any server over UDP costs.
    Floor,
}

/// What a resolver is started with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The servers that it forwards to.
    pub upstreams: Vec<SocketAddr>,
    /// Its threads; dnsmasq has one.
    pub threads: usize,
    /// Replies that its cache must hold.
    pub entries: usize,
    /// Whether the sidecar's cache is on.
    pub cache: bool,
}

impl Setting {
    /// One thread, and a cache that is large enough for the benchmark's names.
    pub fn new(upstreams: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { upstreams: upstreams.into_iter().collect(), threads: 1, entries: 20_000, cache: true }
    }
}

/// The number of a name that no part of the benchmark asks for.
const READY: u32 = 99_999_999;

enum Process {
    Sidecar(Sidecar),
    Program(Program, TempDir),
}

/// A resolver that runs.
pub struct Resolver {
    /// Which one.
    pub who: Who,
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
}

impl Resolver {
    /// Its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Sidecar(sidecar) => sidecar.pid(),
            Process::Program(program, _) => program.pid(),
        }
    }

    /// Its resident memory in bytes.
    pub fn memory(&self) -> u64 {
        qudag_kit::program::footprint(self.pid()).0 * 1024
    }

    /// The sidecar, if it is that.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        match &self.process {
            Process::Sidecar(sidecar) => Some(sidecar),
            Process::Program(..) => None,
        }
    }

    /// Its folder, if it is another program.
    pub fn folder(&self) -> Option<PathBuf> {
        match &self.process {
            Process::Sidecar(_) => None,
            Process::Program(_, folder) => Some(folder.path().to_owned()),
        }
    }
}

/// Where hickory-dns is expected: a folder outside the clone, named by its version.
fn hickory_program() -> PathBuf {
    let cache = std::env::var_os("QUDAG_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        base.map(|base| base.join("qudag-sidecar"))
    });
    cache.unwrap_or_default().join(format!("hickory-dns-{HICKORY}/bin/hickory-dns"))
}

impl Who {
    /// Everybody but us, in the order of the rows.
    pub const OTHERS: [Self; 4] = [Self::Unbound, Self::Dnsmasq, Self::Dnsdist, Self::Hickory];

    /// Its name in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::Dnsdist => "dnsdist",
            Self::Hickory => "hickory-dns",
            Self::Floor => "udp floor",
        }
    }

    /// What is missing for it, and the command that installs it.
    pub fn missing(self) -> Option<String> {
        let debian = |program: &str, package: &str| {
            program::find(program)
                .is_none()
                .then(|| format!("apt-get install --no-install-recommends {package}"))
        };
        match self {
            Self::Sidecar | Self::Floor => None,
            Self::Unbound => debian("unbound", "unbound"),
            Self::Dnsmasq => debian("dnsmasq", "dnsmasq-base"),
            Self::Dnsdist => debian("dnsdist", "dnsdist"),
            Self::Hickory => {
                let program = hickory_program();
                let root = program.ancestors().nth(2).unwrap_or(&program);
                (!program.is_file()).then(|| {
                    format!(
                        "cargo install --locked --no-default-features --features resolver --root {} hickory-dns@{HICKORY}",
                        root.display()
                    )
                })
            }
        }
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(self, stage: &Stage, setting: &Setting) -> Result<Resolver, Failure> {
        if self != Self::Sidecar {
            return self.start_program(setting);
        }
        let sidecar = stage.sidecar(&sidecar_yaml(setting))?;
        let resolver =
            Resolver { who: self, address: sidecar.at("dns")?, process: Process::Sidecar(sidecar) };
        resolver.wait_until_it_answers()?;
        Ok(resolver)
    }

    fn start_program(self, setting: &Setting) -> Result<Resolver, Failure> {
        let (address, folder) = (ports::free(), tempfile::tempdir()?);
        let program = self.command(address, &folder, setting)?.spawn(folder.path());
        let resolver = Resolver { who: self, address, process: Process::Program(program, folder) };
        resolver.wait_until_it_answers()?;
        Ok(resolver)
    }

    fn command(self, at: SocketAddr, folder: &TempDir, setting: &Setting) -> Result<Start, Failure> {
        let file = folder.path().join("config");
        match self {
            Self::Unbound => std::fs::write(&file, unbound_conf(at, folder, setting))?,
            Self::Dnsdist => std::fs::write(&file, dnsdist_conf(at, setting))?,
            Self::Hickory => std::fs::write(&file, hickory_conf(at, folder, setting))?,
            Self::Dnsmasq => std::fs::write(&file, dnsmasq_conf(at, setting))?,
            Self::Sidecar | Self::Floor => {}
        }
        Ok(match self {
            Self::Unbound => Start::new("unbound").args(["-d", "-p", "-c"]).arg(&file),
            Self::Dnsdist => {
                Start::new("dnsdist").args(["--supervised", "--disable-syslog", "-C"]).arg(&file)
            }
            Self::Dnsmasq => {
                let option = format!("--conf-file={}", file.display());
                Start::new("dnsmasq").args(["--keep-in-foreground", "--user=root", "--pid-file"]).arg(option)
            }
            Self::Hickory => Start::new(hickory_program())
                .args(["--quiet", "--workers"])
                .arg(setting.threads.to_string())
                .arg("--config")
                .arg(&file),
            Self::Sidecar | Self::Floor => {
                Start::new(std::env::current_exe()?).args(["udp-floor", "--at"]).arg(at.to_string())
            }
        })
    }
}

impl Resolver {
    fn wait_until_it_answers(&self) -> Result<(), Failure> {
        let questions = Questions::new(READY..READY + 1);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut room = [0; 512];
        for id in 0.. {
            socket.send_to(&questions.query(0, id), self.address)?;
            if let Ok((length, _)) = socket.recv_from(&mut room) {
                let verdict = questions.judge(0, room.get(..length).unwrap_or_default());
                if length > SIZE && matches!(verdict, Verdict::Right { .. }) {
                    return Ok(());
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
            if Instant::now() > deadline {
                break;
            }
        }
        Err(format!("{} does not answer", self.who.name()).into())
    }
}

fn list(setting: &Setting, each: impl Fn(&SocketAddr) -> String) -> String {
    setting.upstreams.iter().map(each).collect()
}

fn sidecar_yaml(setting: &Setting) -> String {
    let servers: Vec<String> = setting.upstreams.iter().map(|server| format!("\"{server}\"")).collect();
    // What an entry of the benchmark takes, generously.
    let size = (setting.entries / 1024 + 32).next_power_of_two();
    format!(
        "runtime: {{ workers: {} }}\nlisteners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    \
         dns_cache: {{ enabled: {}, max_size: {size}MiB }}\n    dns_upstream: {{ servers: [{}] }}\n",
        setting.threads,
        setting.cache,
        servers.join(", "),
    )
}

fn unbound_conf(at: SocketAddr, folder: &TempDir, setting: &Setting) -> String {
    let forward = list(setting, |server| format!("  forward-addr: {}@{}\n", server.ip(), server.port()));
    format!(
        "server:\n  interface: {ip}@{port}\n  port: {port}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
         directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"/dev/null\"\n  verbosity: 0\n  \
         num-threads: {threads}\n  so-reuseport: yes\n  so-rcvbuf: 4m\n  do-not-query-localhost: no\n  module-config: \"iterator\"\n  \
         msg-cache-size: {cache}m\n  rrset-cache-size: {cache}m\n  outgoing-range: 8192\n  \
         num-queries-per-thread: 4096\n  minimal-responses: yes\n  prefetch: yes\n  serve-expired: yes\n  \
         serve-expired-ttl: 300\n  serve-expired-client-timeout: 50\n  wait-limit: 0\n  discard-timeout: 5000\n\
         forward-zone:\n  name: \".\"\n{forward}\
         remote-control:\n  control-enable: yes\n  control-interface: \"{dir}/control\"\n  control-use-cert: no\n",
        ip = at.ip(),
        port = at.port(),
        dir = folder.path().display(),
        threads = setting.threads,
        cache = (setting.entries / 500).max(64),
    )
}

fn dnsmasq_conf(at: SocketAddr, setting: &Setting) -> String {
    let servers = list(setting, |server| format!("server={}#{}\n", server.ip(), server.port()));
    format!(
        "port={}\nlisten-address={}\nbind-interfaces\nno-resolv\nno-hosts\nno-poll\ncache-size={}\n\
         dns-forward-max=20000\nuse-stale-cache=300\nlog-facility=/dev/null\n{servers}",
        at.port(),
        at.ip(),
        setting.entries,
    )
}

fn dnsdist_conf(at: SocketAddr, setting: &Setting) -> String {
    let mut conf = String::from("setSecurityPollSuffix(\"\")\n");
    let reuse = setting.threads > 1;
    for thread in 0..setting.threads {
        let call = if thread == 0 { "setLocal" } else { "addLocal" };
        conf.push_str(&format!("{call}(\"{at}\", {{ reusePort = {reuse} }})\n"));
    }
    let entries = setting.entries * 2;
    conf.push_str(&format!(
        "cache = newPacketCache({entries}, {{ maxTTL = 300, staleTTL = 60, numberOfShards = 20 }})\n\
         getPool(\"\"):setCache(cache)\nsetStaleCacheEntriesTTL(300)\nsetUDPTimeout(2)\n"
    ));
    conf.push_str(&list(setting, |server| {
        format!(
            "newServer({{ address = \"{server}\", checkName = \"health.bench.node.\", checkType = \"A\", checkInterval = 1, \
             checkTimeout = 500, maxCheckFailures = 1, mustResolve = true, sockets = 8 }})\n"
        )
    }));
    conf
}

fn hickory_conf(at: SocketAddr, folder: &TempDir, setting: &Setting) -> String {
    let servers: Vec<String> = setting
        .upstreams
        .iter()
        .map(|server| {
            format!(
                "{{ ip = \"{}\", trust_negative_responses = true, connections = [{{ port = {}, protocol = {{ type = \"udp\" }} }}] }}",
                server.ip(),
                server.port()
            )
        })
        .collect();
    format!(
        "listen_addrs_ipv4 = [\"{}\"]\nlisten_port = {}\ndirectory = \"{}\"\ndrop_privileges = false\n\
         [udp_socket]\nsockets = {}\nrecv_buffer_size = 4194304\n\
         [[zones]]\nzone = \".\"\nzone_type = \"External\"\n\
         [zones.stores]\ntype = \"forward\"\nname_servers = [{}]\n\
         [zones.stores.options]\ncache_size = {}\n",
        at.ip(),
        at.port(),
        folder.path().display(),
        setting.threads,
        servers.join(", "),
        setting.entries * 2,
    )
}

#[cfg(test)]
mod tests {
    use qudag_kit::FaultyDns;
    use qudag_kit::dns::hickory_proto::rr::RecordType;

    use super::*;
    use crate::dns::question::name;

    #[test]
    fn each_configuration_names_every_server() {
        let servers = ["127.0.0.1:1053", "127.0.0.2:2053"].map(|server| server.parse().unwrap());
        let setting = Setting { threads: 2, ..Setting::new(servers) };
        let (at, folder) = ("127.0.0.1:53".parse().unwrap(), tempfile::tempdir().unwrap());
        let texts = [
            sidecar_yaml(&setting),
            unbound_conf(at, &folder, &setting),
            dnsmasq_conf(at, &setting),
            dnsdist_conf(at, &setting),
            hickory_conf(at, &folder, &setting),
        ];
        for text in texts {
            let named = ["1053", "2053"].map(|port| text.matches(port).count());
            assert_eq!(named, [1, 1], "{text}");
        }
    }

    #[test]
    fn each_program_starts_with_its_configuration_and_asks_the_servers() {
        for who in Who::OTHERS {
            if let Some(command) = who.missing() {
                // Nothing of the tests needs hickory-dns, and building it takes long.
                if who != Who::Hickory {
                    qudag_kit::skip::note(&format!("{} is missing: {command}", who.name()));
                }
                continue;
            }
            let server = FaultyDns::start();
            let setting = Setting { threads: 2, ..Setting::new([server.addr()]) };
            let resolver = who.start_program(&setting).unwrap();
            assert!(server.queries(&name(READY), RecordType::A) > 0, "{}", who.name());
            assert!(resolver.memory() > 1 << 20);
        }
    }
}
