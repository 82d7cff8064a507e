//! Figures of one run, medians of several, and how latencies become figures.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The longest latency that a histogram tells from a longer one: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// What a run of one system came to. A part that a system has no figure for is `None`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// One outstanding small message.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Small messages a second, as many as the system takes.
    pub(crate) small_per_s: Option<f64>,
    /// Payload of large messages, in 10^6 bytes a second, counted once.
    pub(crate) large_mb_per_s: Option<f64>,
}

/// The two quantiles that are shown, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Figures {
    /// Each figure's median over the runs.
    pub(crate) fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> Option<f64>| median(runs.iter().filter_map(figure).collect());
        Self {
            p50_us: of(|run| run.p50_us),
            p99_us: of(|run| run.p99_us),
            small_per_s: of(|run| run.small_per_s),
            large_mb_per_s: of(|run| run.large_mb_per_s),
        }
    }
}

/// The value in the middle; of an even number the lower of the two, as in the product's own reports.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Latencies of a closed loop, in nanoseconds.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Result<Self, Failure> {
        Histogram::new_with_bounds(1, LONGEST, 3)
            .map(Self)
            .map_err(|cause| Failure::bug(format!("can't make a histogram: {cause}")))
    }

    #[inline]
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LONGEST));
    }

    /// The quantiles, corrected for coordinated omission exactly as `consort bench latency` corrects its own: with the
    /// mean as the expected interval. Anything else would compare two different figures.
    pub(crate) fn quantiles(&self) -> Quantiles {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 0 to LONGEST
        let corrected = match self.0.mean() as u64 {
            0 => self.0.clone(),
            mean => self.0.clone_correct(mean),
        };
        let us = |quantile| as_f64(corrected.value_at_quantile(quantile)) / 1e3;
        Quantiles { p50: us(0.5), p99: us(0.99) }
    }
}

/// Counters stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_figure_alone() {
        let run =
            |p50: f64, rate| Figures { p50_us: Some(p50), small_per_s: Some(rate), ..Figures::default() };
        let median = Figures::median(&[run(3.0, 10.0), run(1.0, 30.0), run(2.0, 20.0)]);
        assert_eq!((median.p50_us, median.small_per_s, median.p99_us), (Some(2.0), Some(20.0), None));
        assert_eq!(Figures::median(&[]), Figures::default());
        assert_eq!(super::median(vec![1.0, 2.0]), Some(1.0));
    }

    #[test]
    fn a_stall_counts_for_all_that_it_would_have_delayed() {
        let mut latencies = Latencies::new().unwrap();
        for _ in 0..9_999 {
            latencies.record(Duration::from_micros(1));
        }
        latencies.record(Duration::from_millis(1));
        let quantiles = latencies.quantiles();
        assert!(quantiles.p50 < 1.2 && quantiles.p99 > 800.0, "{quantiles:?}");
    }
}
