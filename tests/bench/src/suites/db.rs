//! PostgreSQL sessions, beside HAProxy in TCP mode.

use std::net::SocketAddr;

use super::{DIRECT, OURS, contender, group};
use crate::contenders::Stage;
use crate::measure::Plan;
use crate::row::Row;
use crate::{Failure, clients};

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let Some(server) = stage.postgres() else { return Ok(Vec::new()) };
    let to = server.addr();
    let sidecar = stage
        .sidecar(&format!("listeners: {{ postgres: {{ bind: \"127.0.0.1:0\", server: \"{to}\" }} }}\n"))?;
    let at = sidecar.at("db")?;
    let haproxy = stage.haproxy("tcp", to);
    let session = |to: SocketAddr| move || clients::Postgres::connect(to, "qudag", "qudag");
    let opening = |to: SocketAddr| move || clients::PostgresSession::connect(to, "qudag", "qudag");
    let mut ways = vec![contender(OURS, &[sidecar.pid()], session(at)), contender(DIRECT, &[], session(to))];
    let mut opens = vec![contender(OURS, &[sidecar.pid()], opening(at)), contender(DIRECT, &[], opening(to))];
    if let Some(haproxy) = &haproxy {
        ways.push(contender("haproxy", &[haproxy.pid()], session(haproxy.addr())));
        opens.push(contender("haproxy", &[haproxy.pid()], opening(haproxy.addr())));
    }
    let mut rows = group("db, select in an open session", &ways, plan)?;
    rows.extend(group("db, session and one select", &opens, plan)?);
    Ok(rows)
}
