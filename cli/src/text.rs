//! Quantities as people write and read them: sizes and durations on the command line, figures in tables.

use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::failure::Failure;

/// Reads a size in bytes: `64`, `10KiB`, `1MiB` (powers of 1024), `10kB`, `1MB` (powers of 1000).
///
/// # Errors
/// A sentence for the user if it is not a size, or does not fit in memory addresses.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize =
        number.parse().map_err(|_| format!("`{text}` is not a size; write it like 64, 10KiB or 1MiB"))?;
    let scale: usize = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        _ => return Err(format!("`{unit}` is no unit of size; use B, KiB, MiB, GiB (or kB, MB, GB)")),
    };
    number.checked_mul(scale).ok_or_else(|| format!("`{text}` is more than this machine can address"))
}

/// Reads a duration: a number of seconds (`2`, `0.5`), or with a unit (`500ms`, `2s`, `1min`).
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is not a duration; write seconds like 2 or 0.5, or 500ms, 2s, 1min");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let scale = match unit.trim() {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        _ => return Err(wrong()),
    };
    let duration = Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())?;
    if duration > LONGEST {
        return Err(format!("`{text}` is longer than a year; give less"));
    }
    Ok(duration)
}

/// The longest time that is taken: one that can still be added to a date.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Prints a result: as one JSON object, or as `text` tells it.
pub(crate) fn print<T: Serialize>(
    result: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = if json {
        serde_json::to_string(result).map_err(std::io::Error::from).and_then(|line| writeln!(out, "{line}"))
    } else {
        writeln!(out, "{}", text(result))
    };
    let written = written.and_then(|()| out.flush());
    written.map_err(|cause| Failure::stream("write", "standard output", cause))
}

/// A whole number with separators: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A rate with three significant digits: `5.21 M`, `812 k`, `97`.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() => "–".to_string(),
        r if r >= 9.995e8 => format!("{} G", digits(r / 1e9)),
        r if r >= 9.995e5 => format!("{} M", digits(r / 1e6)),
        r if r >= 9.995e2 => format!("{} k", digits(r / 1e3)),
        r => digits(r),
    }
}

/// A time given in microseconds, in the unit that fits it: `830 ns`, `1.32 µs`, `4.10 ms`, `2.00 s`.
pub(crate) fn micros(us: f64) -> String {
    match us {
        us if !us.is_finite() => "–".to_string(),
        us if us < 0.9995 => format!("{} ns", digits(us * 1e3)),
        us if us < 999.5 => format!("{} µs", digits(us)),
        us if us < 999_500.0 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}

/// A size in bytes with the binary unit that fits: `64 B`, `10.0 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = as_f64(count);
    let mut unit = "B";
    for larger in UNITS {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{} {unit}", digits(size)) }
}

/// The nearest `f64`; what is lost above 2^53 does not show in any figure printed here.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Three significant digits, without an exponent.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_bytes("64"), Ok(64));
        assert_eq!(parse_bytes(" 10KiB "), Ok(10_240));
        assert_eq!(parse_bytes("10 kB"), Ok(10_000));
        assert_eq!(parse_bytes("1MiB"), Ok(1 << 20));
        assert_eq!(parse_bytes("0"), Ok(0));
        for wrong in ["", "KiB", "-1", "1.5MiB", "10 parsecs", "99999999999999999999", "99999999999GiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_seconds_unless_they_say_otherwise() {
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1min"), Ok(Duration::from_secs(60)));
        for wrong in ["", "s", "-1", "1.2.3", "2 weeks", "99999999999999999999999"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(rate(5_210_000.0), "5.21 M");
        assert_eq!(rate(999.9), "1.00 k");
        assert_eq!(rate(f64::NAN), "–");
        assert_eq!(micros(0.83), "830 ns");
        assert_eq!(micros(1.324), "1.32 µs");
        assert_eq!(micros(4_100.0), "4.10 ms");
        assert_eq!(bytes(64), "64 B");
        assert_eq!(bytes(10_240), "10.0 KiB");
    }
}
