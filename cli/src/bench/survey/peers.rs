//! The table of other systems, as `scripts/peers --json` prints it: shown in the same page.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What was measured of other systems. Fields that aren't shown are passed over.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Peers {
    pub(super) machine: String,
    pub(super) members: u32,
    pub(super) small_bytes: u64,
    pub(super) large_bytes: u64,
    pub(super) runs: u32,
    pub(super) seconds: f64,
    pub(super) rows: Vec<Peer>,
}

/// One system: what it promises, what it does, and what Consort did in the same rounds.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Peer {
    pub(super) system: String,
    pub(super) order: String,
    pub(super) done: String,
    pub(super) durability: String,
    pub(super) fabric: String,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) small_per_s: Option<f64>,
    pub(super) large_mb_per_s: Option<f64>,
    pub(super) ratio: Ratio,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_run: Option<String>,
}

/// Above one is better for Consort.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Ratio {
    pub(super) latency: Option<f64>,
    pub(super) throughput: Option<f64>,
    pub(super) large: Option<f64>,
}

/// Reads what `scripts/peers --json` wrote.
///
/// # Errors
/// The file can't be read, or is something else.
pub(super) fn read(path: &Path) -> Result<Peers, Failure> {
    let text = std::fs::read_to_string(path).map_err(|cause| Failure::file("read", path, cause))?;
    serde_json::from_str(&text).map_err(|cause| {
        Failure::usage(
            format!("{} is no comparison with other systems: {cause}", path.display()),
            "give --peers what `scripts/peers --json --out FILE` wrote",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_is_read_and_anything_else_is_refused_by_name() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("peers.json");
        let written = r#"{"members":3,"small_bytes":64,"large_bytes":10240,"runs":3,"seconds":3.0,"machine":"2 cores",
            "rows":[{"name":"raft-rs","system":"raft-rs 0.7","order":"total","done":"at a majority","durability":"none","fabric":"tcp",
            "p50_us":20.5,"p99_us":null,"small_per_s":1e6,"large_mb_per_s":300.0,"against":"volatile",
            "ratio":{"latency":1.5,"throughput":2.0,"large":null},"aim":{"latency":1.0,"throughput":1.5}}]}"#;
        std::fs::write(&file, written).unwrap();
        let peers = read(&file).unwrap();
        assert_eq!((peers.rows[0].p50_us, peers.rows[0].ratio.throughput), (Some(20.5), Some(2.0)));
        std::fs::write(&file, "{}").unwrap();
        let refused = read(&file).unwrap_err().to_string();
        assert!(refused.contains("peers.json is no comparison"), "{refused}");
    }
}
