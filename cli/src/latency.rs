//! Latencies, in histograms of nanoseconds.

use hdrhistogram::Histogram;

use crate::failure::Failure;

/// The longest latency that a histogram tells from a longer one: a minute.
const LONGEST: u64 = 60_000_000_000;

/// An empty histogram of nanoseconds, to three digits.
///
/// # Errors
/// None that can happen: the bounds are sound.
pub(crate) fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LONGEST, 3)
        .map_err(|e| Failure::lost(format!("can't make a histogram: {e}"), "report this as a bug"))
}

/// Adds what coordinated omission hid: a closed loop sends nothing during a stall. The pace that such a loop kept is one
/// message in its mean latency; for every value above the mean those are added that would have followed at that pace:
/// value − mean, value − 2·mean, and so on down to the mean (the method of `HdrHistogram`, with the mean as the expected
/// interval).
///
/// The mean rather than the median, because no steady stream of one message in a median could have been served: on a
/// machine that stalls half of the time its figures would be of nothing but the stalls.
pub(crate) fn corrected(raw: &Histogram<u64>) -> Histogram<u64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 0 to LONGEST
    match raw.mean() as u64 {
        0 => raw.clone(),
        mean => raw.clone_correct(mean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_for_all_that_it_would_have_delayed() {
        let mut raw = histogram().unwrap();
        raw.record_n(1_000, 9_999).unwrap();
        raw.record(1_000_000).unwrap();
        let corrected = corrected(&raw);
        // A stall of about 909 mean intervals hid as many messages, evenly spread over it.
        assert!((10_900..=10_920).contains(&corrected.len()), "{}", corrected.len());
        assert!(raw.value_at_quantile(0.99) < 1_100);
        assert!(corrected.value_at_quantile(0.99) > 800_000, "{}", corrected.value_at_quantile(0.99));
        assert_eq!(corrected.max(), raw.max());
    }

    #[test]
    fn nothing_measured_is_no_accident() {
        assert_eq!(corrected(&histogram().unwrap()).len(), 0);
    }

    #[test]
    fn what_is_longer_than_a_minute_counts_as_a_minute() {
        let mut values = histogram().unwrap();
        values.saturating_record(1_000_000_000);
        assert!((999_000_000..1_002_000_000).contains(&values.max()), "a second is a second");
        values.saturating_record(u64::MAX);
        assert!(values.max() >= LONGEST);
    }
}
