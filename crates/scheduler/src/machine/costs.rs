//! Running mean and spread of piece times.

use std::time::Duration;

/// Samples after which the window counts as full; from then on old ones fade.
const WINDOW: u32 = 2000;

/// Mean and variance of piece times, without keeping the samples.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    samples: u32,
    mean: f64,
    variance: f64,
    last: f64,
    mean_before_last: f64,
}

impl Costs {
    pub(super) fn add(&mut self, cost: Duration) {
        let value = cost.as_secs_f64();
        self.mean_before_last = self.mean;
        self.last = value;
        self.samples = (self.samples + 1).min(WINDOW);
        let weight = 1.0 / f64::from(self.samples);
        let delta = value - self.mean;
        self.mean += weight * delta;
        self.variance = (1.0 - weight) * (self.variance + weight * delta * delta);
    }

    pub(super) fn mean(&self) -> Option<Duration> {
        (self.samples > 0).then(|| Duration::from_secs_f64(self.mean))
    }

    /// Dragonfly's test of a parent that has become slow: the last piece took more than twenty times the mean of
    /// those before, or, when there are samples enough, more than three standard deviations above the mean.
    pub(super) fn is_bad(&self) -> bool {
        match self.samples {
            0 | 1 => false,
            WINDOW => self.last > self.mean + 3.0 * self.variance.sqrt(),
            _ => self.last > 20.0 * self.mean_before_last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_what_was_added() {
        let mut costs = Costs::default();
        assert_eq!(costs.mean(), None);
        costs.add(Duration::from_secs(1));
        costs.add(Duration::from_secs(3));
        assert_eq!(costs.mean(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn one_very_slow_piece_makes_a_parent_bad_until_the_next() {
        let mut costs = Costs::default();
        for _ in 0..3 {
            costs.add(Duration::from_millis(100));
        }
        assert!(!costs.is_bad());
        costs.add(Duration::from_millis(2001));
        assert!(costs.is_bad());
        costs.add(Duration::from_millis(100));
        assert!(!costs.is_bad());
    }

    #[test]
    fn with_a_full_window_three_deviations_are_bad() {
        let mut costs = Costs::default();
        for index in 0..3000 {
            costs.add(Duration::from_millis(if index % 2 == 0 { 90 } else { 110 }));
        }
        costs.add(Duration::from_millis(120));
        assert!(!costs.is_bad());
        costs.add(Duration::from_millis(150));
        assert!(costs.is_bad());
    }
}
