//! Sampling and stopping parameters, validated.
//!
//! Names and ranges are those of `GenerationConfig` in `proto/tokenwire/v1/generation.proto`. A constructor looks at
//! every field and reports all violations at once; what it returns is valid for good.

use crate::error::{Error, Result, Violation};
use crate::stop::StopStrings;
use std::fmt::Display;
use std::sync::Arc;

/// Largest amount of a logit bias, either way.
const MAX_LOGIT_BIAS: f64 = 100.0;
/// Largest amount of a presence or frequency penalty, either way.
const MAX_PENALTY: f64 = 2.0;

/// Sampling parameters as given, before validation.
#[derive(Debug, Clone)]
pub struct SamplingOptions {
    /// Columns of the logits.
    pub vocab_size: i64,
    /// Draw from the distribution (true) or take the most likely token (false).
    pub do_sample: bool,
    /// Divides the logits before sampling. Above 0, finite.
    pub temperature: f64,
    /// Keep the k most likely tokens. 0 (off) to the vocabulary size.
    pub top_k: i64,
    /// Keep the most likely tokens whose probabilities sum to at least this. Above 0 to 1 (off).
    pub top_p: f64,
    /// Drop tokens less likely than this times the most likely one. 0 (off) to 1.
    pub min_p: f64,
    /// Keep the tokens closest to the expected information content up to this mass. Above 0 to 1 (off).
    pub typical_p: f64,
    /// Divides positive, multiplies negative logits of tokens in prompt and answer. Above 0, finite; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted once from the logit of every generated token. -2 to 2; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit per time it was generated. -2 to 2; 0 is off.
    pub frequency_penalty: f64,
    /// Added to the logits of token ids. Finite, -100 to 100.
    pub logit_bias: Vec<(i64, f64)>,
    /// Tokens that are never generated.
    pub suppress_tokens: Vec<i64>,
    /// Seed of the draws: any 64-bit integer.
    pub seed: i128,
    /// How many most likely tokens to report beside the chosen one; `None` for no log probabilities.
    pub logprobs: Option<i64>,
    /// Whether log probabilities come after the processors (true) or from the raw logits (false).
    pub processed_logprobs: bool,
}

impl SamplingOptions {
    /// Everything off; greedy.
    #[must_use]
    pub fn new(vocab_size: i64) -> Self {
        Self {
            vocab_size,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            suppress_tokens: Vec::new(),
            seed: 0,
            logprobs: None,
            processed_logprobs: false,
        }
    }
}

/// How to turn logits into a token. The fields mean what they mean in [`SamplingOptions`].
#[derive(Debug, Clone)]
#[allow(missing_docs)] // Written once, at SamplingOptions.
#[non_exhaustive]
pub struct SamplingParams {
    pub vocab_size: usize,
    pub do_sample: bool,
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub min_p: f64,
    pub typical_p: f64,
    pub repetition_penalty: f64,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    pub logit_bias: Vec<(u32, f64)>,
    pub suppress_tokens: Vec<u32>,
    pub seed: i64,
    pub logprobs: Option<usize>,
    pub processed_logprobs: bool,
}

impl SamplingParams {
    /// Validates `options`.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] with every violation.
    pub fn new(options: &SamplingOptions) -> Result<Self> {
        let mut check = Check::default();
        let vocab_size = check.vocab_size(options.vocab_size);
        let vocab = i64::from(vocab_size);
        check.holds("temperature", above_zero(options.temperature), "must be above 0 and finite", options.temperature);
        check.range("top_k", options.top_k, 0, vocab);
        check.proportion("top_p", options.top_p);
        check.holds("min_p", (0.0..=1.0).contains(&options.min_p), "must be from 0 to 1", options.min_p);
        check.proportion("typical_p", options.typical_p);
        let penalty = options.repetition_penalty;
        check.holds("repetition_penalty", above_zero(penalty), "must be above 0 and finite", penalty);
        for (field, penalty) in
            [("presence_penalty", options.presence_penalty), ("frequency_penalty", options.frequency_penalty)]
        {
            check.holds(field, penalty.abs() <= MAX_PENALTY, "must be from -2 to 2", penalty);
        }
        let mut logit_bias = Vec::with_capacity(options.logit_bias.len());
        for &(id, bias) in &options.logit_bias {
            let field = || format!("logit_bias[{id}]");
            check.holds_at(field, bias.abs() <= MAX_LOGIT_BIAS, "must be from -100 to 100", bias);
            logit_bias.extend(check.id(field, id, vocab_size).map(|id| (id, bias)));
        }
        // A map has no order: sums must not depend on one.
        logit_bias.sort_unstable_by_key(|&(id, _)| id);
        let suppress_tokens = check.ids("suppress_tokens", &options.suppress_tokens, vocab_size);
        let seed = i64::try_from(options.seed);
        check.holds("seed", seed.is_ok(), "must be a 64-bit integer", options.seed);
        if let Some(count) = options.logprobs {
            check.range("logprobs", count, 0, vocab);
        }
        check.finish()?;
        Ok(Self {
            vocab_size: vocab_size as usize,
            do_sample: options.do_sample,
            temperature: options.temperature,
            top_k: usize::try_from(options.top_k).unwrap_or_default(),
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            repetition_penalty: options.repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            logit_bias,
            suppress_tokens,
            seed: seed.unwrap_or_default(),
            logprobs: options.logprobs.and_then(|count| usize::try_from(count).ok()),
            processed_logprobs: options.processed_logprobs,
        })
    }
}

