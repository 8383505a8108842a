//! The rules in the kernel, by way of `nft` and `ip`.

use std::collections::BTreeMap;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::rules::{PROTOCOL, ROUTES, Ruleset, TABLE};

/// For one run of a program.
const LIMIT: Duration = Duration::from_secs(5);
/// Where administrators' programs are, for users in whose path they are not.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The families of `ip`, in the order of [`Ruleset::routed`].
const FAMILIES: [&str; 2] = ["-4", "-6"];

/// Why the kernel's rules cannot be read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KernelError {
    /// A program is not installed.
    #[error("`{program}` is not installed; it is in the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package; others call it the same.
        package: &'static str,
    },
    /// The process may not do it.
    #[error("the kernel does not permit it: the capability CAP_NET_ADMIN is missing ({said})")]
    Denied {
        /// What the program said.
        said: String,
    },
    /// The program failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
}

/// What [`remove`] found and took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Whether the table of rules was there.
    pub table: bool,
    /// How many routing rules were there.
    pub routing_rules: usize,
    /// How many routes were there.
    pub routes: usize,
}

impl Removed {
    /// Whether there was anything.
    pub fn any(&self) -> bool {
        self.table || self.routing_rules > 0 || self.routes > 0
    }
}

/// What is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Each chain of the table with what its rules are recognised by; `None` without the table.
    chains: Option<BTreeMap<String, Vec<String>>>,
    /// The marks of routing rules to the table of routes, by family.
    rules: [Vec<RoutingRule>; 2],
    /// How many routes there are, by family.
    routes: [usize; 2],
}

/// A routing rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RoutingRule {
    preference: u64,
    mark: Option<u32>,
    table: String,
}

impl RoutingRule {
    fn is(&self, mark: u32) -> bool {
        self.preference == u64::from(ROUTES) && self.mark == Some(mark) && self.table == ROUTES.to_string()
    }
}

impl Installed {
    /// Whether there is nothing at all.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What differs from the rules that are wanted, in words; nothing when all is as it should be.
    pub fn differences(&self, wanted: Option<&Ruleset>) -> Vec<String> {
        let outline = wanted.map(Ruleset::outline).unwrap_or_default();
        let mut found = Vec::new();
        match (&self.chains, outline.is_empty()) {
            (None, true) => {}
            (Some(_), true) => found.push(format!("table inet {TABLE} is there, and is not wanted")),
            (None, false) => found.push(format!("table inet {TABLE} is missing")),
            (Some(chains), false) => compare(chains, &outline, &mut found),
        }
        let routed = wanted.and_then(|wanted| wanted.routed);
        for (index, family) in FAMILIES.iter().enumerate() {
            let mark = routed.filter(|(_, on)| on.get(index) == Some(&true)).map(|(mark, _)| mark);
            let rules = self.rules.get(index).map(Vec::as_slice).unwrap_or_default();
            let routes = self.routes.get(index).copied().unwrap_or_default();
            match mark {
                Some(mark) => {
                    if !rules.iter().any(|rule| rule.is(mark)) {
                        found.push(format!(
                            "the routing rule for mark {mark:#x} is missing (ip {family} rule)"
                        ));
                    }
                    if rules.iter().filter(|rule| !rule.is(mark)).count() > 0 {
                        found.push(format!("there is a routing rule that is not wanted (ip {family} rule)"));
                    }
                    if routes == 0 {
                        found.push(format!("the route in table {ROUTES} is missing (ip {family} route)"));
                    }
                }
                None => {
                    if !rules.is_empty() {
                        found.push(format!("there is a routing rule that is not wanted (ip {family} rule)"));
                    }
                    if routes > 0 {
                        found.push(format!("there is a route that is not wanted (ip {family} route)"));
                    }
                }
            }
        }
        found
    }
}

