//! A snapshot of the cache that somebody wrote who can sign it, or that a bug wrote: it is taken or refused, and whatever is
//! served from it is a reply to the question that was asked.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use qudag_filter_api::{
    Address, Env, FilterError, FilterSpec, Host, HostPort, Lanes, Node, Resolve, Svc, service_fn,
};
use qudag_filter_dns::dns_cache::SnapshotFile;
use qudag_filter_dns::wire::parse_reply;
use qudag_filter_dns::{Dns, DnsCache, DnsQuery, Transport};
use tempfile::TempDir;
use tower::ServiceExt;

struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        let why = std::io::Error::other(name.to_owned());
        Box::pin(async move { Err(why) })
    }
}

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// The next piece behind its length.
fn piece<'a>(rest: &mut &'a [u8], most: usize) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length)).min(most).min(behind.len());
    let (piece, behind) = behind.split_at(length);
    *rest = behind;
    Some(piece)
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, mut rest)) = input.split_first() else { return };
    let mut file = b"QDNSSNAP\0\0\0\x01".to_vec();
    let written = now();
    let mut messages = Vec::new();
    if mode & 1 == 0 {
        // Anything at all behind the schema's version.
        file.extend_from_slice(rest);
    } else {
        // Entries of any key and message, born lately.
        file.extend(written.to_be_bytes());
        let count_at = file.len();
        file.extend([0; 4]);
        let mut count = 0_u32;
        while let (Some(key), Some(message)) = (piece(&mut rest, 300), piece(&mut rest, 4000)) {
            file.extend((key.len() as u16).to_be_bytes());
            file.extend((message.len() as u16).to_be_bytes());
            file.extend((written - u64::from(mode) * 1000).to_be_bytes());
            file.extend_from_slice(key);
            file.extend_from_slice(message);
            messages.push(message);
            count += 1;
        }
        file[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
    }
    let key = blake3::derive_key("qudag-sidecar 2025 dns_cache snapshot", b"");
    let hash = blake3::keyed_hash(&key, &file);
    file.extend_from_slice(hash.as_bytes());
    let path = DIR.path().join("snapshot");
    std::fs::write(&path, &file).expect("a file");

    let settings = DnsCache { snapshot: Some(SnapshotFile { file: path, key: None }), ..DnsCache::default() };
    let here = |port| HostPort { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port };
    let node = Node { name: "fuzz".into(), p2p: here(1), rpc: Address::Tcp(here(2)), http: here(3) };
    let env = Env {
        node: Arc::new(node),
        resolve: Arc::new(NoNames),
        service: Arc::default(),
        lanes: Lanes::default(),
    };
    RUNTIME.block_on(async {
        let state = settings.state(&env, None).expect("a state, whatever the file is");
        let stats = state.stats();
        assert!(stats.entries <= messages.len() as u64 || mode & 1 == 0, "{stats:?}");
        assert!(stats.bytes <= stats.max_bytes, "{stats:?}");
        let nobody: Svc<Dns> =
            service_fn::<Dns, _, _>(|_| async { Err(FilterError::Refused("nobody".into())) });
        let chain = settings.wrap(state, nobody);
        for message in messages {
            // The question of the message, as a query.
            let Some(reply) = parse_reply(message) else { continue };
            let end = 12 + reply.name.wire().len() + 4;
            let mut query = message[..end].to_vec();
            query[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            let client = ([127, 0, 0, 1], 1).into();
            let Ok(query) = DnsQuery::parse(query.into(), client, Transport::Udp) else { continue };
            if let Ok(found) = chain.clone().oneshot(query.clone()).await {
                let sent = found.finish(&query, usize::from(u16::MAX));
                let sent = parse_reply(&sent).expect("what is sent is a reply");
                assert_eq!((&sent.name, sent.qtype, sent.qclass), (&reply.name, reply.qtype, reply.qclass));
                assert!(sent.records.iter().all(|record| record.ttl <= 300), "{sent:?}");
            }
        }
    });
});
