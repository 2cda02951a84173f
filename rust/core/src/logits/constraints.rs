//! Processors that forbid tokens.

use super::history::History;
use super::{Processor, Settings};

fn forbid(ids: &[u32], logits: &mut [f32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
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

/// transformers' `SuppressTokensLogitsProcessor`.
#[derive(Debug)]
struct SuppressTokens {
    ids: Vec<u32>,
}

pub fn suppress_tokens(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let ids = &settings.sampling.suppress_tokens;
    (!ids.is_empty()).then(|| Box::new(SuppressTokens { ids: ids.clone() }) as _)
}

impl Processor for SuppressTokens {
    fn is_active(&self, _: &History) -> bool {
        true
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        forbid(&self.ids, logits);
    }
}
