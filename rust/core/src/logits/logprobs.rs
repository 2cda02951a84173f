//! Log probabilities of the chosen and the most likely tokens.

use super::candidates::{Buffers, Candidates, RowError};

/// Log probabilities at one position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logprobs {
    /// Of the chosen token; -infinity where a processor removed it.
    pub chosen: f32,
    /// The chosen token's place by probability, from 1; among equals the lower id comes first.
    pub rank: usize,
    /// The most likely tokens, best first, lower ids first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Log-softmax of `logits` `[V]` at `chosen` and its `count` largest.
///
/// # Errors
/// When the row holds NaN or nothing above -infinity.
pub fn of_row(logits: &[f32], chosen: u32, count: usize, buffers: &mut Buffers) -> Result<Logprobs, RowError> {
    Ok(of_candidates(Candidates::new(logits, buffers)?, chosen, count))
}

/// Log-softmax over the candidates at `chosen` and the `count` largest.
#[must_use]
pub fn of_candidates(mut candidates: Candidates<'_>, chosen: u32, count: usize) -> Logprobs {
    let log_normalizer = candidates.log_normalizer();
    Logprobs {
        chosen: candidates.logprob(chosen, log_normalizer),
        rank: candidates.rank(chosen),
        top: candidates.into_top(count, log_normalizer),
    }
}
