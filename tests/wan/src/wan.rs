//! A link between two namespaces.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use qudag_kit::Namespace;
use serde_json::Value;

use crate::device;
use crate::link::{Counters, Link, LinkSettings};
use crate::pump::Pump;

/// Why there is no link, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// Something that this needs is missing.
    #[error("{0}")]
    Unavailable(String),
    /// An address is not written as `10.0.0.1/24` or `fd00::1/64`.
    #[error("{0:?} is not an address with the length of its prefix, as 10.0.0.1/24 or fd00::1/64")]
    Address(String),
    /// The system refused.
    #[error("cannot {what} {namespace}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// In which namespace.
        namespace: String,
        /// What the system said.
        source: io::Error,
    },
    /// A thread ended because its device was deleted.
    #[error("the link has ended: its device is gone")]
    Ended,
}

/// One of the two directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first namespace to the second.
    ToRight,
    /// From the second namespace to the first.
    ToLeft,
}

/// Both directions.
pub const DIRECTIONS: [Direction; 2] = [Direction::ToRight, Direction::ToLeft];

/// How a link begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// From the first namespace to the second.
    pub to_right: LinkSettings,
    /// From the second namespace to the first.
    pub to_left: LinkSettings,
    /// What chance begins with; the two directions differ all the same.
    pub seed: u64,
    /// The MTU of the devices, which the hosts know, in contrast to [`LinkSettings::mtu`], which they must find out.
    /// At least 1280 if there are addresses of IPv6.
    pub device_mtu: u16,
}

impl Settings {
    /// The same for both directions, with a fixed seed and devices of 1500 bytes.
    pub fn both(settings: LinkSettings) -> Self {
        Self { to_right: settings.clone(), to_left: settings, seed: 1, device_mtu: 1500 }
    }
}

/// A link between two namespaces. It ends, with its devices, on drop.
///
/// A namespace may have several; with forwarding switched on in it, it is a router between them.
pub struct Wan {
    to_right: Pump,
    to_left: Pump,
    ends: [End; 2],
}

struct End {
    namespace: String,
    device: String,
}

impl Wan {
    /// Whether links can be made here; if not, why.
    ///
    /// # Errors
    /// When they cannot.
    pub fn available() -> Result<(), WanError> {
        if !qudag_kit::program::is_root() {
            return Err(WanError::Unavailable("emulated links need root".to_owned()));
        }
        let tun = OpenOptions::new().read(true).write(true).open(device::TUN);
        tun.map_err(|error| WanError::Unavailable(format!("emulated links need {}: {error}", device::TUN)))?;
        Namespace::available().map_err(WanError::Unavailable)
    }

    /// Links two namespaces. The ends get the addresses, written as `10.0.0.1/24` or `fd00::1/64`; several are
    /// separated by commas.
    ///
    /// # Errors
    /// When an address cannot be read or the system refuses a device.
    ///
    /// # Panics
    /// When `ip` refuses an address that can be read.
    pub fn connect(
        left: &Namespace,
        left_addresses: &str,
        right: &Namespace,
        right_addresses: &str,
        settings: Settings,
    ) -> Result<Self, WanError> {
        let addresses = || left_addresses.split(',').chain(right_addresses.split(','));
        addresses().try_for_each(check_address)?;
        if settings.device_mtu < device::SMALLEST_V6 && addresses().any(|address| address.contains(':')) {
            let why = format!("devices of {} bytes carry no IPv6; it needs 1280", settings.device_mtu);
            return Err(WanError::Unavailable(why));
        }
        let (left_device, left_name) = device::open(left, left_addresses, settings.device_mtu)?;
        let (right_device, right_name) = device::open(right, right_addresses, settings.device_mtu)?;
        left.wait_for(left_addresses);
        right.wait_for(right_addresses);
        let start = |name, from, to, settings, seed, namespace: &Namespace| {
            let pump = Pump::start(name, from, to, Link::new(settings, seed));
            pump.map_err(|source| WanError::Io {
                what: "start a thread for",
                namespace: namespace.name().to_owned(),
                source,
            })
        };
        let Settings { to_right, to_left, seed, .. } = settings;
        Ok(Self {
            to_right: start("wan-to-right", left_device.clone(), right_device.clone(), to_right, seed, left)?,
            to_left: start("wan-to-left", right_device, left_device, to_left, !seed, right)?,
            ends: [(left, left_name), (right, right_name)]
                .map(|(namespace, device)| End { namespace: namespace.name().to_owned(), device }),
        })
    }

