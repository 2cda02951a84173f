//! Warpers that look at the entropy, or compare probabilities themselves. Each is equal to the transformers warper that
//! it names.

use super::candidates::Candidates;
use super::history::History;
use super::penalties::narrow;
use super::select;
use super::{Settings, Warper, kernels};

/// `TopHLogitsWarper`: of the 100 most likely tokens the first ones, while the sum of their terms of the entropy is at
/// most a share of the whole; the first always. Among equals the lower id comes first.
#[derive(Debug)]
struct TopH(f32);

pub fn top_h(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    settings.sampling.top_h.map(|share| Box::new(TopH(narrow(share))) as _)
}

/// How many tokens top-h looks at: transformers' `top_n`.
const MOST: usize = 100;

impl Warper for TopH {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let ranked = candidates.ranked(MOST);
        let weights: Vec<_> = ranked.iter().map(|&(_, logit)| (logit - max).exp()).collect();
        let total: f32 = weights.iter().sum();
        let log_sum = max + total.ln();
        let information = ranked.iter().map(|&(_, logit)| log_sum - logit);
        let entropy: f32 =
            weights.iter().zip(information).map(|(&w, bits)| if w > 0.0 { w / total * bits } else { 0.0 }).sum();
        // A token without probability ends the row: its term is no number.
        let terms = weights.iter().map(|weight| weight / total).take_while(|&p| p > 0.0).map(|p| -p * p.ln());
        // The entropy comes from logits less the rounded logarithm of their sum, the terms from probabilities: that is how
        // torch computes the two, and equal logits lie on the border.
        let (share, mut sum) = (entropy * self.0, 0.0);
        let fits = |&term: &f32| {
            sum += f64::from(term);
            narrow(sum) <= share
        };
        let count = terms.take_while(fits).count().max(1);
        candidates.keep_ids(ranked.into_iter().take(count).map(|(id, _)| id).collect());
    }
}

/// Sum of `exp(logit - max)`, the weights left in the scratch; and the entropy.
fn total_and_entropy(candidates: &mut Candidates<'_>) -> (f64, f64) {
    let max = candidates.max();
    let (values, scratch) = candidates.values();
    let total = kernels::exps(values, max, 1.0, &mut scratch.weights);
    let mean = kernels::weighted_distances(values, &scratch.weights, max) / total;
    (total, total.ln() - mean)
}

/// `TypicalLogitsWarper`: by distance of the information content to the entropy, up to the mass; ties of the last stay.
#[derive(Debug)]
struct Typical {
    mass: f32,
    least: usize,
}

pub fn typical_p(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let (mass, least) = (settings.sampling.typical_p, settings.sampling.min_tokens_to_keep);
    (mass < 1.0).then(|| Box::new(Typical { mass: narrow(mass), least }) as _)
}

impl Warper for Typical {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let (total, entropy) = total_and_entropy(candidates);
        let (values, scratch) = candidates.values();
        kernels::surprise_distances(values, max, narrow(total.ln()), narrow(entropy), &mut scratch.keys);
        if let Some(last) = select::key_at_mass(self.mass, total, scratch) {
            candidates.keep_keys_up_to(last, self.least);
        }
    }
}

/// `EpsilonLogitsWarper`: drops p below a cutoff, but none of the most likely ones.
#[derive(Debug)]
struct Epsilon {
    /// Logarithm of the cutoff.
    log_cutoff: f64,
    least: usize,
}

pub fn epsilon_cutoff(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let (cutoff, least) = (narrow(settings.sampling.epsilon_cutoff), settings.sampling.min_tokens_to_keep);
    (cutoff > 0.0).then(|| Box::new(Epsilon { log_cutoff: f64::from(cutoff).ln(), least }) as _)
}

impl Warper for Epsilon {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        // The probabilities are those of logits that nothing is pending for.
        candidates.max();
        let log_total = candidates.log_normalizer();
        candidates.cut_below(self.log_cutoff + log_total, self.least);
    }
}

/// `EtaLogitsWarper`: like `EpsilonLogitsWarper`, with a cutoff that falls with the entropy.
#[derive(Debug)]
struct Eta {
    /// Logarithm of the cutoff where the entropy is 0.
    log_epsilon: f64,
    least: usize,
}

pub fn eta_cutoff(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let (epsilon, least) = (narrow(settings.sampling.eta_cutoff), settings.sampling.min_tokens_to_keep);
    (epsilon > 0.0).then(|| Box::new(Eta { log_epsilon: f64::from(epsilon).ln(), least }) as _)
}

impl Warper for Eta {
    fn warp(&self, _: &History, candidates: &mut Candidates<'_>) {
        let max = candidates.max();
        let (total, entropy) = total_and_entropy(candidates);
        // transformers subtracts the logarithm of the sum as a float32, which large logits leave few digits of.
        let log_sum = f64::from(narrow(f64::from(max) + total.ln()));
        let entropy = entropy + (log_sum - f64::from(max) - total.ln());
        let log_cutoff = self.log_epsilon.min(self.log_epsilon / 2.0 - entropy);
        candidates.cut_below(log_cutoff + total.ln(), self.least);
    }
}
