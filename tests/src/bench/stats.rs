//! Summaries of repeated measurements.

use serde_json::{Value, json};

/// Samples of one quantity.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The value at `part` (0 to 1) of the sorted samples; NaN when there are none.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let at = part * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// The middle value; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Distance from the smallest to the largest, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.quantile(1.0) - self.quantile(0.0)) / self.median()
    }

    /// For the JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "median": self.median(),
            "min": self.quantile(0.0),
            "max": self.quantile(1.0),
            "samples": self.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).spread(), 1.0);
        assert_eq!(Samples(vec![0.0, 10.0]).quantile(0.99), 9.9);
        assert!(Samples::default().median().is_nan());
    }
}
