//! Numbers as people read and write them.

use std::time::Duration;

use bytesize::ByteSize;
use prost_types::Timestamp;

/// Binary units with one decimal: `65.0 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    ByteSize(count).display().iec().to_string()
}

/// Bytes per second over `elapsed`; `None` when no time passed.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a speed for people; the conversion saturates"
)]
pub fn rate(count: u64, elapsed: Duration) -> Option<u64> {
    (!elapsed.is_zero()).then(|| (count as f64 / elapsed.as_secs_f64()) as u64)
}

/// Two or three significant parts: `240 ms`, `2.31 s`, `4m 05s`, `2h 03m`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.2} s", duration.as_secs_f64()),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Reads a size such as `4MiB`, `10mb` or `1048576`.
///
/// # Errors
/// When it is no number with an optional unit.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse::<ByteSize>().map_err(|why| format!("{why}; expected a number and a unit, such as 64MiB"))
}

/// Reads a speed such as `10MiB`, `10MB/s`, `0` or `none`; 0 and `none` lift the limit and give 0.
///
/// # Errors
/// When it is neither.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    if matches!(text.trim(), "none" | "unlimited") {
        return Ok(0);
    }
    let size = text.trim();
    let size = size.strip_suffix("/s").or_else(|| size.strip_suffix("ps")).unwrap_or(size);
    size.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|why| format!("{why}; expected a size per second, such as 10MiB/s, or none"))
}

/// A moment in local time, `2026-11-20 14:01:07`; `-` when there is none.
#[must_use]
pub fn moment(timestamp: Option<&Timestamp>) -> String {
    moment_in(timestamp, &jiff::tz::TimeZone::system())
}

fn moment_in(timestamp: Option<&Timestamp>, zone: &jiff::tz::TimeZone) -> String {
    timestamp.and_then(|at| jiff::Timestamp::from_second(at.seconds).ok()).map_or_else(
        || "-".to_owned(),
        |at| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_speeds() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(65 << 20), "65.0 MiB");
        assert_eq!(parse_size("4MiB").map(|size| size.as_u64()), Ok(4 << 20));
        assert!(parse_size("many").is_err_and(|text| text.contains("such as 64MiB")));
        assert_eq!(parse_rate("none"), Ok(0));
        assert_eq!(parse_rate("0"), Ok(0));
        assert_eq!(parse_rate("10MiB/s"), Ok(10 << 20));
        assert_eq!(parse_rate("10MB"), Ok(10_000_000));
        assert!(parse_rate("fast").is_err());
        assert_eq!(rate(100, Duration::ZERO), None);
        assert_eq!(rate(100, Duration::from_millis(500)), Some(200));
    }

    #[test]
    fn durations() {
        assert_eq!(duration(Duration::from_millis(240)), "240 ms");
        assert_eq!(duration(Duration::from_millis(2310)), "2.31 s");
        assert_eq!(duration(Duration::from_secs(245)), "4m 05s");
        assert_eq!(duration(Duration::from_secs(7400)), "2h 03m");
    }

    #[test]
    fn moments() {
        let utc = jiff::tz::TimeZone::UTC;
        assert_eq!(moment_in(None, &utc), "-");
        let at = Timestamp { seconds: 1_795_183_267, nanos: 0 };
        assert_eq!(moment_in(Some(&at), &utc), "2026-11-20 14:01:07");
    }
}
