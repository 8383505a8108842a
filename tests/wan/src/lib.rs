//! A wide-area link between two network namespaces, for tests: delay, jitter, loss, duplication, corruption, rate
//! with a queue, MTU, cuts, and UDP blocked while TCP passes.
//!
//! The kernel's own emulator (netem) is a module that many machines lack. This one needs `/dev/net/tun` and root:
//! each namespace has a TUN device, and two threads, one for each direction, carry packets between them through a
//! [`Link`](link::Link). The link is plain arithmetic on packets and points in time and is tested as such.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use qudag_kit::Namespace;
//! use qudag_wan::{Direction, Settings, Wan};
//!
//! let (left, right) = (Namespace::new(), Namespace::new());
//! let settings = Settings::both("delay=20ms,loss=1%,rate=100mbit".parse()?);
//! let wan = Wan::connect(&left, "10.90.0.1/24,fd90::1/64", &right, "10.90.0.2/24,fd90::2/64", settings)?;
//! // … programs talk: `qudag_kit::Start::new("curl").in_namespace(Some(&left))` …
//! wan.block_udp(true)?;
//! wan.change(Direction::ToLeft, |settings| settings.delay *= 2)?;
//! println!("{} packets lost", wan.counters(Direction::ToRight)?.lost);
//! # Ok(())
//! # }
//! ```

mod device;
pub mod link;
mod pump;
mod wan;

pub use link::{Counters, Jitter, LinkSettings, Loss, Mtu, Queue, Rate, Reorder, Shape, Share};
pub use wan::{DIRECTIONS, Direction, Settings, Wan, WanError};
