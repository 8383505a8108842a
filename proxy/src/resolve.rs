//! How the sidecar looks up the names of its own upstreams: as the host does.

use std::io;
use std::net::IpAddr;
use std::sync::OnceLock;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use qudag_filter_api::Resolve;

/// The host's resolver configuration and hosts file, with a cache that respects TTLs.
pub struct SystemResolver {
    resolver: OnceLock<Result<TokioResolver, String>>,
}

impl SystemResolver {
    /// Reads the host's configuration at the first look-up, so that a host without one can run a sidecar that needs none.
    pub fn new() -> Self {
        Self { resolver: OnceLock::new() }
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

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        // Nobody outside may learn of names under `.dark`.
        if name.trim_end_matches('.').rsplit('.').next().is_some_and(|top| top.eq_ignore_ascii_case("dark")) {
            let why = "names under .dark are never asked for; write the address";
            return Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::NotFound, why))));
        }
        let resolver = self.get();
        // A trailing dot keeps the search list out of names that are already complete.
        let name = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
        Box::pin(async move {
            let found = resolver?.lookup_ip(name.as_str()).await.map_err(io::Error::other)?;
            let addresses: Vec<IpAddr> = found.iter().collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            Ok(addresses)
        })
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
        }
    }
}
