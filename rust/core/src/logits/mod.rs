//! From the model's logits to the distribution that the draw sees, equal to transformers' logits processors.
//!
//! Two kinds of steps run in a fixed order. A [`Processor`] edits single logits and runs always; a [`Warper`] narrows
//! the choice, and most run only when sampling. **Adding one**: write it in a module here (a type, its trait, and a
//! function that makes it from the [`Settings`] or returns `None` when it is off) and put that function, with a name, in
//! its place in [`PROCESSORS`], [`WARPERS`] or [`FINISHERS`]. The order of these tables is the order of transformers'
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
pub mod explanation;
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

type Maker<S> = (&'static str, fn(&Settings<'_>) -> Option<Box<S>>);

/// The processors, in order, each with the name that explanations give it: the setting's.
const PROCESSORS: &[Maker<dyn Processor>] = &[
    ("sequence_bias", sequences::sequence_bias),
    ("encoder_repetition_penalty", penalties::encoder_repetition),
    ("repetition_penalty", penalties::repetition),
    ("no_repeat_ngram_size", ngrams::no_repeat_ngram),
    ("encoder_no_repeat_ngram_size", ngrams::encoder_no_repeat_ngram),
    ("bad_words_ids", sequences::bad_words),
    ("min_length", length::min_length),
    ("min_new_tokens", length::min_new_tokens),
    ("allowed_token_ids", constraints::allowed_tokens),
    ("forced_bos_token_id", length::forced_bos),
    ("forced_eos_token_id", length::forced_eos),
    (invalid::NAME, invalid::remove_invalid),
    ("exponential_decay_length_penalty", length::exponential_decay),
    ("suppress_tokens", constraints::suppress_tokens),
    ("begin_suppress_tokens", constraints::begin_suppress_tokens),
    ("logit_bias", penalties::logit_bias),
    ("presence_and_frequency_penalty", penalties::presence_and_frequency),
];

/// The warpers of sampling, in order.
const WARPERS: &[Maker<dyn Warper>] = &[
    ("temperature", filters::temperature),
    ("top_h", entropy::top_h),
    ("top_k", filters::top_k),
    ("top_p", filters::top_p),
    ("min_p", filters::min_p),
    ("typical_p", entropy::typical_p),
    ("epsilon_cutoff", entropy::epsilon_cutoff),
    ("eta_cutoff", entropy::eta_cutoff),
];

/// The warpers behind them, whether sampling or not.
const FINISHERS: &[Maker<dyn Warper>] = &[
    ("watermarking_config", watermark::green_list),
    ("watermarking_config", watermark::synth_id_text),
    ("renormalize_logits", normalization::renormalize),
];

/// A step that is on.
#[derive(Debug)]
struct Step<S: ?Sized> {
    name: &'static str,
    run: Box<S>,
}

/// Those of `makers` that `settings` switch on.
fn make<'a, S: ?Sized + 'a>(makers: impl Iterator<Item = &'a Maker<S>>, settings: &Settings<'_>) -> Vec<Step<S>> {
    makers.filter_map(|&(name, make)| make(settings).map(|run| Step { name, run })).collect()
}

/// The steps that are on for one sequence.
#[derive(Debug)]
pub struct Pipeline {
    processors: Vec<Step<dyn Processor>>,
    warpers: Vec<Step<dyn Warper>>,
    mends_nan: bool,
}

impl Pipeline {
    /// Makes the steps that `settings` switch on.
    #[must_use]
    pub fn new(settings: &Settings<'_>) -> Self {
        let warpers = if settings.sampling.do_sample { WARPERS } else { &[] };
        Self {
            processors: make(PROCESSORS.iter(), settings),
            warpers: make(warpers.iter().chain(FINISHERS), settings),
            mends_nan: settings.sampling.remove_invalid_values,
        }
    }

    /// Whether the processors take rows that hold NaN.
    #[must_use]
    pub fn mends_nan(&self) -> bool {
        self.mends_nan
    }

    /// Whether [`Pipeline::process`] would change anything.
    #[must_use]
    pub fn edits(&self, history: &History) -> bool {
        self.active(history).next().is_some()
    }

    /// The processors that act on the next token.
    fn active<'a>(&'a self, history: &'a History) -> impl Iterator<Item = &'a Step<dyn Processor>> {
        self.processors.iter().filter(|step| step.run.is_active(history))
    }

    /// Runs the processors over `logits` `[V]`.
    pub fn process(&self, history: &History, logits: &mut [f32]) {
        for step in self.active(history) {
            step.run.process(history, logits);
        }
    }

    /// Runs the warpers.
    pub fn warp(&self, history: &History, candidates: &mut Candidates<'_>) {
        for step in &self.warpers {
            step.run.warp(history, candidates);
        }
    }
}
