//! The load that wrk puts on one page.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::site::Site;
use crate::Result;
use crate::process::output;

const SCRIPT: &str = include_str!("wrk.lua");

/// The answers of one site under load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) requests_per_second: f64,
    /// In milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Processor time of the site per request, in microseconds. `None` where the system does not tell.
    pub(super) cpu: Option<f64>,
}

impl Load {
    /// Puts load on a page, over this number of connections. Fails if an answer is an error.
    pub(super) fn put(site: &Site, page: &str, connections: u32, seconds: u64, dir: &Path) -> Result<Self> {
        let (script, cookies) = (dir.join("wrk.lua"), dir.join("cookies"));
        std::fs::write(&script, SCRIPT)?;
        std::fs::write(&cookies, &site.cookies)?;
        let mut wrk = Command::new("wrk");
        // More threads would take the processors from the server.
        wrk.args(["--threads", "1", "--latency", "--timeout", "10"]);
        wrk.arg(format!("--connections={connections}")).arg(format!("--duration={seconds}s"));
        wrk.arg("--script").arg(script).arg(site.url()).args(["--", page]).arg(cookies);
        let before = site.processor_seconds();
        let printed = output(&mut wrk)?;
        let spent = site.processor_seconds().zip(before).map(|(after, before)| after - before);
        Self::read(&printed, spent).map_err(|fault| {
            format!("page {page} of `{}` with {connections} connections: {fault}", site.name).into()
        })
    }

    /// Reads what the script prints. `spent` is the processor time that the site has used, in seconds.
    fn read(printed: &str, spent: Option<f64>) -> std::result::Result<Self, String> {
        let result = printed.lines().find_map(|line| line.strip_prefix("RESULT "));
        let result: Value = result
            .and_then(|result| serde_json::from_str(result).ok())
            .ok_or_else(|| format!("wrk printed no result:\n{printed}"))?;
        let number = |name: &str| result.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let faults: Vec<_> = [
            ("refused", "answers were errors"),
            ("broken", "connections broke"),
            ("timed_out", "requests had no answer in time"),
        ]
        .into_iter()
        .filter(|(name, _)| number(name) > 0.0)
        .map(|(name, fault)| format!("{} {fault}", number(name)))
        .collect();
        let requests = number("requests");
        if !faults.is_empty() || requests == 0.0 {
            return Err(format!(
                "of {requests} requests, {}",
                if faults.is_empty() { "none was answered".to_owned() } else { faults.join(", ") }
            ));
        }
        Ok(Self {
            requests_per_second: requests / number("seconds"),
            p50: number("p50"),
            p99: number("p99"),
            cpu: spent.map(|seconds| seconds * 1e6 / requests),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(refused: u32, broken: u32, timed_out: u32) -> String {
        format!(
            "Running 2s test\nRESULT {{\"requests\":1000,\"seconds\":2.0,\"p50\":0.5,\"p99\":2.5,\"refused\":{refused},\"broken\":{broken},\"timed_out\":{timed_out}}}\n"
        )
    }

    #[test]
    fn load_is_read_per_second_and_per_request() {
        let load = Load::read(&result(0, 0, 0), Some(0.02)).unwrap();
        assert_eq!((load.requests_per_second, load.p50, load.p99), (500.0, 0.5, 2.5));
        assert!((load.cpu.unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn errors_among_the_answers_fail_the_measurement() {
        for (printed, fault) in [
            (result(3, 0, 0), "3 answers were errors"),
            (result(0, 2, 0), "2 connections broke"),
            (result(0, 0, 1), "1 requests had no answer"),
            ("unable to connect".to_owned(), "unable to connect"),
        ] {
            let error = Load::read(&printed, None).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
    }
}
