//! Processors that look at how long the sequence is: no end too early, an end in time, and the forced first token.

use super::constraints::forbid;
use super::history::History;
use super::penalties::narrow;
use super::{Processor, Settings};

/// transformers' `MinLengthLogitsProcessor`: no EOS token before prompt and answer have their minimum length.
#[derive(Debug)]
struct MinLength {
    min_length: usize,
    eos_token_ids: Vec<u32>,
}

pub fn min_length(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let (min_length, eos_token_ids) = (settings.stopping.min_length, &settings.stopping.eos_token_ids);
    (min_length > 0 && !eos_token_ids.is_empty())
        .then(|| Box::new(MinLength { min_length, eos_token_ids: eos_token_ids.clone() }) as _)
}

impl Processor for MinLength {
    fn is_active(&self, history: &History) -> bool {
        history.tokens().len() < self.min_length
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        forbid(&self.eos_token_ids, logits);
    }
}

/// transformers' `MinNewTokensLengthLogitsProcessor`: no EOS token before the answer has its minimum length.
#[derive(Debug)]
struct MinNewTokens {
    min_new_tokens: usize,
    eos_token_ids: Vec<u32>,
}

pub fn min_new_tokens(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let (min_new_tokens, eos_token_ids) = (settings.stopping.min_new_tokens, &settings.stopping.eos_token_ids);
    (min_new_tokens > 0 && !eos_token_ids.is_empty())
        .then(|| Box::new(MinNewTokens { min_new_tokens, eos_token_ids: eos_token_ids.clone() }) as _)
}

impl Processor for MinNewTokens {
    fn is_active(&self, history: &History) -> bool {
        history.generated().len() < self.min_new_tokens
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        forbid(&self.eos_token_ids, logits);
    }
}

/// Leaves `ids` alone, all equal.
fn force(ids: &[u32], logits: &mut [f32]) {
    logits.fill(f32::NEG_INFINITY);
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = 0.0;
        }
    }
}

/// transformers' `ForcedBOSTokenLogitsProcessor`: this token behind a single one, and no other.
#[derive(Debug)]
struct ForcedBos {
    id: u32,
}

pub fn forced_bos(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    settings.sampling.forced_bos_token_id.map(|id| Box::new(ForcedBos { id }) as _)
}

impl Processor for ForcedBos {
    fn is_active(&self, history: &History) -> bool {
        history.tokens().len() == 1
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        force(&[self.id], logits);
    }
}

/// transformers' `ForcedEOSTokenLogitsProcessor`: these tokens in the last place there is, and no others.
#[derive(Debug)]
struct ForcedEos {
    max_new_tokens: usize,
    ids: Vec<u32>,
}

pub fn forced_eos(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let (max_new_tokens, ids) = (settings.stopping.max_new_tokens, &settings.stopping.forced_eos_token_ids);
    (!ids.is_empty()).then(|| Box::new(ForcedEos { max_new_tokens, ids: ids.clone() }) as _)
}

impl Processor for ForcedEos {
    fn is_active(&self, history: &History) -> bool {
        // max_length is the prompt's length and max_new_tokens together.
        history.generated().len() + 1 == self.max_new_tokens
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        force(&self.ids, logits);
    }
}

/// transformers' `ExponentialDecayLengthPenalty`: from a length on, EOS logits grow by a part of their amount that
/// itself grows exponentially. Infinite ones stay.
#[derive(Debug)]
struct ExponentialDecay {
    start: usize,
    factor: f64,
    /// Each once.
    eos_token_ids: Vec<u32>,
}

pub fn exponential_decay(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let (start, factor) = settings.stopping.exponential_decay_length_penalty?;
    let mut eos_token_ids = settings.stopping.eos_token_ids.clone();
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    (!eos_token_ids.is_empty()).then(|| Box::new(ExponentialDecay { start, factor, eos_token_ids }) as _)
}

impl Processor for ExponentialDecay {
    fn is_active(&self, history: &History) -> bool {
        history.generated().len() > self.start
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        let steps = i32::try_from(history.generated().len() - self.start).unwrap_or(i32::MAX);
        // Where transformers' power overflows, the largest number: a logit of 0 must stay one.
        let growth = narrow(self.factor.powi(steps) - 1.0).min(f32::MAX);
        for &id in &self.eos_token_ids {
            if let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) {
                *logit += logit.abs() * growth;
            }
        }
    }
}
