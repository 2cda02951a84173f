//! Token healing: the first token extends the one that was taken off the prompt.

use super::Processor;
use super::history::History;

/// Name of the step.
pub const NAME: &str = "token_healing";

/// What transformers' `heal_tokens` adds to the logit of the token that was taken off, so that it is not replaced
/// lightly (`http` by `https`).
const ORIGINAL_BIAS: f32 = 1.0;

/// At the first step, only tokens whose vocabulary entry begins with the entry of the dropped token. transformers adds
/// 10 to their logits instead, which a confident model can overrule.
#[derive(Debug)]
pub struct TokenHealing {
    /// Sorted.
    allowed: Vec<u32>,
    original: u32,
}

impl TokenHealing {
    /// `allowed` are the tokens that extend `original`, itself among them.
    #[must_use]
    pub fn new(mut allowed: Vec<u32>, original: u32) -> Self {
        allowed.sort_unstable();
        Self { allowed, original }
    }
}

impl Processor for TokenHealing {
    fn is_active(&self, history: &History) -> bool {
        history.generated().is_empty()
    }

    fn process(&self, _: &History, logits: &mut [f32]) {
        let mut allowed = self.allowed.iter().peekable();
        for (id, logit) in (0_u32..).zip(logits.iter_mut()) {
            if allowed.next_if(|&&next| next == id).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(logit) = logits.get_mut(self.original as usize) {
            *logit += ORIGINAL_BIAS;
        }
    }
}
