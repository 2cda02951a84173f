//! Warpers that narrow the choice by logit or probability. Each is equal to the transformers warper that it names.

use super::candidates::{Candidates, Ties};
use super::history::History;
use super::penalties::{narrow, narrow_positive};
use super::select;
use super::{Settings, Warper};

/// `TemperatureLogitsWarper`.
#[derive(Debug)]
struct Temperature(f32);

pub fn temperature(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let temperature = narrow_positive(settings.sampling.temperature);
    (temperature != 1.0).then(|| Box::new(Temperature(temperature)) as _)
}

impl Warper for Temperature {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        candidates.divide(self.0);
    }
}

/// `TopKLogitsWarper`: all that tie with the k-th stay.
#[derive(Debug)]
struct TopK(usize);

pub fn top_k(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let k = settings.sampling.top_k;
    (k > 0).then(|| Box::new(TopK(k.max(settings.sampling.min_tokens_to_keep))) as _)
}

impl Warper for TopK {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        candidates.keep_top(self.0);
    }
}

/// `TopPLogitsWarper`: drops by ascending logit while the cumulative probability is at most 1 - p. Among equal logits
/// the lower id goes first, as with torch's stable sort.
#[derive(Debug)]
struct TopP {
    p: f64,
    least: usize,
}

pub fn top_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let (p, least) = (settings.sampling.top_p, settings.sampling.min_tokens_to_keep);
    (p < 1.0).then(|| Box::new(TopP { p, least }) as _)
}

impl Warper for TopP {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let (values, scratch) = candidates.values();
        if let Some((value, position, _)) = select::first_of_top_p(values, max, self.p, scratch) {
            candidates.cut_but(self.least, Ties::Highest, value, position);
        }
    }
}

/// `MinPLogitsWarper`: drops p below `min_p` times the largest p.
#[derive(Debug)]
struct MinP {
    /// Logarithm of the share.
    log_min_p: f64,
    least: usize,
}

pub fn min_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let (min_p, least) = (narrow(settings.sampling.min_p), settings.sampling.min_tokens_to_keep);
    (min_p > 0.0).then(|| Box::new(MinP { log_min_p: f64::from(min_p).ln(), least }) as _)
}

impl Warper for MinP {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        // p / max p = exp(logit - max logit): no sum is needed.
        let threshold = candidates.below_max(self.log_min_p);
        candidates.cut_but(self.least, Ties::Lowest, threshold, 0);
    }
}
