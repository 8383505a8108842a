//! Which sidecar a command talks to.

use std::path::Path;

use qudag_filter_api::Address;

use super::args::{Common, Target};
use super::exit::{FAILED, Failure, UNAVAILABLE};
use crate::admin::client::Client;
use crate::state_dir::{Instance, StateDir};

/// The variable that may hold the token.
const TOKEN: &str = "QUDAG_SIDECAR_TOKEN";

/// The sidecar that was asked for: by its address, else by its configuration file, else the only one that runs.
///
/// # Errors
/// When there is none or more than one, or the token cannot be read.
pub(super) fn client(common: &Common, target: &Target) -> Result<Client, Failure> {
    let state = StateDir::open(common.state_dir.as_deref());
    let instances = state.as_ref().map(StateDir::instances).unwrap_or_default();
    let (address, instance) = match &target.admin {
        Some(address) => (address.clone(), instances.iter().find(|known| known.admin == address.to_string())),
        None => {
            let found = choose(&instances, common.config.as_deref());
            let found = found.map_err(|why| match &state {
                Ok(state) => why.hint(format!(
                    "looked in {}; choose with --admin ADDR, --config FILE or --state-dir DIR",
                    state.root().display()
                )),
                Err(broken) => why.hint(format!("the state directory cannot be read: {broken}")),
            })?;
            let address = found.admin.parse::<Address>();
            let address = address.map_err(|why| {
                Failure::new(
                    UNAVAILABLE,
                    format!("the sidecar with pid {} has no usable address: {why}", found.pid),
                )
            })?;
            (address, Some(found))
        }
    };
    let token = match &target.token_file {
        Some(file) => Some(read_token(file).map_err(|why| {
            Failure::new(FAILED, format!("cannot read the token in {}: {why}", file.display()))
        })?),
        None => std::env::var(TOKEN).ok().filter(|token| !token.is_empty()).or_else(|| {
            // One that may not be read is as good as none; the sidecar then says what is missing.
            instance.and_then(|known| read_token(known.token_file.as_deref()?).ok())
        }),
    };
    Ok(Client::new(address, token))
}

fn read_token(file: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(file).map(|text| text.trim().to_owned())
}

fn choose<'a>(instances: &'a [Instance], config: Option<&Path>) -> Result<&'a Instance, Failure> {
    if let Some(config) = config {
        let mut matching = instances.iter().filter(|instance| same_file(Path::new(&instance.config), config));
        // The one that started last has taken over.
        return matching.next_back().ok_or_else(|| {
            Failure::new(UNAVAILABLE, format!("no sidecar runs with {}{}", config.display(), list(instances)))
        });
    }
    match instances {
        [] => {
            Err(Failure::new(UNAVAILABLE, "no sidecar runs on this host as far as its state directory tells"))
        }
        [only] => Ok(only),
        many => Err(Failure::new(UNAVAILABLE, format!("more than one sidecar runs:{}", list(many)))),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    real(a).is_some_and(|a| Some(a) == real(b))
}

fn list(instances: &[Instance]) -> String {
    let line = |instance: &Instance| {
        format!("\n  --admin {}   node {}, config {}", instance.admin, instance.node, instance.config)
    };
    instances.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(config: &str, admin: &str) -> Instance {
        Instance {
            pid: std::process::id(),
            admin: admin.into(),
            config: config.into(),
            node: "n".into(),
            token_file: None,
            started: 0,
        }
    }

    fn common(dir: &Path, config: Option<&str>) -> Common {
        Common { config: config.map(Into::into), state_dir: Some(dir.into()) }
    }

    #[test]
    fn the_only_one_is_meant_and_of_several_the_one_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(dir.path())).unwrap();
        let target = Target::default();
        let none = client(&common(dir.path(), None), &target).unwrap_err();
        assert_eq!(none.code(), UNAVAILABLE);

        let file = dir.path().join("a.yaml");
        std::fs::write(&file, "").unwrap();
        let _a = state.announce(&running(file.to_str().unwrap(), "127.0.0.1:1")).unwrap();
        let found = client(&common(dir.path(), None), &target).unwrap();
        assert_eq!(found.address().to_string(), "127.0.0.1:1");

        let _b = state.announce(&running("embedded", "unix:/x")).unwrap();
        let many = client(&common(dir.path(), None), &target).unwrap_err();
        assert_eq!(many.code(), UNAVAILABLE);
        let text = format!("{many:?}");
        assert!(text.contains("--admin 127.0.0.1:1") && text.contains("--admin unix:/x"), "{text}");

        let link = dir.path().join("link.yaml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let found = client(&common(dir.path(), link.to_str()), &target).unwrap();
        assert_eq!(found.address().to_string(), "127.0.0.1:1");
        assert!(client(&common(dir.path(), Some("/other.yaml")), &target).is_err());

        let target = Target { admin: Some("127.0.0.1:9".parse().unwrap()), token_file: None };
        assert_eq!(client(&common(dir.path(), None), &target).unwrap().address().to_string(), "127.0.0.1:9");
        let target = Target { token_file: Some(dir.path().join("none")), ..target };
        assert_eq!(client(&common(dir.path(), None), &target).unwrap_err().code(), FAILED);
    }
}
