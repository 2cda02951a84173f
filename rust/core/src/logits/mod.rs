//! From the model's logits to the distribution that the draw sees, equal to transformers' logits processors.
//!
//! Two kinds of steps run in a fixed order. A [`Processor`] edits single logits and runs always; a [`Warper`] narrows
//! the choice, and most run only when sampling. **Adding one**: write it in a module here (a type, its trait, and a
//! function that makes it from the [`Settings`] or returns `None` when it is off) and put that function in its place in
//! [`PROCESSORS`], [`WARPERS`] or [`FINISHERS`]. The order of these tables is the order of transformers'
//! `_get_logits_processor`; [`guidance`] alone comes before them, because it needs a second row.
//!
//! Infinities: `-inf` is a token that is not allowed. Tokens at `+inf` share the probability equally, the limit of
//! logits that grow together (transformers fails when it samples from such a row, and takes the first when greedy, as
//! is done here). NaN fails its row, and reaches the processors only where one of them mends it.

// Ties and settings that are off are exact.
#![allow(clippy::float_cmp)]

pub mod candidates;
mod constraints;
mod entropy;
pub mod eos;
mod filters;
pub mod guidance;
pub mod healing;
pub mod history;
pub mod invalid;
pub mod kernels;
mod length;
pub mod logprobs;
mod ngrams;
mod normalization;
mod penalties;
mod select;
mod sequences;
mod watermark;

use crate::params::{SamplingParams, StoppingParams};
use candidates::Candidates;
use history::History;
use std::fmt::Debug;

/// Edits logits in place, given the history of the sequence.
pub trait Processor: Debug + Send + Sync {
    /// Whether this step changes anything. When no processor does, the row is not even copied.
    fn is_active(&self, history: &History) -> bool;

    /// Changes `logits` `[V]`.
    fn process(&self, history: &History, logits: &mut [f32]);
}

/// Narrows the tokens that the draw may choose.
pub trait Warper: Debug + Send + Sync {
    /// Removes or rescales candidates; at least one stays.
    fn warp(&self, history: &History, candidates: &mut Candidates<'_>);
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
    sequences::sequence_bias,
    penalties::encoder_repetition,
    penalties::repetition,
    ngrams::no_repeat_ngram,
    ngrams::encoder_no_repeat_ngram,
    sequences::bad_words,
    length::min_length,
    length::min_new_tokens,
    constraints::allowed_tokens,
    length::forced_bos,
    length::forced_eos,
    invalid::remove_invalid,
    length::exponential_decay,
    constraints::suppress_tokens,
    constraints::begin_suppress_tokens,
    penalties::logit_bias,
    penalties::presence_and_frequency,
];

/// The warpers of sampling, in order.
const WARPERS: &[MakeWarper] = &[
    filters::temperature,
    entropy::top_h,
    filters::top_k,
    filters::top_p,
    filters::min_p,
    entropy::typical_p,
    entropy::epsilon_cutoff,
    entropy::eta_cutoff,
];

/// The warpers behind them, whether sampling or not.
const FINISHERS: &[MakeWarper] = &[watermark::green_list, watermark::synth_id_text, normalization::renormalize];

/// The steps that are on for one sequence.
#[derive(Debug)]
pub struct Pipeline {
    processors: Vec<Box<dyn Processor>>,
    warpers: Vec<Box<dyn Warper>>,
    mends_nan: bool,
}

impl Pipeline {
    /// Makes the steps that `settings` switch on.
    #[must_use]
    pub fn new(settings: &Settings<'_>) -> Self {
        let warpers = if settings.sampling.do_sample { WARPERS } else { &[] };
        Self {
            processors: PROCESSORS.iter().filter_map(|make| make(settings)).collect(),
            warpers: warpers.iter().chain(FINISHERS).filter_map(|make| make(settings)).collect(),
            mends_nan: settings.sampling.remove_invalid_values,
        }
    }

    /// Whether the processors take rows that hold NaN.
    #[must_use]
    pub fn mends_nan(&self) -> bool {
        self.mends_nan
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
    pub fn warp(&self, history: &History, candidates: &mut Candidates<'_>) {
        for warper in &self.warpers {
            warper.warp(history, candidates);
        }
    }
}
