//! Values that are no logits.

use super::history::History;
use super::{Processor, Settings};

/// transformers' `InfNanRemoveLogitsProcessor`: NaN becomes 0, infinities the largest and the smallest number.
///
/// A smallest logit weighs nothing beside any other, so what was forbidden before stays improbable, but no longer
/// impossible.
#[derive(Debug)]
struct RemoveInvalid;

pub(super) fn remove_invalid(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    settings.sampling.remove_invalid_values.then(|| Box::new(RemoveInvalid) as _)
}

impl Processor for RemoveInvalid {
    fn is_active(&self, _: &History) -> bool {
        true
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        mend(logits);
    }
}

/// Makes every value a finite number.
pub fn mend(logits: &mut [f32]) {
    for logit in logits {
        // `clamp` passes NaN on.
        *logit = if logit.is_nan() { 0.0 } else { logit.clamp(f32::MIN, f32::MAX) };
    }
}
