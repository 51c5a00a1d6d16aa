//! The few words of a record that have no text form of their own, for keys and for files that people read.

use super::Origin;
use crate::problem::Routing;

/// `uniform`, `zipf(1.1)` or `one-set`, with every digit of the exponent.
pub(super) fn routing(routing: &Routing) -> String {
    match routing {
        Routing::Zipf(s) => format!("zipf({s:?})"),
        other => other.to_string(),
    }
}

/// The routing that [`routing`] writes as `text`.
pub(super) fn parse_routing(text: &str) -> Option<Routing> {
    let plain = [Routing::Uniform, Routing::OneSet];
    let zipf = || text.strip_prefix("zipf(")?.strip_suffix(')')?.parse().ok().map(Routing::Zipf);
    plain.into_iter().find(|known| known.to_string() == text).or_else(zipf)
}

/// `measured`, `inherited from m16` or `predicted`.
impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Measured => f.write_str("measured"),
            Self::Inherited { from_m } => write!(f, "{INHERITED}{from_m}"),
            Self::Predicted => f.write_str("predicted"),
        }
    }
}

/// The origin whose text is `text`.
pub(super) fn parse_origin(text: &str) -> Option<Origin> {
    match text {
        "measured" => Some(Origin::Measured),
        "predicted" => Some(Origin::Predicted),
        _ => text.strip_prefix(INHERITED)?.parse().ok().map(|from_m| Origin::Inherited { from_m }),
    }
}

/// Six significant digits: more is noise in a time, and a burden in a diff.
pub(super) fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

const INHERITED: &str = "inherited from m";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_values_are_inverse() {
        for value in [Routing::Uniform, Routing::Zipf(1.0), Routing::Zipf(1.05), Routing::OneSet] {
            assert_eq!(parse_routing(&routing(&value)), Some(value));
        }
        for value in [Origin::Measured, Origin::Inherited { from_m: 16 }, Origin::Predicted] {
            assert_eq!(parse_origin(&value.to_string()), Some(value));
        }
        assert_eq!(parse_routing("zipf"), None);
        assert_eq!(parse_origin("inherited from 16"), None);
    }

    #[test]
    fn six_digits_are_kept_and_stay() {
        for (value, kept) in [(12.345678912, 12.3457), (0.0012345678, 0.00123457), (0.0, 0.0), (123456789.0, 123457e3)]
        {
            assert_eq!(six_digits(value), kept);
            assert_eq!(six_digits(kept), kept);
        }
        assert_eq!(six_digits(f64::INFINITY), f64::INFINITY);
        assert!(six_digits(f64::NAN).is_nan());
    }
}
