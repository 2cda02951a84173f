//! When a sequence ends, and what makes it likelier to.

use super::check::Check;
use crate::error::Result;
use crate::stop::StopStrings;
use std::ops::Deref;
use std::sync::Arc;

/// The fields, before and after validation, which narrows the integers.
#[derive(Debug, Clone)]
pub struct Stopping<Id, Count> {
    /// Columns of the logits.
    pub vocab_size: Count,
    /// Most tokens to generate. At least 1.
    pub max_new_tokens: Count,
    /// Fewest tokens before an EOS token is allowed. 0 to `max_new_tokens`.
    pub min_new_tokens: Count,
    /// Fewest tokens of prompt and answer together before an EOS token is allowed. At least 0.
    pub min_length: Count,
    /// Tokens that end a sequence, reported as `eos`.
    pub eos_token_ids: Vec<Id>,
    /// The only tokens allowed as the last of `max_new_tokens`; empty is off.
    pub forced_eos_token_ids: Vec<Id>,
    /// Generated tokens (at least 0) from which on the logits of EOS tokens grow, and the factor per token (above 0,
    /// finite).
    pub exponential_decay_length_penalty: Option<(Count, f64)>,
    /// Further tokens that end a sequence, reported as `stop_token`.
    pub stop_token_ids: Vec<Id>,
    /// Strings that end a sequence; none may be empty.
    pub stop_strings: Vec<String>,
    /// Whether a matched stop string stays in the text.
    pub include_stop_string: bool,
}

/// Stopping parameters as given, before validation.
pub type StoppingOptions = Stopping<i64, i64>;

impl StoppingOptions {
    /// Ends at `max_new_tokens` alone.
    #[must_use]
    pub fn new(vocab_size: i64, max_new_tokens: i64) -> Self {
        Self {
            vocab_size,
            max_new_tokens,
            min_new_tokens: 0,
            min_length: 0,
            eos_token_ids: Vec::new(),
            forced_eos_token_ids: Vec::new(),
            exponential_decay_length_penalty: None,
            stop_token_ids: Vec::new(),
            stop_strings: Vec::new(),
            include_stop_string: false,
        }
    }
}

/// Stopping parameters that hold to their ranges.
#[derive(Debug, Clone)]
pub struct StoppingParams {
    fields: Stopping<u32, usize>,
    stop_automaton: Arc<StopStrings>,
}

impl Deref for StoppingParams {
    type Target = Stopping<u32, usize>;

    fn deref(&self) -> &Self::Target {
        &self.fields
    }
}

impl StoppingParams {
    /// Validates `options`.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidParameters`] with every violation.
    pub fn new(options: &StoppingOptions) -> Result<Self> {
        let mut check = Check::default();
        let vocab_size = check.vocab_size(options.vocab_size);
        check.count("max_new_tokens", options.max_new_tokens, 1);
        check.range("min_new_tokens", options.min_new_tokens, 0, options.max_new_tokens.max(1));
        check.count("min_length", options.min_length, 0);
        let eos_token_ids = check.ids("eos_token_id", &options.eos_token_ids, vocab_size);
        let forced_eos_token_ids = check.ids("forced_eos_token_id", &options.forced_eos_token_ids, vocab_size);
        if let Some((start, factor)) = options.exponential_decay_length_penalty {
            check.count("exponential_decay_length_penalty.start_index", start, 0);
            check.above_zero("exponential_decay_length_penalty.decay_factor", factor);
        }
        let stop_token_ids = check.ids("stop_token_ids", &options.stop_token_ids, vocab_size);
        for (index, string) in options.stop_strings.iter().enumerate() {
            check.holds_at(|| format!("stop_strings[{index}]"), !string.is_empty(), "must not be empty", "\"\"");
        }
        check.finish()?;
        let count = |value| usize::try_from(value).unwrap_or_default();
        Ok(Self {
            fields: Stopping {
                vocab_size: vocab_size as usize,
                max_new_tokens: count(options.max_new_tokens),
                min_new_tokens: count(options.min_new_tokens),
                min_length: count(options.min_length),
                eos_token_ids,
                forced_eos_token_ids,
                exponential_decay_length_penalty: options
                    .exponential_decay_length_penalty
                    .map(|(start, factor)| (count(start), factor)),
                stop_token_ids,
                stop_strings: options.stop_strings.clone(),
                include_stop_string: options.include_stop_string,
            },
            stop_automaton: Arc::new(StopStrings::new(&options.stop_strings, options.include_stop_string)),
        })
    }

    /// The automaton of `stop_strings`, shared by all sequences of these parameters.
    #[must_use]
    pub fn stop_automaton(&self) -> &Arc<StopStrings> {
        &self.stop_automaton
    }
}
