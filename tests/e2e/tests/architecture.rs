//! Arrows point down only: `proxy → filters/{dns,…} → filters/common → filters/api → qudag-core`, and the tests
//! stand beside the product: nothing in it knows them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Where a crate stands. A crate may use crates of a strictly lower layer only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Core,
    FilterApi,
    FilterCommon,
    Kind,
    Proxy,
    /// Starts programs; used by other tests.
    TestKit,
    /// Lays emulated links between the kit's namespaces; used by other tests.
    TestLink,
    Test,
}

impl Layer {
    fn of(folder: &str) -> Option<Self> {
        match folder {
            "qudag-core" | "qudag-core/mldsa" => Some(Self::Core),
            "filters/api" => Some(Self::FilterApi),
            "filters/common" => Some(Self::FilterCommon),
            "proxy" => Some(Self::Proxy),
            "tests/kit" => Some(Self::TestKit),
            "tests/wan" => Some(Self::TestLink),
            _ if folder.starts_with("filters/") => Some(Self::Kind),
            _ if folder.starts_with("tests/") => Some(Self::Test),
            _ => None,
        }
    }
}

struct Member {
    name: String,
    folder: String,
    path: PathBuf,
    /// Names of the workspace's own crates among the dependencies of every sort.
    uses: Vec<String>,
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/e2e lies two folders below the root").to_path_buf()
}

fn members() -> Vec<Member> {
    let root = root();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(&root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
            let path = manifest.parent().expect("a folder").to_path_buf();
            let folder = path.strip_prefix(&root).expect("inside the workspace").display().to_string();
            let uses = package["dependencies"].as_array().expect("dependencies");
            let uses = uses.iter().filter(|dependency| dependency["path"].is_string());
            Member {
                name: package["name"].as_str().expect("a name").to_owned(),
                folder,
                path,
                uses: uses.map(|d| d["name"].as_str().expect("a name").to_owned()).collect(),
            }
        })
        .collect()
}

/// Every arrow between crates that does not point to a lower layer.
fn wrong_arrows(members: &[Member]) -> Vec<String> {
    let folders: BTreeMap<_, _> = members.iter().map(|m| (m.name.as_str(), m.folder.as_str())).collect();
    let mut wrong = Vec::new();
    for member in members {
        let Some(from) = Layer::of(&member.folder) else {
            wrong.push(format!("{} has no place in the architecture", member.folder));
            continue;
        };
        for used in &member.uses {
            let Some(folder) = folders.get(used.as_str()) else {
                wrong.push(format!("{} uses {used}, which lies outside the workspace", member.folder));
                continue;
            };
            if Layer::of(folder).is_none_or(|to| to >= from) {
                wrong.push(format!("{} → {folder}", member.folder));
            }
            let product = from <= Layer::Proxy;
            if product && folder.starts_with("tests/") {
                wrong.push(format!("{} uses a test crate, {folder}", member.folder));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

#[test]
fn arrows_point_down() {
    let members = members();
    assert!(members.len() >= 12, "cargo metadata lists {} crates", members.len());
    let wrong = wrong_arrows(&members);
    assert!(wrong.is_empty(), "these arrows do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn a_wrong_arrow_is_seen() {
    let member = |folder: &str, uses: &[&str]| Member {
        name: folder.to_owned(),
        folder: folder.to_owned(),
        path: PathBuf::new(),
        uses: uses.iter().map(|&s| s.to_owned()).collect(),
    };
    let members = [
        member("qudag-core", &["filters/api"]),
        member("filters/api", &["qudag-core"]),
        member("filters/common", &["filters/api"]),
        member("filters/dns", &["filters/common", "filters/http"]),
        member("filters/http", &["filters/common", "tests/kit"]),
        member("proxy", &["filters/dns", "somewhere-else"]),
        member("tests/kit", &["proxy"]),
        member("tests/e2e", &["tests/kit"]),
        member("attic", &[]),
    ];
    assert_eq!(
        wrong_arrows(&members),
        [
            "attic has no place in the architecture",
            "filters/dns → filters/http",
            "filters/http uses a test crate, tests/kit",
            "filters/http → tests/kit",
            "proxy uses somewhere-else, which lies outside the workspace",
            "qudag-core → filters/api",
        ]
    );
}

#[test]
fn every_member_holds_code() {
    for member in members() {
        let lines = code_lines(&member.path);
        assert!(
            lines >= 50,
            "{} holds {lines} lines of code; a crate is made when it has some",
            member.folder
        );
    }
}

/// Lines that are neither empty nor comments, in all source files below a folder.
fn code_lines(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
    let mut lines = 0;
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            lines += code_lines(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a readable file");
            lines += text.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with("//")).count();
        }
    }
    lines
}

#[test]
fn the_bottom_layers_open_no_socket_and_read_no_clock() {
    let members = members();
    let core = members.iter().filter(|m| Layer::of(&m.folder) == Some(Layer::Core));
    let is_test = |file: &PathBuf| {
        file.to_string_lossy().ends_with("_tests.rs") || file.iter().any(|part| part == "tests")
    };
    let all = core.flat_map(|core| sources(&core.path.join("src")));
    for (file, text) in all.filter(|(file, _)| !is_test(file)) {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for forbidden in
            ["tokio", "std::net::Tcp", "std::net::Udp", "UnixStream", "Instant::now", "SystemTime::now"]
        {
            assert!(!product.contains(forbidden), "{} contains {forbidden}", file.display());
        }
    }
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a readable file");
            found.push((path, text));
        }
    }
    found
}
