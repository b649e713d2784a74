//! The rows that are measured, their aims, and how they are printed.

use serde_json::{Value, json};

use super::load::Load;
use crate::bench::median;

/// The caches and databases. The last differs from the second in our cache alone.
pub(super) const PAIRS: &[&str] = &["moka+sqlite", "redis+postgres", "memcached+mysql", NEAR];

/// The frameworks: the layer, against tower-sessions', and the adapter, against actix-session's stores.
pub(super) const STACKS: &[&str] = &["axum", "actix"];

const NEAR: &str = "near+redis+postgres";
const PAGES: [&str; 4] = ["plain", "read", "write", "log_in_out"];
const CONNECTIONS: [u32; 3] = [1, 64, 512];

/// Returns the pair of the peer.
pub(super) fn theirs(pair: &str) -> &str {
    if pair == NEAR { "redis+postgres" } else { pair }
}

/// The other site of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The stores of tower-sessions or actix-session.
    Theirs,
    /// The same page, without a layer.
    Bare,
}

/// A page under a number of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) pair: &'static str,
    pub(super) stack: &'static str,
    pub(super) page: &'static str,
    pub(super) connections: u32,
    pub(super) peer: Peer,
}

/// Returns all rows, those of one pair and one stack in a row.
pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for pair in PAIRS.iter().copied() {
        for stack in STACKS.iter().copied() {
            let row = |page, connections, peer| Row { pair, stack, page, connections, peer };
            for page in PAGES {
                let is_wanted = pair != NEAR || (stack == "axum" && page == "read");
                rows.extend(
                    CONNECTIONS.iter().filter(|_| is_wanted).map(|number| row(page, *number, Peer::Theirs)),
                );
            }
            if pair == "moka+sqlite" && stack == "axum" {
                rows.extend(CONNECTIONS.iter().map(|number| row("plain", *number, Peer::Bare)));
            }
        }
    }
    rows
}

impl Row {
    fn name(&self) -> String {
        if self.peer == Peer::Bare {
            return format!("layer {}", self.connections);
        }
        if (self.pair, self.connections) == (NEAR, 64) {
            return "near_http".to_owned();
        }
        format!("{} {} {} {}", self.pair, self.stack, self.page, self.connections)
    }

    /// Returns the ratio of requests per second to reach. There are no aims against actix-session, whose stores have
    /// no database.
    fn aim(&self) -> Option<f64> {
        match (self.pair, self.stack, self.page, self.connections, self.peer) {
            (.., Peer::Bare) => Some(0.97),
            (_, "actix", ..) | (_, _, "plain", ..) => None,
            (NEAR, _, _, 64, _) => Some(2.0),
            (.., 1, _) => Some(1.0),
            ("redis+postgres", _, "read", 64, _) => Some(1.5),
            ("redis+postgres", _, "write", 64, _) => Some(1.3),
            ("moka+sqlite", _, "write", 64, _) => Some(5.0),
            _ => None,
        }
    }

    fn what(&self) -> &'static str {
        match (self.peer, self.stack, self.pair) {
            (Peer::Bare, ..) => "a page that uses no session, with the layer, against none",
            (_, "actix", "moka+sqlite") => "against actix-session's CookieSessionStore",
            (_, "actix", _) => "against actix-session's RedisSessionStore",
            (_, _, "moka+sqlite") => "against tower-sessions' CachingSessionStore<MokaStore, SqliteStore>",
            (_, _, "memcached+mysql") => "against tower-sessions' MySqlStore, as it has none for memcached",
            _ => "against tower-sessions' CachingSessionStore<RedisStore, PostgresStore>",
        }
    }

    /// Returns the row with the medians of its rounds, each of which is ours and theirs.
    pub(super) fn figure(&self, rounds: &[(Load, Load)]) -> Value {
        let ratios: Vec<_> = rounds
            .iter()
            .map(|(ours, theirs)| ours.requests_per_second / theirs.requests_per_second)
            .collect();
        let ours: Vec<_> = rounds.iter().map(|(ours, _)| *ours).collect();
        let theirs: Vec<_> = rounds.iter().map(|(_, theirs)| *theirs).collect();
        json!({
            "name": self.name(), "what": self.what(), "value": median(&ratios),
            "at_most": null, "at_least": self.aim(), "rounds": ratios,
            "page": self.page, "ours": medians(&ours), "theirs": medians(&theirs),
        })
    }
}

fn medians(loads: &[Load]) -> Value {
    let of = |number: fn(&Load) -> f64| median(&loads.iter().map(number).collect::<Vec<_>>());
    let cpu: Option<Vec<_>> = loads.iter().map(|load| load.cpu).collect();
    json!({
        "requests_per_second": of(|load| load.requests_per_second), "p50": of(|load| load.p50),
        "p99": of(|load| load.p99), "cpu": cpu.map(|cpu| median(&cpu)),
    })
}

/// Returns a row as a line, for the progress.
pub(super) fn line(row: &Value) -> String {
    let rate = |path: &str| row.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    format!(
        "{:<36} {:>8.0} and {:>8.0} requests/s, {:>5.2}",
        row["name"].as_str().unwrap_or(""),
        rate("/ours/requests_per_second"),
        rate("/theirs/requests_per_second"),
        row["value"].as_f64().unwrap_or(0.0)
    )
}

/// Returns the rows as a table in Markdown, which can be pasted into a document. A pair of numbers is ours and the
/// peer's.
pub(super) fn table(rows: &[Value]) -> String {
    let mut table = String::from(
        "| pair, stack, page, connections | ratio | aim | requests/s | p50, ms | p99, ms | CPU per request, µs |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let both = |name: &str, digits: usize| {
            let one = |side: &Value| {
                side.get(name).and_then(Value::as_f64).map_or("?".to_owned(), |it| format!("{it:.digits$}"))
            };
            format!("{}, {}", one(&row["ours"]), one(&row["theirs"]))
        };
        let (ratio, aim) = (row["value"].as_f64().unwrap_or(0.0), row["at_least"].as_f64());
        table.push_str(&format!(
            "| {} | {ratio:.2}{} | {} | {} | {} | {} | {} |\n",
            row["name"].as_str().unwrap_or(""),
            if aim.is_some_and(|aim| ratio < aim) { " (missed)" } else { "" },
            aim.map_or(String::new(), |aim| format!("at least {aim}")),
            both("requests_per_second", 0),
            both("p50", 2),
            both("p99", 1),
            both("cpu", 0),
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(requests_per_second: f64) -> Load {
        Load { requests_per_second, p50: 1.0, p99: 2.0, cpu: Some(30.0) }
    }

    #[test]
    fn ratio_is_the_median_of_rounds_and_a_missed_aim_is_marked() {
        let is_row = |row: &&Row| row.pair == "redis+postgres" && row.stack == "axum" && row.page == "read";
        let rows = all();
        let row = rows.iter().find(|row| is_row(row) && row.connections == 64).unwrap();
        let figure =
            row.figure(&[(load(100.0), load(100.0)), (load(120.0), load(100.0)), (load(300.0), load(100.0))]);
        assert_eq!(figure["value"], 1.2);
        let table = table(&[figure]);
        let expected = "| redis+postgres axum read 64 | 1.20 (missed) | at least 1.5 | 120, 100 | 1.00, 1.00 | 2.0, 2.0 | 30, 30 |";
        assert!(table.contains(expected), "{table}");
    }

    #[test]
    fn names_of_rows_differ() {
        let mut names: Vec<_> = all().iter().map(Row::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.contains(&"near_http".to_owned()));
    }
}
