//! Times on the command line: a number and its unit.

use std::time::Duration;

/// `90s`, `2m`, `1h` or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("expected a time such as 90s, 2m or 1h, found `{text}`")),
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * factor);
    let seconds = seconds.filter(|seconds| seconds.is_finite() && (0.0..1e9).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("expected a time such as 90s, 2m or 1h, found `{text}`"))
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
}