fn compare(
    chains: &BTreeMap<String, Vec<String>>,
    outline: &[(String, Vec<String>)],
    found: &mut Vec<String>,
) {
    for (name, wanted) in outline {
        let Some(rules) = chains.get(name) else {
            found.push(format!("chain {name} is missing"));
            continue;
        };
        let before = found.len();
        for rule in wanted.iter().filter(|rule| !rules.contains(rule)) {
            found.push(format!("chain {name}: the rule {rule:?} is missing"));
        }
        for rule in rules.iter().filter(|rule| !wanted.contains(rule)) {
            let rule = if rule.is_empty() { "one without a comment".to_owned() } else { format!("{rule:?}") };
            found.push(format!("chain {name}: there is a rule that is not wanted, {rule}"));
        }
        if found.len() == before && rules != wanted {
            found.push(format!("chain {name}: the rules are in another order, or there twice"));
        }
    }
    for name in chains.keys().filter(|name| !outline.iter().any(|(wanted, _)| wanted == *name)) {
        found.push(format!("there is a chain that is not wanted, {name}"));
    }
}

/// Puts the rules into the kernel, in place of those that are there: at no moment is there a half of them.
///
/// # Errors
/// When a program is missing or fails. Rules that were there stay; routes that were added for new ones are taken away.
pub async fn install(rules: &Ruleset) -> Result<(), KernelError> {
    // Routes first: without rules nothing is marked for them.
    let before = routing().await?;
    let prepared = async {
        for (index, family) in FAMILIES.iter().enumerate() {
            let Some(mark) = wanted_mark(rules, index) else { continue };
            let table = ROUTES.to_string();
            let proto = PROTOCOL.to_string();
            ip(&[
                family, "route", "replace", "local", "default", "dev", "lo", "table", &table, "proto", &proto,
            ])
            .await?;
            if !before.rules.get(index).is_some_and(|there| there.iter().any(|rule| rule.is(mark))) {
                let mark = format!("{mark:#x}");
                ip(&[
                    family, "rule", "add", "pref", &table, "fwmark", &mark, "lookup", &table, "protocol",
                    &proto,
                ])
                .await?;
            }
        }
        nft(&["-f", "-"], Some(&rules.text())).await
    };
    if let Err(why) = prepared.await {
        if before.rules.iter().all(Vec::is_empty) && before.routes == [0, 0] {
            // What cannot be taken away harms nobody: nothing is marked for it.
            let _ = clear_routing(None).await;
        }
        return Err(why);
    }
    clear_routing(Some(rules)).await.map(|_| ())
}

/// Puts rules in place of those that are there and leaves the routes as they are: one step, for those in a hurry.
///
/// # Errors
/// When `nft` is missing or fails; the rules that were there stay.
pub async fn replace(rules: &Ruleset) -> Result<(), KernelError> {
    nft(&["-f", "-"], Some(&rules.text())).await.map(|_| ())
}

/// Takes all rules out of the kernel, and the routes, whoever installed them.
///
/// # Errors
/// When a program is missing or fails.
pub async fn remove() -> Result<Removed, KernelError> {
    let table = has_table().await?;
    if table {
        // The first line, should somebody have been faster.
        nft(&["-f", "-"], Some(&format!("table inet {TABLE}\ndelete table inet {TABLE}\n"))).await?;
    }
    let (routing_rules, routes) = clear_routing(None).await?;
    Ok(Removed { table, routing_rules, routes })
}

/// What is in the kernel.
///
/// # Errors
/// When a program is missing or fails.
pub async fn installed() -> Result<Installed, KernelError> {
    let mut found = routing().await?;
    if has_table().await? {
        let listed = nft(&["-j", "list", "table", "inet", TABLE], None).await?;
        found.chains = Some(chains(&serde_json::from_str(&listed).unwrap_or_default()));
    }
    Ok(found)
}

async fn has_table() -> Result<bool, KernelError> {
    let listed = nft(&["-j", "list", "tables", "inet"], None).await?;
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    Ok(items(&listed, "table").any(|table| table.get("name").and_then(Value::as_str) == Some(TABLE)))
}

/// The objects of a kind in what `nft -j` prints (libnftables-json(5)).
fn items<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listed
        .get("nftables")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(move |item| item.get(kind))
}

