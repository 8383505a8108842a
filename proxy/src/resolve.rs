//! How the sidecar looks up the names of its own upstreams: as the host does.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use qudag_filter_api::{Answer, Resolve};

/// The host's resolver configuration and hosts file, with a cache that respects TTLs.
pub struct SystemResolver {
    resolver: OnceLock<Result<TokioResolver, String>>,
    /// The same without a cache, with the files as they were when it was made.
    asking: Mutex<Option<(Files, TokioResolver)>>,
}

/// What tells one version of a file from another; `None` where there is no file.
type Version = Option<(u64, u64, i64, i64)>;
/// Of the resolver's configuration and the hosts file.
type Files = [Version; 2];

fn files() -> Files {
    ["/etc/resolv.conf", "/etc/hosts"].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    })
}

impl SystemResolver {
    /// Reads the host's configuration at the first look-up, so that a host without one can run a sidecar that needs none.
    pub fn new() -> Self {
        Self { resolver: OnceLock::new(), asking: Mutex::default() }
    }

    /// The resolver without a cache, made anew where the host's files have changed.
    fn asking(&self) -> io::Result<TokioResolver> {
        let now = files();
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, resolver)) = asking.as_ref()
            && *then == now
        {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        builder.options_mut().cache_size = 0;
        let resolver = builder.build().map_err(io::Error::other)?;
        *asking = Some((now, resolver.clone()));
        Ok(resolver)
    }

    fn get(&self) -> io::Result<TokioResolver> {
        let resolver = self.resolver.get_or_init(|| {
            TokioResolver::builder_tokio()
                .and_then(hickory_resolver::ResolverBuilder::build)
                .map_err(|why| why.to_string())
        });
        resolver.clone().map_err(io::Error::other)
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

/// The name as it is asked for.
///
/// # Errors
/// Nobody outside may learn of names under `.dark`.
fn outside(name: &str) -> io::Result<String> {
    if name.trim_end_matches('.').rsplit('.').next().is_some_and(|top| top.eq_ignore_ascii_case("dark")) {
        let why = "names under .dark are never asked for; write the address";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    // A trailing dot keeps the search list out of names that are already complete.
    Ok(if name.contains('.') { format!("{name}.") } else { name.to_owned() })
}

async fn look_up(name: io::Result<String>, resolver: io::Result<TokioResolver>) -> io::Result<Answer> {
    let found = resolver?.lookup_ip(name?.as_str()).await.map_err(io::Error::other)?;
    let ips: Vec<IpAddr> = found.iter().collect();
    if ips.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(Answer { ips, holds: found.valid_until().saturating_duration_since(Instant::now()) })
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (name, resolver) = (outside(name), self.get());
        Box::pin(async move { look_up(name, resolver).await.map(|answer| answer.ips) })
    }

    fn ask(&self, name: &str) -> BoxFuture<'static, io::Result<Answer>> {
        Box::pin(look_up(outside(name), self.asking()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dark_names_are_not_asked_for() {
        for name in ["peer.dark", "a.b.DARK.", "dark"] {
            let refused = SystemResolver::new().resolve(name).await.unwrap_err();
            assert!(refused.to_string().contains("never asked for"), "{name}: {refused}");
            let refused = SystemResolver::new().ask(name).await.unwrap_err();
            assert!(refused.to_string().contains("never asked for"), "{name}: {refused}");
        }
    }
}