/// Stopping parameters as given, before validation.
#[derive(Debug, Clone)]
pub struct StoppingOptions {
    /// Columns of the logits.
    pub vocab_size: i64,
    /// Most tokens to generate. At least 1.
    pub max_new_tokens: i64,
    /// Fewest tokens before an EOS token is allowed. 0 to `max_new_tokens`.
    pub min_new_tokens: i64,
    /// Tokens that end a sequence, reported as `eos`.
    pub eos_token_ids: Vec<i64>,
    /// Further tokens that end a sequence, reported as `stop_token`.
    pub stop_token_ids: Vec<i64>,
    /// Strings that end a sequence; none may be empty.
    pub stop_strings: Vec<String>,
    /// Whether a matched stop string stays in the text.
    pub include_stop_string: bool,
}

impl StoppingOptions {
    /// Ends at `max_new_tokens` alone.
    #[must_use]
    pub fn new(vocab_size: i64, max_new_tokens: i64) -> Self {
        Self {
            vocab_size,
            max_new_tokens,
            min_new_tokens: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            stop_strings: Vec::new(),
            include_stop_string: false,
        }
    }
}

/// When a sequence ends. The fields mean what they mean in [`StoppingOptions`].
#[derive(Debug, Clone)]
#[allow(missing_docs)] // Written once, at StoppingOptions.
#[non_exhaustive]
pub struct StoppingParams {
    pub vocab_size: usize,
    pub max_new_tokens: usize,
    pub min_new_tokens: usize,
    pub eos_token_ids: Vec<u32>,
    pub stop_token_ids: Vec<u32>,
    pub stop_strings: Vec<String>,
    /// The automaton of `stop_strings`, shared by all sequences of these parameters.
    pub stop_automaton: Arc<StopStrings>,
}

impl StoppingParams {
    /// Validates `options`.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] with every violation.
    pub fn new(options: &StoppingOptions) -> Result<Self> {
        let mut check = Check::default();
        let vocab_size = check.vocab_size(options.vocab_size);
        check.holds("max_new_tokens", options.max_new_tokens >= 1, "must be at least 1", options.max_new_tokens);
        check.range("min_new_tokens", options.min_new_tokens, 0, options.max_new_tokens.max(1));
        let eos_token_ids = check.ids("eos_token_id", &options.eos_token_ids, vocab_size);
        let stop_token_ids = check.ids("stop_token_ids", &options.stop_token_ids, vocab_size);
        for (index, string) in options.stop_strings.iter().enumerate() {
            check.holds_at(|| format!("stop_strings[{index}]"), !string.is_empty(), "must not be empty", "\"\"");
        }
        check.finish()?;
        Ok(Self {
            vocab_size: vocab_size as usize,
            max_new_tokens: usize::try_from(options.max_new_tokens).unwrap_or_default(),
            min_new_tokens: usize::try_from(options.min_new_tokens).unwrap_or_default(),
            eos_token_ids,
            stop_token_ids,
            stop_strings: options.stop_strings.clone(),
            stop_automaton: Arc::new(StopStrings::new(&options.stop_strings, options.include_stop_string)),
        })
    }
}

/// Checks ids that come from outside against the vocabulary.
///
/// # Errors
/// [`Error::InvalidParameters`] with every id that is not in `[0, vocab_size)`.
pub fn checked_ids(field: &str, ids: &[i64], vocab_size: usize) -> Result<Vec<u32>> {
    let mut check = Check::default();
    let checked = check.ids(field, ids, u32::try_from(vocab_size).unwrap_or(u32::MAX));
    check.finish()?;
    Ok(checked)
}

fn above_zero(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// Collects violations.
#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn holds_at(&mut self, field: impl FnOnce() -> String, holds: bool, rule: &str, value: impl Display) {
        if !holds {
            self.0.push(Violation { field: field(), rule: rule.to_owned(), value: value.to_string() });
        }
    }

    fn holds(&mut self, field: &str, holds: bool, rule: &str, value: impl Display) {
        self.holds_at(|| field.to_owned(), holds, rule, value);
    }

    fn range(&mut self, field: &str, value: i64, low: i64, high: i64) {
        if !(low..=high).contains(&value) {
            self.holds(field, false, &format!("must be from {low} to {high}"), value);
        }
    }

    fn proportion(&mut self, field: &str, value: f64) {
        self.holds(field, value > 0.0 && value <= 1.0, "must be above 0 and at most 1", value);
    }

    /// The vocabulary size, at least 1 so that the checks after it still say something sensible.
    fn vocab_size(&mut self, value: i64) -> u32 {
        let size = u32::try_from(value).ok().filter(|&size| size > 0);
        self.holds("vocab_size", size.is_some(), "must be from 1 to 4294967295", value);
        size.unwrap_or(1)
    }

    fn id(&mut self, field: impl FnOnce() -> String, id: i64, vocab_size: u32) -> Option<u32> {
        let checked = u32::try_from(id).ok().filter(|&id| id < vocab_size);
        if checked.is_none() {
            self.holds_at(field, false, &format!("must be a token id from 0 to {}", vocab_size - 1), id);
        }
        checked
    }

    fn ids(&mut self, field: &str, ids: &[i64], vocab_size: u32) -> Vec<u32> {
        let numbered = ids.iter().enumerate();
        numbered.filter_map(|(index, &id)| self.id(|| format!("{field}[{index}]"), id, vocab_size)).collect()
    }

    fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::InvalidParameters(self.0)) }
    }
}
