//! The last step.

use super::candidates::Candidates;
use super::history::History;
use super::{Settings, Warper};

/// transformers' `LogitNormalization`: log-softmax, for those who look at the scores; the choice stays the same.
#[derive(Debug)]
struct Renormalize;

pub fn renormalize(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    settings.sampling.renormalize_logits.then(|| Box::new(Renormalize) as _)
}

impl Warper for Renormalize {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        candidates.normalize();
    }
}
