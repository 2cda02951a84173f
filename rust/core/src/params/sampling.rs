//! How to turn logits into a token.

use super::check::Check;
use super::watermark::Watermark;
use crate::error::Result;
use std::ops::Deref;

/// Largest amount of a bias or of the guidance scale, either way.
pub(super) const MAX_BIAS: f64 = 100.0;
/// Largest amount of a presence or frequency penalty, either way.
const MAX_PENALTY: f64 = 2.0;

/// The fields, before and after validation, which narrows the integers.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // As many as GenerationConfig has.
pub struct Sampling<Id, Count, Seed> {
    /// Columns of the logits.
    pub vocab_size: Count,
    /// Draw from the distribution (true) or take the most likely token (false).
    pub do_sample: bool,
    /// Divides the logits before sampling. Above 0, finite.
    pub temperature: f64,
    /// Keep the most likely of the 100 most likely tokens while their entropy is at most this share of it all. Above 0
    /// to 1; `None` is off.
    pub top_h: Option<f64>,
    /// Keep the k most likely tokens. 0 (off) to the vocabulary size.
    pub top_k: Count,
    /// Keep the most likely tokens whose probabilities sum to at least this. Above 0 to 1 (off).
    pub top_p: f64,
    /// Drop tokens less likely than this times the most likely one. 0 (off) to 1.
    pub min_p: f64,
    /// Keep the tokens closest to the expected information content up to this mass. Above 0 to 1 (off).
    pub typical_p: f64,
    /// Drop tokens less likely than this. 0 (off) to below 1.
    pub epsilon_cutoff: f64,
    /// Drop tokens less likely than min(eta, sqrt(eta) * exp(-entropy)). 0 (off) to below 1.
    pub eta_cutoff: f64,
    /// Tokens that top-k and the filters after it leave at least. At least 1; beam sampling needs one more than there
    /// are EOS tokens, so that a beam can go on.
    pub min_tokens_to_keep: Count,
    /// Mark the answer; `None` is off.
    pub watermark: Option<Watermark>,
    /// Turn the processed logits into log probabilities.
    pub renormalize_logits: bool,
    /// Divides positive, multiplies negative logits of tokens in prompt and answer. Above 0, finite; 1 is off.
    pub repetition_penalty: f64,
    /// The inverse of a repetition penalty on the tokens of the prompt. Above 0, finite; 1 is off.
    pub encoder_repetition_penalty: f64,
    /// Subtracted once from the logit of every generated token. -2 to 2; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit per time it was generated. -2 to 2; 0 is off.
    pub frequency_penalty: f64,
    /// No n-gram of this length occurs twice in prompt and answer. At least 0 (off).
    pub no_repeat_ngram_size: Count,
    /// No n-gram of this length of the prompt occurs in the answer. At least 0 (off).
    pub encoder_no_repeat_ngram_size: Count,
    /// Added to the logits of token ids. Finite, -100 to 100.
    pub logit_bias: Vec<(Id, f64)>,
    /// Added to the logit of a sequence's last token where what is there ends with those before it. No sequence empty
    /// or twice; finite, -100 to 100.
    pub sequence_bias: Vec<(Vec<Id>, f64)>,
    /// Sequences that are never generated; none empty.
    pub bad_words_ids: Vec<Vec<Id>>,
    /// Tokens that are never generated.
    pub suppress_tokens: Vec<Id>,
    /// Tokens that are not generated first.
    pub begin_suppress_tokens: Vec<Id>,
    /// The only tokens that are generated; not empty. `None` is all.
    pub allowed_token_ids: Option<Vec<Id>>,
    /// The token behind a prompt of one token.
    pub forced_bos_token_id: Option<Id>,
    /// Replace NaN by 0, infinities by the largest and smallest number.
    pub remove_invalid_values: bool,
    /// How far to go from the unconditional distribution to this one and beyond. -100 to 100; 1 is off.
    pub guidance_scale: f64,
    /// Seed of the draws: any 64-bit integer.
    pub seed: Seed,
    /// How many most likely tokens to report beside the chosen one; `None` for no log probabilities.
    pub logprobs: Option<Count>,
    /// Whether log probabilities come after the processors (true) or from the raw logits (false).
    pub processed_logprobs: bool,
    /// Whether to tell what each step of the pipeline did to the chosen token and its distribution.
    pub explain: bool,
}

