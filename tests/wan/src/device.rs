//! A TUN device inside a network namespace.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qudag_kit::Namespace;
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::wan::WanError;

/// Where the kernel hands out TUN devices.
pub(crate) const TUN: &str = "/dev/net/tun";

/// The smallest MTU with which a device has IPv6 (RFC 8200, section 5).
pub(crate) const SMALLEST_V6: u16 = 1280;

/// Packets that the kernel keeps for us while our thread does not run; the default of 500 is 6 ms of 1 Gbit/s.
const QUEUE_LENGTH: u32 = 10_000;

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A new device with these addresses, up. It is gone when the last `Arc` is dropped.
pub(crate) fn open(
    namespace: &Namespace,
    addresses: &str,
    mtu: u16,
) -> Result<(Arc<SyncDevice>, String), WanError> {
    let name = format!("qw{}n{}", std::process::id() % 10_000_000, COUNT.fetch_add(1, Ordering::Relaxed));
    let failed = |what: &'static str| {
        let namespace = namespace.name().to_owned();
        move |source: io::Error| WanError::Io { what, namespace, source }
    };
    let device = namespace.inside(|| create(&name, mtu)).map_err(failed("enter"))?;
    let device = device.map_err(failed("make a TUN device in"))?;
    // No address that nobody asked for, and no talk of groups and routers: a counter then counts what a test sends.
    if mtu >= SMALLEST_V6 {
        namespace.ip(&["link", "set", &name, "addrgenmode", "none"]);
    }
    namespace.ip(&["link", "set", &name, "multicast", "off"]);
    namespace.plug(&name, addresses);
    Ok((Arc::new(device), name))
}

fn create(name: &str, mtu: u16) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name(name)
        .mtu(mtu)
        .enable(false)
        .with(|builder| {
            builder.tx_queue_len(QUEUE_LENGTH);
        })
        .build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// Makes the calling thread one that wakes on time. What is refused is left: the link then is less exact.
pub(crate) fn be_punctual() {
    // Timers of a thread are up to 50 µs late by default, so that wake-ups can be done together.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    // On Linux the priority belongs to the thread. A link does not become slower because a program beside it works.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -15);
}
