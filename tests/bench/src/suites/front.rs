//! HTTP and RPC in front of the node, beside HAProxy.

use std::net::SocketAddr;

use super::{DIRECT, OURS, contender, group};
use crate::clients::{self, RpcServer};
use crate::contenders::{Sidecar, Stage};
use crate::measure::Plan;
use crate::row::Row;
use crate::{Failure, servers};

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let mut rows = http(stage, plan)?;
    rows.extend(rpc(stage, plan)?);
    Ok(rows)
}

fn http(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let kept = clients::HttpKept::connect;
    let once = clients::HttpOnce::connect;
    let ours = |to: SocketAddr, pooling: bool| -> Result<(Sidecar, SocketAddr), Failure> {
        let sidecar = stage.sidecar(&format!(
            "node: {{ http: \"{to}\" }}\nlisteners: {{ http: {{ bind: \"127.0.0.1:0\" }} }}\n\
             filters: {{ http: {{ connection_pooling: {{ enabled: {pooling} }} }} }}\n"
        ))?;
        let at = sidecar.at("http")?;
        Ok((sidecar, at))
    };

    let clean = servers::http_clean()?;
    let ((off, off_at), (pooling, pooling_at)) = (ours(clean, false)?, ours(clean, true)?);
    let haproxy = stage.haproxy("http", clean);
    let mut rows = Vec::new();
    let sides =
        [("http, all filters off", &off, off_at), ("http, connection_pooling on", &pooling, pooling_at)];
    for (title, sidecar, at) in sides {
        let mut ways = vec![
            contender(OURS, &[sidecar.pid()], move || kept(at)),
            contender(DIRECT, &[], move || kept(clean)),
        ];
        if let Some(haproxy) = &haproxy {
            let at = haproxy.addr();
            ways.push(contender("haproxy", &[haproxy.pid()], move || kept(at)));
        }
        rows.extend(group(title, &ways, plan)?);
    }

    let node = servers::http_node()?;
    let (sidecar, at) = ours(node, false)?;
    let ways =
        [contender(OURS, &[sidecar.pid()], move || once(at)), contender(DIRECT, &[], move || once(node))];
    rows.extend(group("http, a node's replies, a connection each", &ways, plan)?);
    let ways =
        [contender(OURS, &[sidecar.pid()], move || kept(at)), contender(DIRECT, &[], move || once(node))];
    rows.extend(group("http, a node's replies, kept to the sidecar", &ways, plan)?);
    Ok(rows)
}

fn rpc(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("rpc.sock");
    servers::rpc(&socket)?;
    let node = servers::rpc_tcp()?;
    let ours = |to: String| {
        stage.sidecar(&format!(
            "node: {{ rpc: \"{to}\" }}\nlisteners: {{ rpc: {{ bind: \"127.0.0.1:0\" }} }}\n"
        ))
    };
    let call = |server: RpcServer| move || clients::Rpc::connect(&server);

    let sidecar = ours(node.to_string())?;
    let haproxy = stage.haproxy("tcp", node);
    let mut ways = vec![
        contender(OURS, &[sidecar.pid()], call(RpcServer::Once(sidecar.at("rpc")?))),
        contender(DIRECT, &[], call(RpcServer::Once(node))),
    ];
    if let Some(haproxy) = &haproxy {
        ways.push(contender("haproxy", &[haproxy.pid()], call(RpcServer::Once(haproxy.addr()))));
    }
    let mut rows = group("rpc over TCP, a connection each", &ways, plan)?;

    let sidecar = ours(format!("unix:{}", socket.display()))?;
    let ways = [
        contender(OURS, &[sidecar.pid()], call(RpcServer::Kept(sidecar.at("rpc")?))),
        contender(DIRECT, &[], call(RpcServer::Unix(socket))),
    ];
    rows.extend(group("rpc, node on a Unix socket, kept to the sidecar", &ways, plan)?);
    Ok(rows)
}
