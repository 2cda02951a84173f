//! Values that are no logits.

use super::history::History;
use super::{Processor, Settings, kernels};

/// What explanations call the step.
pub(super) const NAME: &str = "remove_invalid_values";

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
        kernels::mend(logits);
    }
}