/// Sampling parameters as given, before validation.
pub type SamplingOptions = Sampling<i64, i64, i128>;

impl SamplingOptions {
    /// Everything off; greedy.
    #[must_use]
    pub fn new(vocab_size: i64) -> Self {
        Self {
            vocab_size,
            do_sample: false,
            temperature: 1.0,
            top_h: None,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            min_tokens_to_keep: 1,
            watermark: None,
            renormalize_logits: false,
            repetition_penalty: 1.0,
            encoder_repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            logit_bias: Vec::new(),
            sequence_bias: Vec::new(),
            bad_words_ids: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            allowed_token_ids: None,
            forced_bos_token_id: None,
            remove_invalid_values: false,
            guidance_scale: 1.0,
            seed: 0,
            logprobs: None,
            processed_logprobs: false,
            explain: false,
        }
    }
}

/// Sampling parameters that hold to their ranges.
#[derive(Debug, Clone)]
pub struct SamplingParams(Sampling<u32, usize, i64>);

impl Deref for SamplingParams {
    type Target = Sampling<u32, usize, i64>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl SamplingParams {
    /// Validates `options`.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidParameters`] with every violation.
    pub fn new(options: &SamplingOptions) -> Result<Self> {
        let mut check = Check::default();
        let vocab_size = check.vocab_size(options.vocab_size);
        check_filters(&mut check, options, i64::from(vocab_size));
        check_penalties(&mut check, options);
        let tokens = TokenFields::new(&mut check, options, vocab_size);
        let seed = i64::try_from(options.seed);
        check.holds("seed", seed.is_ok(), "must be a 64-bit integer", options.seed);
        if let Some(count) = options.logprobs {
            check.range("logprobs", count, 0, i64::from(vocab_size));
        }
        check.finish()?;
        let count = |value| usize::try_from(value).unwrap_or_default();
        Ok(Self(Sampling {
            vocab_size: vocab_size as usize,
            do_sample: options.do_sample,
            temperature: options.temperature,
            top_h: options.top_h,
            top_k: count(options.top_k),
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            epsilon_cutoff: options.epsilon_cutoff,
            eta_cutoff: options.eta_cutoff,
            min_tokens_to_keep: count(options.min_tokens_to_keep),
            watermark: options.watermark.clone(),
            renormalize_logits: options.renormalize_logits,
            repetition_penalty: options.repetition_penalty,
            encoder_repetition_penalty: options.encoder_repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            no_repeat_ngram_size: count(options.no_repeat_ngram_size),
            encoder_no_repeat_ngram_size: count(options.encoder_no_repeat_ngram_size),
            logit_bias: tokens.logit_bias,
            sequence_bias: tokens.sequence_bias,
            bad_words_ids: tokens.bad_words_ids,
            suppress_tokens: tokens.suppress_tokens,
            begin_suppress_tokens: tokens.begin_suppress_tokens,
            allowed_token_ids: tokens.allowed_token_ids,
            forced_bos_token_id: tokens.forced_bos_token_id,
            remove_invalid_values: options.remove_invalid_values,
            guidance_scale: options.guidance_scale,
            seed: seed.unwrap_or_default(),
            logprobs: options.logprobs.map(count),
            processed_logprobs: options.processed_logprobs,
            explain: options.explain,
        }))
    }
}

/// What narrows the choice.
fn check_filters(check: &mut Check, options: &SamplingOptions, vocab_size: i64) {
    check.above_zero("temperature", options.temperature);
    if let Some(top_h) = options.top_h {
        check.proportion("top_h", top_h);
    }
    check.range("top_k", options.top_k, 0, vocab_size);
    check.proportion("top_p", options.top_p);
    check.holds("min_p", (0.0..=1.0).contains(&options.min_p), "must be from 0 to 1", options.min_p);
    check.proportion("typical_p", options.typical_p);
    check.cutoff("epsilon_cutoff", options.epsilon_cutoff);
    check.cutoff("eta_cutoff", options.eta_cutoff);
    check.count("min_tokens_to_keep", options.min_tokens_to_keep, 1);
    if let Some(watermark) = &options.watermark {
        watermark.check(check);
    }
}

/// What raises or lowers logits.
fn check_penalties(check: &mut Check, options: &SamplingOptions) {
    check.above_zero("repetition_penalty", options.repetition_penalty);
    check.above_zero("encoder_repetition_penalty", options.encoder_repetition_penalty);
    check.amount(|| "presence_penalty".to_owned(), options.presence_penalty, MAX_PENALTY);
    check.amount(|| "frequency_penalty".to_owned(), options.frequency_penalty, MAX_PENALTY);
    check.count("no_repeat_ngram_size", options.no_repeat_ngram_size, 0);
    check.count("encoder_no_repeat_ngram_size", options.encoder_no_repeat_ngram_size, 0);
    check.amount(|| "guidance_scale".to_owned(), options.guidance_scale, MAX_BIAS);
}

/// The fields that name tokens, checked.
struct TokenFields {
    logit_bias: Vec<(u32, f64)>,
    sequence_bias: Vec<(Vec<u32>, f64)>,
    bad_words_ids: Vec<Vec<u32>>,
    suppress_tokens: Vec<u32>,
    begin_suppress_tokens: Vec<u32>,
    allowed_token_ids: Option<Vec<u32>>,
    forced_bos_token_id: Option<u32>,
}

impl TokenFields {
    fn new(check: &mut Check, options: &SamplingOptions, vocab_size: u32) -> Self {
        let mut logit_bias = Vec::with_capacity(options.logit_bias.len());
        for &(id, bias) in &options.logit_bias {
            let field = || format!("logit_bias[{id}]");
            check.amount(field, bias, MAX_BIAS);
            logit_bias.extend(check.id(field, id, vocab_size).map(|id| (id, bias)));
        }
        // A map has no order: sums must not depend on one.
        logit_bias.sort_unstable_by_key(|&(id, _)| id);
        let (sequences, biases): (Vec<_>, Vec<_>) = options.sequence_bias.iter().cloned().unzip();
        for (index, &bias) in biases.iter().enumerate() {
            check.amount(|| format!("sequence_bias[{index}].bias"), bias, MAX_BIAS);
        }
        check.distinct("sequence_bias", sequences.iter());
        let sequences = check.sequences("sequence_bias", &sequences, vocab_size);
        if let Some(ids) = &options.allowed_token_ids {
            let rule = "must have at least one id; leave it unset to allow every token";
            check.holds("allowed_token_ids", !ids.is_empty(), rule, "[]");
        }
        Self {
            logit_bias,
            sequence_bias: sequences.into_iter().zip(biases).collect(),
            bad_words_ids: check.sequences("bad_words_ids", &options.bad_words_ids, vocab_size),
            suppress_tokens: check.ids("suppress_tokens", &options.suppress_tokens, vocab_size),
            begin_suppress_tokens: check.ids("begin_suppress_tokens", &options.begin_suppress_tokens, vocab_size),
            allowed_token_ids: options
                .allowed_token_ids
                .as_ref()
                .map(|ids| check.ids("allowed_token_ids", ids, vocab_size)),
            forced_bos_token_id: options
                .forced_bos_token_id
                .and_then(|id| check.id(|| "forced_bos_token_id".to_owned(), id, vocab_size)),
        }
    }
}
