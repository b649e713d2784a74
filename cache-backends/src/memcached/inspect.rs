//! The report for an operator. It uses the text protocol on a connection of its own, because the driver has
//! no commands for it.

use std::io;
use std::iter::once;
use std::sync::Arc;

use async_trait::async_trait;
use session_core::{CacheError, Timestamp};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::{MemcachedCache, error};
use crate::{Inspect, Inspection};

#[async_trait]
impl Inspect for MemcachedCache {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        let servers = &self.0.servers;
        let mut inspections = Vec::new();
        for server in once(&servers.first).chain(&servers.others) {
            let mut inspection = server.within_connect_timeout(inspect_server(server.address())).await?;
            inspection.address = Some(server.address().to_owned());
            inspections.push(inspection);
        }
        Ok(inspections)
    }
}

async fn inspect_server(address: &str) -> Result<Inspection, CacheError> {
    let unavailable = |error: io::Error| error::not_connected(address, Arc::new(error));
    let mut stream = TcpStream::connect(address).await.map_err(unavailable)?;
    stream.write_all(b"stats\r\nstats settings\r\n").await.map_err(unavailable)?;
    let mut lines = BufReader::new(stream).lines();
    let mut inspection = Inspection::default();
    let mut answers = 0;
    while answers < 2 {
        let line = lines.next_line().await.map_err(unavailable)?;
        let line = line.ok_or_else(|| unavailable(io::ErrorKind::UnexpectedEof.into()))?;
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("STAT"), Some(name), Some(value)) => read_stat(&mut inspection, answers, name, value),
            (Some("END"), ..) => answers += 1,
            // No statistic that is read here has an empty value.
            (Some("STAT"), ..) => {}
            _ => return Err(CacheError::Refused("memcached does not report its statistics".into())),
        }
    }
    Ok(inspection)
}

/// Reads one statistic. `answer` is the number of the command, because a name can have another meaning in
/// each.
fn read_stat(inspection: &mut Inspection, answer: u32, name: &str, value: &str) {
    match (answer, name) {
        (0, "version") => {
            inspection.version = Some(format!("memcached {value}"));
            inspection.needed_version = is_too_old(value).then_some("memcached 1.6.27");
        }
        (0, "time") => inspection.clock = value.parse().ok().map(Timestamp::from_secs),
        (0, "bytes") => inspection.used_bytes = value.parse().ok(),
        (0, "limit_maxbytes") => inspection.max_bytes = value.parse().ok(),
        (0, "evictions") => inspection.evicted = value.parse().ok(),
        (1, "evictions") => {
            inspection.eviction = Some(if value == "off" { "none" } else { "lru" }.to_owned());
        }
        _ => {}
    }
}

/// Returns `true` if this version cannot set CAS values.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => (major, minor, patch) < (1, 6, 27),
        // Another program's version shows nothing.
        _ => false,
    }
}
