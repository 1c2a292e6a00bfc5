//! Latencies in buckets that are 3 % wide.

use serde::{Deserialize, Serialize};

/// Buckets in which a value doubles.
const STEPS: u32 = 32;

/// Counts by bucket; only those that are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Histogram(std::collections::BTreeMap<u32, u64>);

impl Histogram {
    pub(super) fn add(&mut self, value: u64) {
        *self.0.entry(bucket(value)).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// The value that this share of all do not exceed.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let total: u64 = self.0.values().sum();
        let wanted = (share * total as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in &self.0 {
            seen += count;
            if seen >= wanted.max(1) {
                return middle(*bucket);
            }
        }
        f64::NAN
    }
}

fn bucket(value: u64) -> u32 {
    let value = value.max(1);
    let power = value.ilog2();
    // Where between two powers of two it is.
    let step = ((value - (1 << power)) * u64::from(STEPS)) >> power;
    power * STEPS + step as u32
}

fn middle(bucket: u32) -> f64 {
    let (power, step) = (bucket / STEPS, bucket % STEPS);
    f64::from(power).exp2() * (1.0 + (f64::from(step) + 0.5) / f64::from(STEPS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_three_percent_off_at_most() {
        let mut all = Histogram::default();
        (1..=10_000).for_each(|value| all.add(value));
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let off = all.quantile(share) / (share * 10_000.0);
            assert!((0.97..1.03).contains(&off), "{share}: {off}");
        }
    }

    #[test]
    fn what_is_merged_counts() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.add(10);
        (0..9).for_each(|_| other.add(1000));
        one.merge(&other);
        assert!(one.quantile(0.5) > 900.0 && one.quantile(0.1) < 11.0);
    }
}
