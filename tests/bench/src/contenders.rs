//! The programs that stand side by side, each on a free port and with a process of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use qudag_kit::node::Host;
use qudag_kit::{HaProxy, HostedNode, IdentityFiles, Namespace, Pki, Setup, Start, TestSidecar, ports};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::Failure;

/// Starts programs. They end with the thread that started them, or when they are dropped.
pub struct Stage {
    runtime: Runtime,
}

/// A sidecar with the addresses of its listeners.
pub struct Sidecar {
    sidecar: TestSidecar,
    /// Kind, name and address of each listener.
    addresses: Vec<(String, String, SocketAddr)>,
}

impl Sidecar {
    /// Where its first listener of a kind is.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(&self, kind: &str) -> Result<SocketAddr, Failure> {
        let found = self.addresses.iter().find(|(of, ..)| of == kind);
        found.map(|(.., address)| *address).ok_or_else(|| format!("no {kind} listener").into())
    }

    /// Where its listener with a name is.
    ///
    /// # Errors
    /// When there is none.
    pub fn at_named(&self, name: &str) -> Result<SocketAddr, Failure> {
        let found = self.addresses.iter().find(|(_, of, _)| of == name);
        found.map(|(.., address)| *address).ok_or_else(|| format!("no listener {name}").into())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.sidecar.pid()
    }

    /// The sum of the series of a metric whose labels include `labels`.
    ///
    /// # Errors
    /// When there is no runtime to ask with.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(self.sidecar.metric(name, labels)))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.sidecar.log()
    }

    /// Replaces its configuration and waits until the new one is in force.
    ///
    /// # Errors
    /// When it is refused.
    pub fn reload(&self, yaml: &str) -> Result<(), Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(self.sidecar.reload_with(&quiet(yaml)));
        if answer.status.is_success() {
            return Ok(());
        }
        Err(format!("reload: {} {}", answer.status, answer.body).into())
    }

    /// A GET of its admin API.
    ///
    /// # Errors
    /// When it is refused.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(self.sidecar.admin("GET", path, Value::Null));
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        Err(format!("{path}: {} {}", answer.status, answer.body).into())
    }

    /// A POST to its admin API; `Null` for no body.
    ///
    /// # Errors
    /// When it is refused.
    pub fn post(&self, path: &str, body: Value) -> Result<(), Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(self.sidecar.admin("POST", path, body));
        if answer.status.is_success() {
            return Ok(());
        }
        Err(format!("{path}: {} {}", answer.status, answer.body).into())
    }
}

