//! Token healing: a token takes the place of the prompt's last one, which it begins with.

use super::history::History;
use super::{Pipeline, Processor, Settings, Step, invalid};

/// What explanations call the step.
const NAME: &str = "token_healing";

/// What transformers' `heal_tokens` adds to the logit of the token that was taken off, so that it is not replaced
/// lightly (`http` by `https`).
const ORIGINAL_BIAS: f32 = 1.0;

/// Only tokens whose vocabulary entry begins with the entry of the dropped token. transformers adds 10 to their logits
/// instead, which a confident model can overrule.
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
    fn is_active(&self, _: &History) -> bool {
        true
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

impl Pipeline {
    /// What chooses a healed token. It belongs to the prompt: none of the settings acts on it, but what makes numbers
    /// of its logits.
    #[must_use]
    pub fn of_healing(settings: &Settings<'_>, healing: TokenHealing) -> Self {
        let mending = invalid::remove_invalid(settings).map(|run| Step { name: invalid::NAME, run });
        let healing = Step { name: NAME, run: Box::new(healing) as _ };
        Self {
            processors: mending.into_iter().chain([healing]).collect(),
            warpers: Vec::new(),
            mends_nan: settings.sampling.remove_invalid_values,
        }
    }
}
