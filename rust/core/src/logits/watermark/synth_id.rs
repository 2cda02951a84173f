//! `SynthID` text of Dathathri et al. (2024), "Scalable watermarking for identifying large language model outputs".

use super::torch;
use crate::logits::candidates::Candidates;
use crate::logits::history::History;
use crate::logits::{Settings, Warper};
use crate::params::Watermark;

/// transformers' `SynthIDTextWatermarkLogitsProcessor`: in a round per key, tokens whose n-gram's coin fell on 1 take
/// probability from the others.
///
/// transformers keeps the context and the hashes of those before as a state; here they follow from the answer, so that
/// a sequence may be forked or computed again. The context is of generated tokens, with zeros in front.
#[derive(Debug)]
struct SynthIdTextWatermark {
    context_len: usize,
    keys: Vec<i64>,
    remembered: usize,
    coins: Vec<bool>,
    skips_first: bool,
    is_debug: bool,
}

pub fn synth_id_text(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let Some(Watermark::SynthIdText(config)) = &settings.sampling.watermark else { return None };
    let count = |value| usize::try_from(value).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The low 32 bits are what torch takes.
    let seed = config.sampling_table_seed as u32;
    Some(Box::new(SynthIdTextWatermark {
        context_len: count(config.ngram_len).saturating_sub(1),
        keys: config.keys.iter().filter_map(|&key| i64::try_from(key).ok()).collect(),
        remembered: count(config.context_history_size),
        coins: torch::coin_flips(seed, count(config.sampling_table_size)),
        skips_first: config.skip_first_ngram_calls,
        is_debug: config.debug_mode,
    }))
}

impl Warper for SynthIdTextWatermark {
    fn warp(&self, history: &History, candidates: &mut Candidates<'_>) {
        let generated = history.generated();
        if self.is_debug {
            candidates.fill(1.0);
        }
        let first = if self.skips_first { self.context_len } else { 0 };
        if generated.len() < first || self.is_repeated(generated, first) {
            return;
        }
        let context = self.context_hash(generated);
        // Tokens that were removed come back with the smallest number, as in transformers: no less improbable.
        candidates.rescore(f32::MIN, |ids, logits| self.mark(context, ids, logits));
    }
}

impl SynthIdTextWatermark {
    /// Hash of the last tokens before the next one.
    fn context_hash(&self, generated: &[u32]) -> i64 {
        let padding = self.context_len.saturating_sub(generated.len());
        let start = generated.len().saturating_sub(self.context_len);
        let context = std::iter::repeat_n(0, padding).chain(generated.get(start..).unwrap_or_default().iter().copied());
        context.fold(1, |hash, id| accumulate(hash, id.into()))
    }

    /// Whether the context of the next token is that of one before, of those since `first` that are remembered.
    fn is_repeated(&self, generated: &[u32], first: usize) -> bool {
        let hash = self.context_hash(generated);
        let oldest = generated.len().saturating_sub(self.remembered).max(first);
        // Places of the memory that nothing has been put into hold 0.
        let has_empty = generated.len() - first < self.remembered;
        (has_empty && hash == 0)
            || (oldest..generated.len())
                .any(|length| generated.get(..length).is_some_and(|before| self.context_hash(before) == hash))
    }

    /// Turns logits into marked log probabilities.
    fn mark(&self, context: i64, ids: &[u32], logits: &mut [f32]) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for logit in logits.iter_mut() {
            *logit = (*logit - max).exp();
            total += f64::from(*logit);
        }
        #[allow(clippy::cast_possible_truncation)]
        let total = total as f32;
        for weight in logits.iter_mut() {
            *weight /= total;
        }
        let hashes: Vec<_> = ids.iter().map(|&id| accumulate(context, id.into())).collect();
        for &key in &self.keys {
            let coin = |hash: i64| self.coins.get(self.place(accumulate(hash, key))).copied().unwrap_or_default();
            let coins: Vec<_> = hashes.iter().map(|&hash| coin(hash)).collect();
            let ones = coins.iter().zip(logits.iter()).filter(|(coin, _)| **coin);
            #[allow(clippy::cast_possible_truncation)]
            let mass = ones.map(|(_, &p)| f64::from(p)).sum::<f64>() as f32;
            for (p, &coin) in logits.iter_mut().zip(&coins) {
                *p *= 1.0 + f32::from(u8::from(coin)) - mass;
            }
        }
        for p in logits {
            let log = p.ln();
            *p = if log.is_finite() { log } else { f32::MIN };
        }
    }

    fn place(&self, hash: i64) -> usize {
        let size = i64::try_from(self.coins.len()).unwrap_or(i64::MAX).max(1);
        usize::try_from(hash.rem_euclid(size)).unwrap_or_default()
    }
}

/// One step of a linear congruential generator with the constants of newlib and musl.
fn accumulate(hash: i64, value: i64) -> i64 {
    hash.wrapping_add(value).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)
}
