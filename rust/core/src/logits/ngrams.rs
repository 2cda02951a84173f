//! Processors that forbid n-grams from coming again.

use super::constraints::forbid;
use super::history::History;
use super::{Processor, Settings};

/// Forbids each token that followed in `seen` what `tokens` end with, `size - 1` of them.
fn forbid_followers(seen: &[u32], tokens: &[u32], size: usize, logits: &mut [f32]) {
    let Some(suffix) = (tokens.len() + 1).checked_sub(size).and_then(|start| tokens.get(start..)) else { return };
    for ngram in seen.windows(size) {
        if let Some((&last, prefix)) = ngram.split_last()
            && prefix == suffix
        {
            forbid(&[last], logits);
        }
    }
}

/// transformers' `NoRepeatNGramLogitsProcessor`, over prompt and answer; off while there are fewer than n tokens.
#[derive(Debug)]
struct NoRepeatNgram {
    size: usize,
}

pub fn no_repeat_ngram(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let size = settings.sampling.no_repeat_ngram_size;
    (size > 0).then(|| Box::new(NoRepeatNgram { size }) as _)
}

impl Processor for NoRepeatNgram {
    fn is_active(&self, history: &History) -> bool {
        history.tokens().len() >= self.size
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        forbid_followers(history.tokens(), history.tokens(), self.size, logits);
    }
}

/// transformers' `EncoderNoRepeatNGramLogitsProcessor`: n-grams of the prompt, which is what `generate` passes as the
/// encoder's input of a decoder-only model.
#[derive(Debug)]
struct EncoderNoRepeatNgram {
    size: usize,
}

pub fn encoder_no_repeat_ngram(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let size = settings.sampling.encoder_no_repeat_ngram_size;
    (size > 0).then(|| Box::new(EncoderNoRepeatNgram { size }) as _)
}

impl Processor for EncoderNoRepeatNgram {
    fn is_active(&self, history: &History) -> bool {
        history.prompt().len() >= self.size
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        forbid_followers(history.prompt(), history.tokens(), self.size, logits);
    }
}
