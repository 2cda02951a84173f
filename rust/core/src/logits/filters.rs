//! Warpers: what narrows the choice when sampling. Each is equal to the transformers warper that it names, with
//! `min_tokens_to_keep = 1`.

use super::candidates::Candidates;
use super::kernels;
use super::penalties::narrow_positive;
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
    fn warp(&self, candidates: &mut Candidates<'_>) {
        candidates.divide(self.0);
    }
}

/// `TopKLogitsWarper`: all that tie with the k-th stay.
#[derive(Debug)]
struct TopK(usize);

pub fn top_k(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let k = settings.sampling.top_k;
    (k > 0).then(|| Box::new(TopK(k)) as _)
}

impl Warper for TopK {
    fn warp(&self, candidates: &mut Candidates<'_>) {
        candidates.keep_top(self.0);
    }
}

/// `TopPLogitsWarper`: drops by ascending logit while the cumulative probability is at most 1 - p. Among equal logits
/// the lower id goes first, as with torch's stable sort.
#[derive(Debug)]
struct TopP(f64);

pub fn top_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let p = settings.sampling.top_p;
    (p < 1.0).then(|| Box::new(TopP(p)) as _)
}

impl Warper for TopP {
    fn warp(&self, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let (values, scratch) = candidates.values();
        if let Some((value, position, _)) = select::first_of_top_p(values, max, self.0, scratch) {
            candidates.cut(value, position);
        }
    }
}

/// `MinPLogitsWarper`: drops p below `min_p` times the largest p.
#[derive(Debug)]
struct MinP(f32);

pub fn min_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    #[allow(clippy::cast_possible_truncation)]
    let min_p = settings.sampling.min_p as f32;
    (min_p > 0.0).then(|| Box::new(MinP(min_p)) as _)
}

impl Warper for MinP {
    fn warp(&self, candidates: &mut Candidates<'_>) {
        // p / max p = exp(logit - max logit): no sum is needed.
        let threshold = candidates.max() + self.0.ln();
        candidates.cut(threshold, 0);
    }
}

/// `TypicalLogitsWarper`: by distance of the information content to the entropy, up to the mass; ties of the last stay.
#[derive(Debug)]
struct Typical(f32);

pub fn typical_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    #[allow(clippy::cast_possible_truncation)]
    let mass = settings.sampling.typical_p as f32;
    (settings.sampling.typical_p < 1.0).then(|| Box::new(Typical(mass)) as _)
}

impl Warper for Typical {
    fn warp(&self, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let (values, scratch) = candidates.values();
        let total = kernels::exps(values, max, 1.0, &mut scratch.weights);
        let mean = kernels::weighted_distances(values, &scratch.weights, max) / total;
        #[allow(clippy::cast_possible_truncation)]
        let (log_total, entropy) = (total.ln() as f32, (total.ln() - mean) as f32);
        kernels::surprise_distances(values, max, log_total, entropy, &mut scratch.keys);
        if let Some(last) = select::key_at_mass(self.0, total, scratch) {
            candidates.keep_keys_up_to(last);
        }
    }
}
