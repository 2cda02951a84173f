//! Processors that raise or lower the logits of certain tokens.

use super::history::History;
use super::{Processor, Settings};

/// transformers' `RepetitionPenaltyLogitsProcessor`: over prompt and answer, each token once.
#[derive(Debug)]
struct RepetitionPenalty {
    penalty: f32,
}

pub fn repetition(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let penalty = narrow_positive(settings.sampling.repetition_penalty);
    (penalty != 1.0).then(|| Box::new(RepetitionPenalty { penalty }) as _)
}

impl Processor for RepetitionPenalty {
    fn is_active(&self, history: &History) -> bool {
        !history.distinct().is_empty()
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        penalize(history.distinct(), self.penalty, logits);
    }
}

/// transformers' `EncoderRepetitionPenaltyLogitsProcessor`: the inverse penalty, over the prompt, which is what
/// `generate` passes as the encoder's input of a decoder-only model.
#[derive(Debug)]
struct EncoderRepetitionPenalty {
    inverse: f32,
}

pub fn encoder_repetition(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let penalty = settings.sampling.encoder_repetition_penalty;
    let inverse = narrow_positive(penalty.recip());
    (penalty != 1.0).then(|| Box::new(EncoderRepetitionPenalty { inverse }) as _)
}

impl Processor for EncoderRepetitionPenalty {
    fn is_active(&self, history: &History) -> bool {
        !history.distinct_prompt().is_empty()
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        penalize(history.distinct_prompt(), self.inverse, logits);
    }
}

fn penalize(ids: &[u32], penalty: f32, logits: &mut [f32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Adds a fixed amount to the logits of given tokens.
#[derive(Debug)]
struct LogitBias {
    biases: Vec<(u32, f32)>,
}

pub fn logit_bias(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let biases: Vec<_> = settings.sampling.logit_bias.iter().map(|&(id, bias)| (id, narrow(bias))).collect();
    (!biases.is_empty()).then(|| Box::new(LogitBias { biases }) as _)
}

impl Processor for LogitBias {
    fn is_active(&self, _: &History) -> bool {
        true
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        for &(id, bias) in &self.biases {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }
}

/// Subtracts `presence + count * frequency` from generated tokens, the prompt left aside.
///
/// transformers has neither; this is the formula of the `OpenAI` API reference.
#[derive(Debug)]
struct PresenceAndFrequency {
    presence: f32,
    frequency: f32,
}

pub fn presence_and_frequency(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let presence = narrow(settings.sampling.presence_penalty);
    let frequency = narrow(settings.sampling.frequency_penalty);
    (presence != 0.0 || frequency != 0.0).then(|| Box::new(PresenceAndFrequency { presence, frequency }) as _)
}

impl Processor for PresenceAndFrequency {
    fn is_active(&self, history: &History) -> bool {
        !history.generated().is_empty()
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        for &(id, count) in history.counts() {
            if let Some(logit) = logits.get_mut(id as usize) {
                #[allow(clippy::cast_precision_loss)] // A count of 2^24 tokens is out of reach.
                let count = count as f32;
                *logit -= self.presence + self.frequency * count;
            }
        }
    }
}

/// As `f32`, the type of the arithmetic.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// As `f32`, kept away from 0 and infinity: either would turn a logit of 0 or infinity into NaN.
pub(super) fn narrow_positive(value: f64) -> f32 {
    narrow(value).clamp(f32::MIN_POSITIVE, f32::MAX)
}
