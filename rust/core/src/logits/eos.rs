//! How likely the end ever was.

use super::kernels::{self, Scan};

/// An EOS token whose probability never came up to this was probably never learned.
pub const LIKELY: f64 = 1e-6;

/// The largest probability of the tokens `ids` in raw logits, from [`LIKELY`] on; below it, an upper bound that is below
/// it too. 0 where the row is no distribution.
///
/// The question is only whether the border is crossed, and three bounds answer it, each dearer than the one before:
/// the sum over the row is at least the weight of its largest logit; at least the sum over the `maxima` of its chunks;
/// and only where the probability may lie between these bounds, within a factor of 128, the row itself is summed.
#[must_use]
pub fn probability(ids: &[u32], row: &[f32], scan: Scan, maxima: &[f32]) -> f64 {
    if scan.has_nan || !scan.max.is_finite() {
        return 0.0;
    }
    let logits = ids.iter().filter_map(|&id| row.get(id as usize)).copied();
    let weight = f64::from(logits.fold(f32::NEG_INFINITY, f32::max) - scan.max).exp();
    if weight < LIKELY {
        return weight;
    }
    let bound = weight / kernels::exp_sum(maxima, scan.max, 1.0);
    if bound < LIKELY { bound } else { weight / kernels::exp_sum(row, scan.max, 1.0) }
}
