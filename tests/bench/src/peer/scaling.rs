//! One sidecar with many others.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use qudag_kit::program::footprint;

use super::stand::{Route, Stand};
use crate::contenders::Stage;
use crate::measure::{Contender, Plan, interleaved, steps};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, clients, servers};

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let counts: &[usize] = if plan.is_quick() { &[1, 4] } else { &[1, 4, 16] };
    let stand = Stand::local(stage);
    let echo = stand.server(servers::echo)?;
    let mut near = Vec::new();
    let mut far = Vec::new();
    for count in counts {
        while far.len() < *count {
            far.push(stand.far_end(&format!("far-{}", far.len()), echo)?);
        }
        let routes: Vec<_> = far.iter().take(*count).map(|to| Route { to, class: "interactive" }).collect();
        let sidecar = stand.near_end(&routes, "")?;
        let at: Vec<SocketAddr> =
            (0..*count).map(|number| sidecar.at_named(&format!("far-{number}"))).collect::<Result<_, _>>()?;
        near.push((*count, sidecar, at));
    }
    let turn = AtomicUsize::new(0);
    let contenders: Vec<Contender<'_>> = near
        .iter()
        .map(|(_, sidecar, at)| Contender {
            name: "sidecar",
            pids: vec![sidecar.pid()],
            connect: Box::new(|| {
                let place = turn.fetch_add(1, Ordering::Relaxed) % at.len();
                at.get(place)
                    .map_or_else(|| Err(io::ErrorKind::NotFound.into()), |to| clients::Echo::connect(*to))
            }),
        })
        .collect();
    let plan = Plan { clients: 16, ..plan };
    let progress = Progress::new("peer, scaling", steps(contenders.len(), plan));
    let figures = interleaved(&contenders, plan, &progress)?;
    drop(progress);
    let mut rows = Vec::new();
    for ((count, sidecar, _), figures) in near.iter().zip(&figures) {
        let title = format!("peer, one sidecar with {count} others");
        rows.extend(
            figures.cpu.map(|cpu| Row::alone(format!("{title}: CPU per 64 B there and back"), cpu, "µs")),
        );
        let memory = footprint(sidecar.pid()).0 as f64 / 1024.0;
        rows.push(Row::alone(format!("{title}: resident memory"), memory, "MiB"));
    }
    Ok(rows)
}