fn chains(listed: &Value) -> BTreeMap<String, Vec<String>> {
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut chains: BTreeMap<_, _> =
        items(listed, "chain").map(|chain| (text(chain, "name"), Vec::new())).collect();
    for rule in items(listed, "rule") {
        chains.entry(text(rule, "chain")).or_default().push(text(rule, "comment"));
    }
    chains
}

fn wanted_mark(rules: &Ruleset, family: usize) -> Option<u32> {
    rules.routed.filter(|(_, on)| on.get(family) == Some(&true)).map(|(mark, _)| mark)
}

/// The own routing rules and routes.
async fn routing() -> Result<Installed, KernelError> {
    let mut found = Installed::default();
    for (index, family) in FAMILIES.iter().enumerate().filter(|(index, _)| *index == 0 || has_ipv6()) {
        let listed = json(&ip(&[family, "-j", "rule", "show"]).await?);
        if let Some(rules) = found.rules.get_mut(index) {
            *rules = listed.iter().filter(|rule| is_own(rule)).map(routing_rule).collect();
        }
        let proto = PROTOCOL.to_string();
        let listed = json(&ip(&[family, "-j", "route", "show", "table", "all", "proto", &proto]).await?);
        if let Some(routes) = found.routes.get_mut(index) {
            *routes = listed.len();
        }
    }
    Ok(found)
}

fn is_own(rule: &Value) -> bool {
    rule.get("protocol").and_then(Value::as_str) == Some(&PROTOCOL.to_string())
}

fn routing_rule(rule: &Value) -> RoutingRule {
    let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default();
    let mark = text("fwmark").strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let preference = rule.get("priority").and_then(Value::as_u64).unwrap_or_default();
    RoutingRule { preference, mark, table: text("table").to_owned() }
}

