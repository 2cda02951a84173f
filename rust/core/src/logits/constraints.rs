//! Processors that forbid tokens whatever came before.

use super::history::History;
use super::{Processor, Settings};

pub(super) fn forbid(ids: &[u32], logits: &mut [f32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
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

/// transformers' `SuppressTokensAtBeginLogitsProcessor`: the first generated token, or the second behind a prompt of
/// one token where the first one is a forced BOS.
#[derive(Debug)]
struct BeginSuppressTokens {
    ids: Vec<u32>,
    forces_bos: bool,
}

pub fn begin_suppress_tokens(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let ids = &settings.sampling.begin_suppress_tokens;
    let forces_bos = settings.sampling.forced_bos_token_id.is_some();
    (!ids.is_empty()).then(|| Box::new(BeginSuppressTokens { ids: ids.clone(), forces_bos }) as _)
}

impl Processor for BeginSuppressTokens {
    fn is_active(&self, history: &History) -> bool {
        let begin = usize::from(self.forces_bos && history.prompt().len() <= 1);
        history.generated().len() == begin
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        forbid(&self.ids, logits);
    }
}

/// transformers' `PrefixConstrainedLogitsProcessor` with a `prefix_allowed_tokens_fn` that always answers the same.
/// Where the processors before it left none of the allowed tokens, all of them are equal.
#[derive(Debug)]
struct AllowedTokens {
    ids: Vec<u32>,
}

pub fn allowed_tokens(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let ids = settings.sampling.allowed_token_ids.clone();
    ids.map(|ids| Box::new(AllowedTokens { ids }) as _)
}

impl Processor for AllowedTokens {
    fn is_active(&self, _: &History) -> bool {
        true
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        let allowed = |logits: &[f32]| -> Vec<f32> {
            self.ids.iter().filter_map(|&id| logits.get(id as usize)).copied().collect()
        };
        let mut kept = allowed(logits);
        // A sum, as transformers has it: what is invalid (NaN, or infinite to begin with) stays so.
        for logit in logits.iter_mut() {
            *logit += f32::NEG_INFINITY;
        }
        if kept.iter().all(|&logit| logit == f32::NEG_INFINITY) && !logits.iter().any(|logit| logit.is_nan()) {
            kept.fill(0.0);
        }
        for (&id, logit) in self.ids.iter().zip(kept) {
            if let Some(place) = logits.get_mut(id as usize) {
                *place = logit;
            }
        }
    }
}
