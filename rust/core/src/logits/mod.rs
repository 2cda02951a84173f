//! From the model's logits to the distribution that the draw sees, equal to transformers' logits processors.
//!
//! Two kinds of steps run in a fixed order. A [`Processor`] edits single logits and runs always; a [`Warper`] narrows
//! the choice and runs only when sampling. **Adding one**: write it in a module here (a type, its trait, and a function
//! that makes it from the [`Settings`] or returns `None` when it is off) and put that function in its place in
//! [`PROCESSORS`] or [`WARPERS`]. The order of these tables is the order of transformers' `_get_logits_processor`.
//!
//! Infinities: `-inf` is a token that is not allowed. Tokens at `+inf` share the probability equally, the limit of
//! logits that grow together (transformers fails when it samples from such a row, and takes the first when greedy, as
//! is done here).

// Ties and settings that are off are exact.
#![allow(clippy::float_cmp)]

pub mod candidates;
mod constraints;
mod filters;
pub mod healing;
pub mod history;
pub mod kernels;
pub mod logprobs;
mod penalties;
mod select;

use crate::params::{SamplingParams, StoppingParams};
use candidates::Candidates;
use history::History;
use std::fmt::Debug;

/// Edits logits in place, given the history of the sequence.
pub trait Processor: Debug + Send + Sync {
    /// Whether this step changes anything. When no processor does, the row is not even copied.
    fn is_active(&self, history: &History) -> bool;

    /// Changes `logits` `[V]`; the row holds no NaN, before or after.
    fn process(&self, history: &History, logits: &mut [f32]);
}

/// Narrows the tokens that the draw may choose.
pub trait Warper: Debug + Send + Sync {
    /// Removes or rescales candidates; at least one stays.
    fn warp(&self, candidates: &mut Candidates<'_>);
}

/// What a step is made from.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// How to turn logits into a token.
    pub sampling: &'a SamplingParams,
    /// When the sequence ends.
    pub stopping: &'a StoppingParams,
}

type MakeProcessor = fn(&Settings<'_>) -> Option<Box<dyn Processor>>;
type MakeWarper = fn(&Settings<'_>) -> Option<Box<dyn Warper>>;

/// The processors, in order.
const PROCESSORS: &[MakeProcessor] = &[
    penalties::repetition,
    constraints::min_new_tokens,
    constraints::suppress_tokens,
    penalties::logit_bias,
    penalties::presence_and_frequency,
];

/// The warpers, in order.
const WARPERS: &[MakeWarper] =
    &[filters::temperature, filters::top_k, filters::top_p, filters::min_p, filters::typical_p];

/// The steps that are on for one sequence.
#[derive(Debug)]
pub struct Pipeline {
    processors: Vec<Box<dyn Processor>>,
    warpers: Vec<Box<dyn Warper>>,
}

impl Pipeline {
    /// Makes the steps that `settings` switch on.
    #[must_use]
    pub fn new(settings: &Settings<'_>) -> Self {
        let warpers = if settings.sampling.do_sample { WARPERS } else { &[] };
        Self {
            processors: PROCESSORS.iter().filter_map(|make| make(settings)).collect(),
            warpers: warpers.iter().filter_map(|make| make(settings)).collect(),
        }
    }

    /// Puts a processor in front of the others.
    pub fn prepend(&mut self, processor: Box<dyn Processor>) {
        self.processors.insert(0, processor);
    }

    /// Whether [`Pipeline::process`] would change anything.
    #[must_use]
    pub fn edits(&self, history: &History) -> bool {
        self.processors.iter().any(|processor| processor.is_active(history))
    }

    /// Runs the processors over `logits` `[V]`.
    pub fn process(&self, history: &History, logits: &mut [f32]) {
        for processor in self.processors.iter().filter(|processor| processor.is_active(history)) {
            processor.process(history, logits);
        }
    }

    /// Runs the warpers.
    pub fn warp(&self, candidates: &mut Candidates<'_>) {
        for warper in &self.warpers {
            warper.warp(candidates);
        }
    }
}