    /// The names of the devices in the first and the second namespace.
    pub fn devices(&self) -> [&str; 2] {
        self.ends.each_ref().map(|end| end.device.as_str())
    }

    /// Changes one direction; what is sent after this returns meets the new settings. For packets that are on their
    /// way, see [`Link::set`].
    ///
    /// # Errors
    /// When the link has ended.
    pub fn change(
        &self,
        direction: Direction,
        change: impl FnOnce(&mut LinkSettings) + Send + 'static,
    ) -> Result<(), WanError> {
        self.pump(direction).set(change).ok_or(WanError::Ended)
    }

    /// Replaces the settings of one direction.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn set(&self, direction: Direction, settings: LinkSettings) -> Result<(), WanError> {
        self.change(direction, move |old| *old = settings)
    }

    /// Changes both directions in the same way.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn change_both(
        &self,
        change: impl Fn(&mut LinkSettings) + Send + Clone + 'static,
    ) -> Result<(), WanError> {
        DIRECTIONS.into_iter().try_for_each(|direction| self.change(direction, change.clone()))
    }

    /// Cuts the link: nothing passes, what is on its way is gone. The hosts are not told.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn cut(&self) -> Result<(), WanError> {
        self.change_both(|settings| settings.cut = true)
    }

    /// Mends a link that was cut.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn mend(&self) -> Result<(), WanError> {
        self.change_both(|settings| settings.cut = false)
    }

    /// Lets UDP pass no longer, or again; TCP and ICMP pass in any case. The hosts are not told.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn block_udp(&self, block: bool) -> Result<(), WanError> {
        self.change_both(move |settings| settings.block_udp = block)
    }

    /// The settings of one direction.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn settings(&self, direction: Direction) -> Result<LinkSettings, WanError> {
        self.pump(direction).settings().ok_or(WanError::Ended)
    }

    /// What one direction did.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn counters(&self, direction: Direction) -> Result<Counters, WanError> {
        self.pump(direction).counters().map(|(counters, _)| counters).ok_or(WanError::Ended)
    }

    /// The CPU time of both threads, to be taken off that of the machine. It holds what the receiving host's kernel
    /// does with a packet until it lies in a socket, because this happens in the call that delivers it.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn cpu_time(&self) -> Result<Duration, WanError> {
        let used = |direction| self.pump(direction).counters().map(|(_, used)| used).ok_or(WanError::Ended);
        Ok(used(Direction::ToRight)? + used(Direction::ToLeft)?)
    }

    /// Packets of one direction that no counter knows: the kernel dropped them before the link, because 10,000 were
    /// waiting for its thread, or after the device was set down. Anything but 0 says that the machine was too busy to measure.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn overruns(&self, direction: Direction) -> Result<u64, WanError> {
        let [left, right] = &self.ends;
        let from = if direction == Direction::ToRight { left } else { right };
        let output = Command::new("ip")
            .args(["-n", &from.namespace, "-j", "-s", "link", "show", "dev", &from.device])
            .output()
            .map_err(|source| WanError::Io {
                what: "ask ip about",
                namespace: from.namespace.clone(),
                source,
            })?;
        let links: Value = serde_json::from_slice(&output.stdout).map_err(|_| WanError::Ended)?;
        links.pointer("/0/stats64/tx/dropped").and_then(Value::as_u64).ok_or(WanError::Ended)
    }

    fn pump(&self, direction: Direction) -> &Pump {
        match direction {
            Direction::ToRight => &self.to_right,
            Direction::ToLeft => &self.to_left,
        }
    }
}

fn check_address(text: &str) -> Result<(), WanError> {
    let wrong = || WanError::Address(text.to_owned());
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.parse().ok().filter(|length: &u8| *length <= most).map(|_| ()).ok_or_else(wrong)
}

/// Leaves the test as skipped when links cannot be made.
#[macro_export]
macro_rules! needs_wan {
    () => {
        if let Err(reason) = $crate::Wan::available() {
            qudag_kit::skip!("{reason}");
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_length() {
        for good in ["10.0.0.1/24", "fd00::1/64", "10.0.0.1/32", "::1/128"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "", "here/24", "10.0.0.1/24,"] {
            assert!(bad.split(',').try_for_each(check_address).is_err(), "{bad}");
        }
    }
}
