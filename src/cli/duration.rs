//! Times on the command line: a number and its unit.

use std::time::Duration;

/// `90s`, `2m`, `1h` or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let seconds = |unit: &str| match unit {
        "s" | "" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    parse(text, seconds).ok_or_else(|| format!("expected a time such as 90s, 2m or 1h, found `{text}`"))
}

/// `12h` or `30d`.
pub fn age(text: &str) -> Result<Duration, String> {
    let seconds = |unit: &str| match unit {
        "h" => Some(3600.0),
        "d" => Some(86400.0),
        _ => None,
    };
    parse(text, seconds).ok_or_else(|| format!("expected an age such as 12h or 30d, found `{text}`"))
}

/// A number and its unit, in seconds as `seconds_of` has it.
fn parse(text: &str, seconds_of: impl Fn(&str) -> Option<f64>) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let seconds = number.parse::<f64>().ok()? * seconds_of(unit)?;
    (seconds.is_finite() && (0.0..1e9).contains(&seconds)).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for nonsense in ["", "m", "2 m", "2d", "-1s", "1e400s"] {
            assert!(duration(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn ages_are_hours_or_days() {
        assert_eq!(age("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(age("30d"), Ok(Duration::from_secs(2_592_000)));
        for nonsense in ["", "d", "30", "30 d", "2w", "-1d"] {
            assert!(age(nonsense).is_err(), "{nonsense}");
        }
    }
}