/// An array; nothing where `ip` prints nothing.
fn json(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap_or_default()
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Takes own routing rules and routes away that are not wanted; how many.
async fn clear_routing(wanted: Option<&Ruleset>) -> Result<(usize, usize), KernelError> {
    let found = routing().await?;
    let (mut rules, mut routes) = (0, 0);
    for (index, family) in FAMILIES.iter().enumerate() {
        let mark = wanted.and_then(|wanted| wanted_mark(wanted, index));
        for rule in found.rules.get(index).into_iter().flatten() {
            if mark.is_some_and(|mark| rule.is(mark)) {
                continue;
            }
            let (preference, proto) = (rule.preference.to_string(), PROTOCOL.to_string());
            ip(&[family, "rule", "del", "pref", &preference, "protocol", &proto]).await?;
            rules += 1;
        }
        let there = found.routes.get(index).copied().unwrap_or_default();
        if mark.is_none() && there > 0 {
            ip(&[family, "route", "flush", "table", "all", "proto", &PROTOCOL.to_string()]).await?;
            routes += there;
        }
    }
    Ok((rules, routes))
}

async fn nft(args: &[&str], input: Option<&str>) -> Result<String, KernelError> {
    run("nft", "nftables", args, input).await
}

async fn ip(args: &[&str]) -> Result<String, KernelError> {
    run("ip", "iproute2", args, None).await
}

/// Runs a program to its end; what it printed.
async fn run(
    program: &'static str,
    package: &'static str,
    args: &[&str],
    input: Option<&str>,
) -> Result<String, KernelError> {
    let failed =
        |said: String| KernelError::Failed { command: format!("{program} {}", args.join(" ")), said };
    let path = match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{FOLDERS}"),
        _ => FOLDERS.to_owned(),
    };
    let mut command = Command::new(program);
    command.args(args).env("PATH", path).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let work = async {
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A program that has gone says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output: Output = match timeout(LIMIT, work).await {
        Ok(Ok(output)) => output,
        Ok(Err(why)) if why.kind() == io::ErrorKind::NotFound => {
            return Err(KernelError::Missing { program, package });
        }
        Ok(Err(why)) => return Err(failed(why.to_string())),
        Err(_) => return Err(failed(format!("not done within {LIMIT:?}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    if said.contains("Operation not permitted") || said.contains("you must be root") {
        return Err(KernelError::Denied { said });
    }
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::redirect::rules::{Action, CAPTURE, Chain, OUTPUT, Rule, Test};

    type Chains = BTreeMap<String, Vec<String>>;

    fn wanted() -> Ruleset {
        let pass = |name: &'static str, mark: u32| Rule {
            name,
            tests: vec![Test::Mark(mark)],
            action: Action::Pass,
        };
        let chains = vec![
            Chain { name: CAPTURE, base: None, rules: vec![pass("a", 1)] },
            Chain { name: OUTPUT, base: None, rules: vec![pass("b", 2), pass("c", 3)] },
        ];
        Ruleset { chains, routed: Some((0x7165, [true, false])) }
    }

    fn there(rules: &Ruleset) -> Installed {
        let rule = RoutingRule { preference: 7164, mark: Some(0x7165), table: "7164".to_owned() };
        Installed {
            chains: Some(rules.outline().into_iter().collect()),
            rules: [vec![rule], Vec::new()],
            routes: [1, 0],
        }
    }

    #[test]
    fn every_difference_is_named() {
        let rules = wanted();
        assert!(there(&rules).differences(Some(&rules)).is_empty());
        assert!(Installed::default().differences(None).is_empty());
        assert_eq!(Installed::default().differences(Some(&rules)).len(), 3);
        assert_eq!(there(&rules).differences(None).len(), 3);

        let changed = |change: &dyn Fn(&mut Chains)| {
            let mut there = there(&rules);
            change(there.chains.as_mut().unwrap());
            there.differences(Some(&rules))
        };
        let gone = changed(&|chains| drop(chains.get_mut(OUTPUT).unwrap().pop()));
        assert!(gone.len() == 1 && gone[0].starts_with("chain output: the rule \"c "), "{gone:?}");
        let strange = changed(&|chains| chains.get_mut(OUTPUT).unwrap().push(String::new()));
        assert_eq!(strange, ["chain output: there is a rule that is not wanted, one without a comment"]);
        let swapped = changed(&|chains| chains.get_mut(OUTPUT).unwrap().reverse());
        assert_eq!(swapped, ["chain output: the rules are in another order, or there twice"]);
        let chain = changed(&|chains| drop(chains.remove(CAPTURE)));
        assert_eq!(chain, ["chain capture is missing"]);
        let more = changed(&|chains| drop(chains.insert("mine".to_owned(), Vec::new())));
        assert_eq!(more, ["there is a chain that is not wanted, mine"]);

        let mut other = there(&rules);
        other.rules[0][0].mark = Some(5);
        other.routes = [0, 1];
        assert_eq!(other.differences(Some(&rules)).len(), 4, "{:?}", other.differences(Some(&rules)));
    }

    /// As nftables 1.0.6 and iproute2 6.1 print it.
    #[test]
    fn what_the_programs_print_is_read() {
        let listed = json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "qudag_sidecar", "handle": 3}},
            {"chain": {"family": "inet", "table": "qudag_sidecar", "name": "output", "handle": 1, "type": "nat"}},
            {"chain": {"family": "inet", "table": "qudag_sidecar", "name": "capture", "handle": 2}},
            {"rule": {"chain": "output", "handle": 4, "comment": "a 1", "expr": []}},
            {"rule": {"chain": "output", "handle": 5, "expr": []}},
        ]});
        let expected =
            [("capture".to_owned(), vec![]), ("output".to_owned(), vec!["a 1".to_owned(), String::new()])];
        assert_eq!(chains(&listed), expected.into_iter().collect());
        assert!(chains(&Value::Null).is_empty());

        let rules = r#"[{"priority":0,"src":"all","table":"local"},
            {"priority":7164,"src":"all","fwmark":"0x7165","table":"7164","protocol":"113"}]"#;
        let rules: Vec<_> = super::json(rules).iter().filter(|rule| is_own(rule)).map(routing_rule).collect();
        assert!(rules.len() == 1 && rules[0].is(0x7165), "{rules:?}");
        assert!(super::json("").is_empty() && super::json("[ ]").is_empty());
    }
}
