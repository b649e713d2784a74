//! A cluster's redirections. The driver would follow them itself, but the same setting would let it send a command again
//! whose outcome is unknown.

use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

/// How often a command is sent on before it is given up. Each time, a server has said that it did not execute it.
const REDIRECTIONS: usize = 4;

pub(super) async fn send(connection: &mut ClusterConnection, cmd: &Cmd) -> RedisResult<Value> {
    let mut answer = route(connection, cmd).await;
    for _ in 0..REDIRECTIONS {
        answer = match &answer {
            // By now the driver asks for the new map of slots, and keeps what comes until it has it.
            Err(error) if is(error, ServerErrorKind::Moved) => route(connection, cmd).await,
            Err(error) if is(error, ServerErrorKind::Ask) => match node(error) {
                Some(node) => ask(connection, cmd, node).await,
                None => return answer,
            },
            _ => return answer,
        };
    }
    answer
}

fn is(error: &RedisError, kind: ServerErrorKind) -> bool {
    error.kind() == ErrorKind::Server(kind)
}

async fn route(connection: &mut ClusterConnection, cmd: &Cmd) -> RedisResult<Value> {
    use redis::aio::ConnectionLike;
    connection.req_packed_command(cmd).await?.extract_error()
}

/// The slot is on its way to another node, and this key has arrived there or is new.
fn node(error: &RedisError) -> Option<SingleNodeRoutingInfo> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    Some(SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().ok()? })
}

async fn ask(
    connection: &mut ClusterConnection,
    cmd: &Cmd,
    node: SingleNodeRoutingInfo,
) -> RedisResult<Value> {
    // `ASKING` holds for the next command of the connection, so nobody else's must come in between: a pipeline.
    let mut pipeline = Pipeline::new();
    pipeline.cmd("ASKING").add_command(cmd.clone());
    let answers = connection.route_pipeline(pipeline, 0, 2, node).await?;
    answers.into_iter().next_back().unwrap_or_default().extract_error()
}
