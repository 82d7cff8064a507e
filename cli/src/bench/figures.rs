//! From runs to figures: quantiles, the run in the middle, and the object that `--json` prints.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::{GuaranteeArg, WaitArg};
use crate::orders::Counts;
use crate::text::as_f64;

/// Between the order to start and the start, in nanoseconds: until all have heard it.
pub(crate) const LEAD: u64 = 20_000_000;

/// As the orders say times.
pub(crate) fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A distribution in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(values: &Histogram<u64>) -> Self {
        let us = |nanoseconds: u64| as_f64(nanoseconds) / 1e3;
        let at = |quantile| us(values.value_at_quantile(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(values.max()),
            mean: values.mean() / 1e3,
        }
    }
}

/// Distributions of all runs together, for the plot.
pub(crate) struct Curves {
    pub(crate) own: Histogram<u64>,
    pub(crate) last: Histogram<u64>,
    pub(crate) floor: Histogram<u64>,
}

/// The index of the run in the middle, by `key`: of an even number the lower of the two.
pub(crate) fn middle(keys: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut order: Vec<(usize, f64)> = keys.into_iter().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.get(order.len().checked_sub(1)? / 2).map(|(index, _)| *index)
}

/// In milliseconds.
pub(crate) fn ms(nanoseconds: u64) -> f64 {
    as_f64(nanoseconds) / 1e6
}

/// The value in the middle; the lower of two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// What `bench latency` and `bench throughput` print with `--json`. Figures are those of the run in the middle, by p50
/// or by messages a second; the floor's are those of its own run in the middle.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    pub(crate) fabric: String,
    pub(crate) engine: String,
    pub(crate) members: u32,
    pub(crate) senders: u32,
    /// Bytes of payload.
    pub(crate) size: usize,
    pub(crate) guarantee: GuaranteeArg,
    pub(crate) wait: WaitArg,
    pub(crate) ring_bytes: usize,
    /// Messages a second and sender that were asked for, if any were.
    pub(crate) rate: Option<f64>,
    /// Delivered at all members in the run in the middle.
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    pub(crate) msgs_per_s: f64,
    /// Payload, counted once, in 10^9 bytes a second.
    pub(crate) gb_per_s: f64,
    /// From send to delivery at the sender.
    pub(crate) latency_us: Quantiles,
    /// From send to delivery at the member that was last.
    pub(crate) last_member_us: Quantiles,
    /// How the latencies deal with coordinated omission.
    pub(crate) correction: &'static str,
    /// As measured, without the correction.
    pub(crate) uncorrected_latency_us: Quantiles,
    /// CPU of all members together.
    pub(crate) cpu_s_per_million: f64,
    /// Of all members' engines together.
    pub(crate) system_calls_per_message: f64,
    pub(crate) floor: FloorFigures,
    pub(crate) ratio: Ratio,
    pub(crate) runs: Vec<RunFigures>,
}

/// The floor in figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FloorFigures {
    /// What the latency floor does.
    pub(crate) latency: &'static str,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// The median as measured; the others are corrected, as the group's are.
    pub(crate) uncorrected_p50_us: f64,
    /// What `msgs_per_s` counts.
    pub(crate) throughput: &'static str,
    pub(crate) msgs_per_s: f64,
    pub(crate) gb_per_s: f64,
}

/// Measured over floor: the price of what Consort adds. For p50 above 1, for throughput below.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) p50: f64,
    /// Of the medians as measured. Where it differs much from `p50` the machine was busy with something else.
    pub(crate) uncorrected_p50: f64,
    /// None where the rate was given rather than measured.
    pub(crate) throughput: Option<f64>,
}

/// Of all members together, for one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PerMessage {
    pub(crate) work_requests: f64,
    pub(crate) doorbells: f64,
    pub(crate) signalled: f64,
    pub(crate) inline: f64,
    pub(crate) completions: f64,
    pub(crate) wakes: f64,
    pub(crate) system_calls: f64,
    pub(crate) bytes: f64,
}

impl PerMessage {
    /// Of each member: what it delivered, and what its fabric counted meanwhile. Their looks at the counters are not at the same
    /// instant, so each is divided by its own deliveries.
    pub(crate) fn new(members: &[(u64, Counts)]) -> Self {
        let each = |count: fn(&Counts) -> u64| {
            let shares =
                members.iter().map(|(delivered, counts)| as_f64(count(counts)) / as_f64((*delivered).max(1)));
            shares.sum::<f64>()
        };
        Self {
            work_requests: each(|counts| counts.work_requests),
            doorbells: each(|counts| counts.doorbells),
            signalled: each(|counts| counts.signalled),
            inline: each(|counts| counts.inline),
            completions: each(|counts| counts.completions),
            wakes: each(|counts| counts.wakes),
            system_calls: each(|counts| counts.system_calls),
            bytes: each(|counts| counts.bytes_out),
        }
    }
}

/// One run with its floor.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RunFigures {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) last_member_p50_us: f64,
    pub(crate) msgs_per_s: f64,
    pub(crate) floor_p50_us: f64,
    pub(crate) floor_msgs_per_s: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::histogram;

    #[test]
    fn the_run_in_the_middle_is_found_by_its_key() {
        assert_eq!(middle([3.0, 1.0, 2.0]), Some(2));
        assert_eq!(middle([4.0, 1.0, 2.0, 3.0]), Some(2));
        assert_eq!(middle([5.0]), Some(0));
        assert_eq!(middle([]), None);
    }

    #[test]
    fn the_median_is_a_value_that_was_there() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 1.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut values = histogram().unwrap();
        assert_eq!(Quantiles::from(&values), Quantiles::default(), "nothing measured is no accident");
        (1..=1_000).for_each(|us| values.record(us * 1_000).unwrap());
        let quantiles = Quantiles::from(&values);
        assert!((499.0..501.0).contains(&quantiles.p50) && (999.0..1_001.0).contains(&quantiles.max));
    }

    #[test]
    fn each_member_counts_by_what_it_delivered_itself() {
        let counted = |work_requests, bytes_out| Counts { work_requests, bytes_out, ..Counts::default() };
        let each =
            PerMessage::new(&[(100, counted(300, 6_400)), (50, counted(100, 400)), (0, Counts::default())]);
        let expected = PerMessage { work_requests: 5.0, bytes: 72.0, ..PerMessage::default() };
        assert_eq!(each, expected);
    }
}
