//! Classifier-free guidance: away from what the model says without the prompt.

use super::kernels::{self, Scan};

/// Name of the step.
pub const NAME: &str = "guidance_scale";

/// Writes `unconditional + scale * (conditional - unconditional)` in log-softmax space: transformers'
/// `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
///
/// A token that both rows forbid stays forbidden. A row that is no distribution (NaN, or nothing finite at its top)
/// makes everything NaN, as log-softmax does; so is a token that only one row forbids, unless the scale decides it.
///
/// Both rows `[V]` come with their scan.
pub fn guide(
    (conditional, own): (&[f32], Scan),
    (unconditional, other): (&[f32], Scan),
    scale: f64,
    guided: &mut Vec<f32>,
) {
    guided.clear();
    match (normalizer(conditional, own), normalizer(unconditional, other)) {
        (Some(own), Some(other)) => {
            #[allow(clippy::cast_possible_truncation)] // The type of the arithmetic.
            kernels::guide((conditional, own), (unconditional, other), scale as f32, guided);
        }
        _ => guided.resize(conditional.len(), f32::NAN),
    }
}

/// The largest logit and the logarithm of the sum of `exp(logit - max)`; `None` where it is no number.
fn normalizer(row: &[f32], scan: Scan) -> Option<(f32, f32)> {
    #[allow(clippy::cast_possible_truncation)]
    (!scan.has_nan && scan.max.is_finite()).then(|| (scan.max, kernels::exp_sum(row, scan.max, 1.0).ln() as f32))
}
