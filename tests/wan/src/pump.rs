//! One direction at work: a thread between two devices.
//!
//! The thread owns its [`Link`]; everybody else asks it through a channel, so that a change is in force, and a count
//! exact, when the call returns.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use tun_rs::SyncDevice;

use crate::device::be_punctual;
use crate::link::{Counters, Link, LinkSettings};

/// Packets taken from a device before those that are due are delivered.
const BATCH: usize = 32;
/// The largest packet of IP.
const LARGEST: usize = 65_535;
/// A machine that was idle for this long wakes late, by what its processor and its hypervisor take to come back …
const LONG: Duration = Duration::from_micros(750);
/// … so the thread sleeps less by this much and looks at the clock for the rest. A link in steady use never does.
const EARLY: Duration = Duration::from_micros(150);
/// How long a device that cannot be read, because it was set down, is left alone.
const REST: Duration = Duration::from_millis(10);

enum Request {
    Set(Box<dyn FnOnce(&mut LinkSettings) + Send>, Sender<()>),
    Settings(Sender<LinkSettings>),
    Counters(Sender<(Counters, Duration)>),
    Stop,
}

/// A running direction; ends with its thread on drop.
pub(crate) struct Pump {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Carries packets from one device to the other.
    pub(crate) fn start(
        name: &str,
        from: Arc<SyncDevice>,
        to: Arc<SyncDevice>,
        link: Link,
    ) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let worker =
            Worker { from, to, link, inbox, wake: Arc::clone(&wake), rest_until: None, early: false };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || worker.run())?;
        Ok(Self { requests, wake, thread: Some(thread) })
    }

    /// Changes the settings; they hold when this returns. Nothing when the thread has ended.
    pub(crate) fn set(&self, change: impl FnOnce(&mut LinkSettings) + Send + 'static) -> Option<()> {
        self.ask(|answer| Request::Set(Box::new(change), answer))
    }

    /// The settings.
    pub(crate) fn settings(&self) -> Option<LinkSettings> {
        self.ask(Request::Settings)
    }

    /// What passed, and how much CPU time the thread has used.
    pub(crate) fn counters(&self) -> Option<(Counters, Duration)> {
        self.ask(Request::Counters)
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        self.send(request(answer))?;
        answered.recv().ok()
    }

    fn send(&self, request: Request) -> Option<()> {
        self.requests.send(request).ok()?;
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok()?;
        Some(())
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let _ = self.send(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    link: Link,
    inbox: Receiver<Request>,
    wake: Arc<OwnedFd>,
    /// Until when a device that gave an error is not asked.
    rest_until: Option<Instant>,
    /// Whether the next delivery comes after a long pause.
    early: bool,
}

impl Worker {
    fn run(mut self) {
        be_punctual();
        let mut buffer = vec![0; LARGEST];
        loop {
            self.deliver();
            let (readable, requested) = match self.wait() {
                Ok(ready) => ready,
                Err(_) => return,
            };
            if requested && !self.answer() {
                return;
            }
            if readable && !self.take(&mut buffer) {
                return;
            }
        }
    }

    /// Gives the receiver what is due, and no more than a batch, so that the sender's device does not overflow.
    fn deliver(&mut self) {
        for _ in 0..BATCH {
            let Some(packet) = self.link.pop(Instant::now()) else { return };
            self.early = false;
            if self.to.send(&packet).is_err() {
                self.link.refused(packet.len());
            }
        }
    }

    /// Waits for a packet, a request, or the time of the next delivery; says which of the first two came.
    fn wait(&mut self) -> io::Result<(bool, bool)> {
        let now = Instant::now();
        if self.rest_until.is_some_and(|until| until <= now) {
            self.rest_until = None;
        }
        let until = self.link.next().into_iter().chain(self.rest_until).min();
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(now);
            self.early |= left >= LONG;
            if self.early { left.saturating_sub(EARLY) } else { left }
        });
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut ready = [PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&*self.from, PollFlags::IN)];
        // A device that rests would report its error at once.
        let resting = self.rest_until.is_some();
        let (waiting, _) = ready.split_at_mut(if resting { 1 } else { 2 });
        match poll(waiting, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
        let [wake, from] = ready;
        let readable = !from.revents().is_empty();
        Ok((readable, !wake.revents().is_empty()))
    }

    /// Takes a batch of packets from the sender. False when the device is gone.
    fn take(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..BATCH {
            match self.from.recv(buffer) {
                Ok(length) => {
                    let packet = buffer.get(..length).unwrap_or_default().to_vec();
                    if let Some(answer) = self.link.push(packet, Instant::now()) {
                        // The sender's own device brings it; if it is down, nobody wants to know.
                        let _ = self.from.send(&answer);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // Somebody deleted the device. (A namespace that is removed lives on, without a name, until we let go.)
                Err(error) if error.raw_os_error() == Some(Errno::BADFD.raw_os_error()) => return false,
                Err(_) => {
                    self.rest_until = Some(Instant::now() + REST);
                    return true;
                }
            }
        }
        true
    }

    /// Does what was asked. False at the end.
    fn answer(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok(request) = self.inbox.try_recv() {
            match request {
                Request::Set(change, done) => {
                    let mut settings = self.link.settings().clone();
                    change(&mut settings);
                    self.link.set(settings, Instant::now());
                    let _ = done.send(());
                }
                Request::Settings(answer) => drop(answer.send(self.link.settings().clone())),
                Request::Counters(answer) => {
                    let used = clock_gettime(ClockId::ThreadCPUTime);
                    let used = Duration::try_from(used).unwrap_or_default();
                    let _ = answer.send((self.link.counters(), used));
                }
                Request::Stop => return false,
            }
        }
        true
    }
}
