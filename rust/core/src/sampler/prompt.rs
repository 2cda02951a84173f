//! Log probabilities of tokens that were given, not chosen.

use super::{Logits, Sampler, Worker};
use crate::logits::candidates::RowError;
use crate::logits::kernels;
use crate::logits::logprobs::{self, Logprobs};

impl Sampler {
    /// Log-softmax of each row of `logits` `[token_ids.len(), width]` at the token that follows it, and at the `count`
    /// most likely ones; from the logits as they are, whatever a sequence's settings. Only with `mends` is what is no
    /// finite number replaced first, as `remove_invalid_values` does it.
    ///
    /// # Errors
    /// Without `mends`, the first row that holds NaN or nothing above -infinity; the inner shape mismatch where `logits`
    /// has another size, or a token lies outside `width`.
    pub fn logprobs_of(
        &mut self,
        logits: Logits<'_>,
        width: usize,
        token_ids: &[u32],
        count: usize,
        mends: bool,
    ) -> Result<Vec<Logprobs>, PromptError> {
        if token_ids.len().checked_mul(width) != Some(logits.len()) {
            return Err(PromptError::Shape { count: logits.len(), rows: token_ids.len(), width });
        }
        if let Some(&token) = token_ids.iter().find(|&&token| token as usize >= width) {
            return Err(PromptError::Token { token, width });
        }
        self.workers.resize_with(self.workers.len().max(1), Worker::default);
        let Some(worker) = self.workers.first_mut() else { return Ok(Vec::new()) };
        let rows = token_ids.iter().enumerate().map(|(row, &token)| {
            let mut raw = logits.rows(row, 1, width).widened(&mut worker.widened);
            if mends {
                worker.edited.clear();
                worker.edited.extend_from_slice(raw);
                kernels::mend(&mut worker.edited);
                raw = &worker.edited;
            }
            Ok(logprobs::of_row(raw, token, count, &mut worker.buffers)?)
        });
        rows.collect()
    }
}

/// Why there are no log probabilities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The logits have another shape than the tokens ask for.
    #[error("{count} logits are not {rows} rows of {width}")]
    Shape {
        /// Logits given.
        count: usize,
        /// Tokens given.
        rows: usize,
        /// Columns given.
        width: usize,
    },
    /// A token has no logit.
    #[error("token {token} has no logit among {width}")]
    Token {
        /// The token.
        token: u32,
        /// Columns given.
        width: usize,
    },
    /// A row has no probabilities.
    #[error(transparent)]
    Row(#[from] RowError),
}
