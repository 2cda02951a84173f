//! Why a token was chosen: what each step of the pipeline did to the distribution, seen from that token.
//!
//! Found in a run of its own, once the token is known: whoever does not ask pays nothing, and asking cannot change the
//! choice. It goes through the same steps on the same values.

use super::Pipeline;
use super::candidates::{Buffers, Candidates};
use super::history::History;
use super::kernels;

/// Generated tokens of a sequence that are explained at most, the first ones.
pub const MOST: usize = 256;

/// How a token stands in a distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Probability of the token.
    pub probability: f64,
    /// Its place by probability, from 1; among equals the lower id comes first.
    pub rank: usize,
    /// Entropy of the distribution in nats.
    pub entropy: f64,
    /// Tokens whose probability is above 0 in `f32`: those that a draw can give.
    pub token_count: usize,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The step's name.
    pub name: &'static str,
    /// Tokens that were not at -infinity before and are behind it.
    pub removed: usize,
    /// Before the step; `None` where the logits are no distribution: they hold NaN, or nothing above -infinity.
    pub before: Option<Standing>,
    /// Behind it.
    pub after: Option<Standing>,
}

/// How a token came to be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// In the model's own distribution; `None` where its logits are none.
    pub model: Option<Standing>,
    /// The steps that changed any logit, in the order in which they ran.
    pub effects: Vec<Effect>,
    /// In the distribution that the choice was made from.
    pub outcome: Option<Standing>,
}

/// Memory of traces, reused from one to the next.
#[derive(Debug, Default)]
pub struct TraceMemory {
    row: Vec<f32>,
    next: Vec<f32>,
    measure: Measure,
}

/// Watches a row of logits on its way through the pipeline.
#[derive(Debug)]
pub struct Trace<'a> {
    token: u32,
    memory: &'a mut TraceMemory,
    standing: Option<Standing>,
    model: Option<Standing>,
    effects: Vec<Effect>,
}

impl<'a> Trace<'a> {
    /// Begins with the model's logits `[V]`.
    #[must_use]
    pub fn new(token: u32, row: &[f32], memory: &'a mut TraceMemory) -> Self {
        let standing = memory.measure.standing(row, token);
        memory.row.clear();
        memory.row.extend_from_slice(row);
        memory.next.resize(row.len(), 0.0);
        Self { token, memory, standing, model: standing, effects: Vec::new() }
    }

    /// Takes what the step `name` made of the row.
    pub fn note(&mut self, name: &'static str, row: &[f32]) {
        self.note_written(name, |next| next.copy_from_slice(row));
    }

    /// The same, where the step writes all of its row.
    fn note_written(&mut self, name: &'static str, write: impl FnOnce(&mut [f32])) {
        let TraceMemory { row, next, measure } = &mut *self.memory;
        write(next);
        let is_same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
        if row.iter().zip(&*next).all(is_same) {
            return;
        }
        let removed = |&(&a, &b): &(&f32, &f32)| b == f32::NEG_INFINITY && a != f32::NEG_INFINITY;
        let removed = row.iter().zip(&*next).filter(removed).count();
        let after = measure.standing(next, self.token);
        self.effects.push(Effect { name, removed, before: self.standing, after });
        self.standing = after;
        std::mem::swap(row, next);
    }

    /// What was seen.
    #[must_use]
    pub fn finish(self) -> Explanation {
        Explanation { model: self.model, effects: self.effects, outcome: self.standing }
    }
}

impl Pipeline {
    /// Runs all steps over `logits` `[V]`, which are left in any state, one by one before the eyes of `trace`.
    ///
    /// The warpers work on one set of candidates, as in a step that is not explained: what they sum up, and so each of
    /// their decisions, is the same to the last bit.
    pub fn explain(&self, history: &History, logits: &mut [f32], buffers: &mut Buffers, trace: &mut Trace<'_>) {
        for step in self.active(history) {
            step.run.process(history, logits);
            trace.note(step.name, logits);
        }
        // Never for a token that was chosen: the choice fails where these logits are no distribution.
        let Ok(mut candidates) = Candidates::new(logits, buffers) else { return };
        // Tokens at +infinity have become equal and finite, the others are gone: another form of the same distribution.
        candidates.write_to(&mut trace.memory.row);
        for step in &self.warpers {
            step.run.warp(history, &mut candidates);
            trace.note_written(step.name, |next| candidates.write_to(next));
        }
    }
}

/// Memory for looking at rows.
#[derive(Debug, Default)]
struct Measure {
    maxima: Vec<f32>,
    weights: Vec<f32>,
}

impl Measure {
    /// How `token` stands in the softmax of `row` `[V]`; `None` where that is no distribution.
    fn standing(&mut self, row: &[f32], token: u32) -> Option<Standing> {
        let scan = kernels::scan(row, &mut self.maxima);
        if scan.has_nan || scan.max == f32::NEG_INFINITY {
            return None;
        }
        let logit = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let rank = kernels::count_ahead(row, logit, token) + 1;
        if scan.max == f32::INFINITY {
            // They share the probability.
            let token_count = row.iter().filter(|&&other| other == f32::INFINITY).count();
            #[allow(clippy::cast_precision_loss)]
            let count = token_count as f64;
            let probability = if logit == f32::INFINITY { count.recip() } else { 0.0 };
            return Some(Standing { probability, rank, entropy: count.ln(), token_count });
        }
        let total = kernels::exps(row, scan.max, 1.0, &mut self.weights);
        let mean = kernels::weighted_distances(row, &self.weights, scan.max) / total;
        let token_count = self.weights.iter().filter(|&&weight| weight > 0.0).count();
        let probability = (f64::from(logit) - f64::from(scan.max)).exp() / total;
        // Rounding may take either over its border.
        Some(Standing { probability: probability.min(1.0), rank, entropy: (total.ln() - mean).max(0.0), token_count })
    }
}
