//! Statistics of a race: medians, confidence, who is out, who is level.

/// Times of one candidate: a list for each routing, one list where there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Times {
    lists: Vec<Vec<f64>>,
}

impl Times {
    pub fn new(n_routings: usize) -> Self {
        Self { lists: vec![Vec::new(); n_routings.max(1)] }
    }

    pub fn push(&mut self, routing_idx: usize, us: f64) {
        self.lists[routing_idx].push(us);
    }

    pub fn rounds(&self) -> usize {
        self.lists.iter().map(Vec::len).min().unwrap_or(0)
    }

    /// Geometric mean over the routings of the medians; infinite before the first round.
    pub fn score(&self) -> f64 {
        if self.rounds() == 0 {
            return f64::INFINITY;
        }
        let logs: f64 = self.lists.iter().map(|list| median(list).ln()).sum();
        (logs / self.lists.len() as f64).exp()
    }

    /// Median under one routing.
    pub fn median(&self, routing_idx: usize) -> f64 {
        median(&self.lists[routing_idx])
    }

    /// Half width of the 95 % confidence interval of the score, relative to it.
    ///
    /// The error of a median is 1.2533 standard deviations over the root of the count; the deviation is taken from the
    /// median absolute deviation, which an outlier does not move. Two events resolve about half a microsecond in a
    /// graph of milliseconds, hence the floor.
    pub fn relative_half_width(&self) -> f64 {
        let widths = self.lists.iter().map(|list| {
            let center = median(list);
            let deviations: Vec<f64> = list.iter().map(|us| (us - center).abs()).collect();
            let sigma = 1.4826 * median(&deviations);
            1.96 * 1.2533 * sigma / (list.len() as f64).sqrt() / center
        });
        widths.fold(RESOLUTION, f64::max)
    }
}

/// Whether `times` are as good as the leader's: within 1 %, and the default's within noise too, if that is no more than
/// 3 %. Noise is a reason to stay with the default, and none to take one of two others.
pub(super) fn is_level(times: &Times, leader: &Times, is_default: bool) -> bool {
    let noise = if is_default { leader.relative_half_width() } else { 0.0 };
    times.score() <= leader.score() * (1.0 + noise.clamp(TIE_BAND, MOST_NOISE))
}

const TIE_BAND: f64 = 0.01;

const MOST_NOISE: f64 = 0.03;

/// The candidates that are still in: none that is slower than the leader by more than both confidence intervals.
pub(super) fn survivors(times: &[&Times]) -> Vec<bool> {
    let leader = times.iter().map(|times| times.score()).fold(f64::INFINITY, f64::min);
    let leader_width =
        times.iter().find(|times| times.score() == leader).map_or(0.0, |times| times.relative_half_width());
    let stays = |times: &&Times| {
        let score = times.score();
        score * (1.0 - times.relative_half_width()) <= leader * (1.0 + leader_width)
    };
    times.iter().map(stays).collect()
}

/// Median of times and the half width of its 95 % confidence interval.
pub fn median_and_half_width(us: &[f64]) -> (f64, f64) {
    let mut times = Times::new(1);
    us.iter().for_each(|&us| times.push(0, us));
    (median(us), median(us) * times.relative_half_width())
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::INFINITY,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

const RESOLUTION: f64 = 0.002;

#[cfg(test)]
mod tests {
    use super::*;

    fn times(us: &[f64]) -> Times {
        let mut times = Times::new(1);
        us.iter().for_each(|&us| times.push(0, us));
        times
    }

    #[test]
    fn an_outlier_moves_neither_median_nor_width() {
        let calm = times(&[10.0, 10.1, 9.9, 10.0, 10.0]);
        let hit = times(&[10.0, 10.1, 9.9, 10.0, 50.0]);
        assert!((calm.score() - 10.0).abs() < 1e-9 && (hit.score() - 10.0).abs() < 1e-9);
        assert!(hit.relative_half_width() < 0.02);
    }

    #[test]
    fn only_who_is_surely_slower_is_out() {
        let [fast, level, slow] = [times(&[10.0, 10.2, 9.8]), times(&[10.1, 10.3, 9.9]), times(&[12.0, 12.1, 11.9])];
        assert_eq!(survivors(&[&fast, &level, &slow]), [true, true, false]);
    }

    #[test]
    fn two_routings_count_alike() {
        let mut times = Times::new(2);
        times.push(0, 10.0);
        assert_eq!(times.score(), f64::INFINITY);
        times.push(1, 40.0);
        assert!((times.score() - 20.0).abs() < 1e-9);
    }
}