impl Stage {
    /// Makes sure that the sidecar's program is built with the same profile as this one, and is up to date.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn set() -> Result<Self, Failure> {
        if std::env::var_os("QUDAG_SIDECAR_BIN").is_none() {
            build_sidecar()?;
        }
        Self::bare()
    }

    /// Without a sidecar.
    ///
    /// # Errors
    /// When there is no runtime.
    pub fn bare() -> Result<Self, Failure> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()? })
    }

    /// A sidecar with a configuration. It logs what went wrong only, as the programs beside it do.
    ///
    /// # Errors
    /// When it does not report its listeners.
    pub fn sidecar(&self, yaml: &str) -> Result<Sidecar, Failure> {
        self.sidecar_in(yaml, None)
    }

    /// The same in a namespace.
    ///
    /// # Errors
    /// When it does not report its listeners.
    pub fn sidecar_in(&self, yaml: &str, namespace: Option<&Namespace>) -> Result<Sidecar, Failure> {
        self.runtime.block_on(async {
            let sidecar = TestSidecar::with(Setup { yaml: &quiet(yaml), namespace, env: &[] }).await;
            let status = sidecar.status().await;
            let listeners =
                status.get("listeners").and_then(|l| l.as_array()).ok_or("a status without listeners")?;
            let text = |value: &Value, key: &str| {
                value.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
            };
            let addresses = listeners
                .iter()
                .filter_map(|listener| {
                    let address = text(listener, "addr").parse().ok()?;
                    Some((text(listener, "kind"), text(listener, "name"), address))
                })
                .collect();
            Ok(Sidecar { sidecar, addresses })
        })
    }

    /// Whether the sidecar takes a configuration.
    ///
    /// # Errors
    /// With what it says against it.
    pub fn validate(&self, yaml: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("sidecar.yaml");
        std::fs::write(&file, qudag_kit::sidecar::complete(&quiet(yaml)))?;
        let done = Start::new(TestSidecar::binary()).arg("validate").arg(file).output();
        let done = self.runtime.block_on(done);
        if done.code == 0 { Ok(()) } else { Err(format!("{}{}", done.stdout, done.stderr).into()) }
    }

    /// Runs a program to its end: what it prints.
    ///
    /// # Errors
    /// With what it says when it fails.
    pub fn run(&self, program: Start) -> Result<String, Failure> {
        let done = self.runtime.block_on(program.output());
        if done.code == 0 { Ok(done.stdout) } else { Err(done.stderr.trim().into()) }
    }

    /// HAProxy in a mode, in front of a server; `None` where it is not installed.
    pub fn haproxy(&self, mode: &str, server: SocketAddr) -> Option<HaProxy> {
        self.haproxy_at(mode, ports::free(), server, None)
    }

    /// The same at an address, in a namespace.
    pub fn haproxy_at(
        &self,
        mode: &str,
        addr: SocketAddr,
        server: SocketAddr,
        namespace: Option<&Namespace>,
    ) -> Option<HaProxy> {
        if qudag_kit::program::find("haproxy").is_none() {
            eprintln!("haproxy is not installed, its rows are left out");
            return None;
        }
        Some(self.runtime.block_on(HaProxy::start_at(mode, addr, server, namespace)))
    }

    /// A private authority for the identities of sidecars, and the first of them.
    pub fn pki(&self, first: &str) -> (Pki, IdentityFiles) {
        self.runtime.block_on(async {
            let pki = Pki::new().await;
            let identity = pki.issue(first).await;
            (pki, identity)
        })
    }

    /// A further identity of it.
    pub fn identity(&self, pki: &Pki, name: &str) -> IdentityFiles {
        self.runtime.block_on(pki.issue(name))
    }

    /// `ip ARGS` in a namespace: what it prints.
    ///
    /// # Errors
    /// With what it says when it fails.
    pub fn ip(&self, namespace: &Namespace, args: &[&str]) -> Result<String, Failure> {
        let done = self.runtime.block_on(namespace.run("ip", args));
        if done.code == 0 { Ok(done.stdout) } else { Err(done.stderr.trim().into()) }
    }

    /// The unmodified node crates, listening on an address.
    pub fn node(&self, ip: IpAddr, namespace: Option<&Namespace>) -> HostedNode {
        let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
        let listen = format!("/{family}/{ip}/tcp/0");
        let host = Host { namespace, listen: Some(&listen), ..Host::default() };
        self.runtime.block_on(HostedNode::start(&host))
    }
}

/// A configuration with which it logs what went wrong only.
fn quiet(yaml: &str) -> String {
    let quiet = ["dns", "peer", "rpc", "http", "db", "redis", "crypto"].map(|kind| format!("{kind}: errors"));
    format!("{yaml}telemetry: {{ flows: {{ {} }} }}\n", quiet.join(", "))
}

/// Builds the sidecar into the folder in which this program is.
fn build_sidecar() -> Result<(), Failure> {
    let folder = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "qudag-sidecar", "--manifest-path"]);
    build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    eprintln!("building qudag-sidecar …");
    let built = build.status().is_ok_and(|status| status.success());
    if built || folder.join("qudag-sidecar").is_file() {
        return Ok(());
    }
    Err("qudag-sidecar cannot be built and QUDAG_SIDECAR_BIN is not set".into())
}
