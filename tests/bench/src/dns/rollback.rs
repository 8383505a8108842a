//! Rollback by DNS: the names of a service lead to the node instead of the sidecar.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qudag_kit::dns_wire::{Ask, View, rtype};
use serde_json::json;

use super::Table;
use crate::Failure;
use crate::row::Row;

const NAME: &str = "web.svc.internal.";
const TO_SIDECAR: [u8; 4] = [127, 0, 0, 1];
/// Six seconds, less the five that a client may keep an answer.
const AIM: f64 = 1_000.0;

/// How long answers that lead to the other place come after `bypass` has been switched, while a client asks each millisecond.
pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let switches = if table.plan.is_quick() { 4 } else { 20 };
    let sidecar = table.stage.sidecar(
        "listeners: { dns: { bind: \"127.0.0.1:0\" } }\nbypass:\n  zone: svc.internal\n  names:\n    - { name: web.svc.internal, \
         sidecar: [127.0.0.1], node: [127.0.0.2], port: 1 }\n",
    )?;
    let server = sidecar.at("dns")?;
    let mut slowest = 0.0_f64;
    for switch in 0..switches {
        let on = switch % 2 == 0;
        let ended = AtomicBool::new(false);
        let (last, switched) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| last_answer(server, on, &ended));
            std::thread::park_timeout(Duration::from_millis(200));
            let start = Instant::now();
            let switched = sidecar.post("/bypass", json!({ "on": on })).map(|()| start);
            // A name that has not moved by then has failed, and counts with the whole time.
            std::thread::park_timeout(Duration::from_millis(1_500));
            ended.store(true, Ordering::Relaxed);
            (asking.join(), switched)
        });
        let (last, start) = (last.map_err(|_| "the client panicked")??, switched?);
        slowest = slowest.max(last.saturating_duration_since(start).as_secs_f64() * 1e3);
    }
    Ok(vec![
        Row::alone("dns, bypass on and off: command to last old answer, slowest", slowest, "ms").at_most(AIM),
    ])
}

/// When the last answer came that leads to where `on` leads no more.
fn last_answer(server: SocketAddr, on: bool, ended: &AtomicBool) -> Result<Instant, Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let query = Ask::new(NAME, rtype::A).bytes();
    let mut reply = [0; 512];
    let mut last = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        socket.send(&query)?;
        let length = socket.recv(&mut reply)?;
        let view = View::read(reply.get(..length).unwrap_or_default())?;
        match view.data(rtype::A).as_slice() {
            [address] if (*address == TO_SIDECAR) == on => last = Instant::now(),
            [_] => {}
            _ => return Err(format!("{NAME} has no address: {view:?}").into()),
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(last)
}
