//! Watermarks.

use super::check::Check;
use super::sampling::MAX_BIAS;

/// Most keys of a `SynthID` watermark, one per round of the tournament.
pub const MAX_SYNTH_ID_KEYS: usize = 64;

/// A mark on the answer that a detector with the same key finds.
#[derive(Debug, Clone)]
pub enum Watermark {
    /// transformers' `WatermarkingConfig`.
    GreenList(GreenList),
    /// transformers' `SynthIDTextWatermarkingConfig`.
    SynthIdText(SynthIdText),
}

/// Makes a part of the vocabulary likelier, another one after each token.
#[derive(Debug, Clone)]
pub struct GreenList {
    /// Part of the vocabulary that is green. Above 0, below 1.
    pub greenlist_ratio: f64,
    /// Added to green logits. -100 to 100.
    pub bias: f64,
    /// Key of the hash: any 64-bit integer above 0.
    pub hashing_key: i128,
    /// lefthash (by the last token) or selfhash (by the candidate and those before it).
    pub seeding_scheme: String,
    /// Tokens that seed the list. 1 to 16.
    pub context_width: i64,
}

/// Lets tokens win against each other by a hash of the n-gram that they complete.
#[derive(Debug, Clone)]
pub struct SynthIdText {
    /// Length of the n-grams. 2 to 16.
    pub ngram_len: i64,
    /// One 64-bit integer per round. 1 to [`MAX_SYNTH_ID_KEYS`] of them.
    pub keys: Vec<i128>,
    /// Contexts remembered, so that a repeated one is not marked twice. 1 to 65536.
    pub context_history_size: i64,
    /// Seed of the table of coin flips: any 64-bit integer.
    pub sampling_table_seed: i128,
    /// Coin flips in the table. 1 to 2^20.
    pub sampling_table_size: i64,
    /// Leave the first `ngram_len - 1` tokens unmarked.
    pub skip_first_ngram_calls: bool,
    /// Take all logits as 1, to test the scheme.
    pub debug_mode: bool,
}

impl Watermark {
    pub(super) fn check(&self, check: &mut Check) {
        match self {
            Self::GreenList(config) => config.check(check),
            Self::SynthIdText(config) => config.check(check),
        }
    }
}

impl GreenList {
    fn check(&self, check: &mut Check) {
        let field = |name| format!("watermarking_config.green_list.{name}");
        let ratio = self.greenlist_ratio;
        check.holds_at(|| field("greenlist_ratio"), ratio > 0.0 && ratio < 1.0, "must be above 0 and below 1", ratio);
        check.amount(|| field("bias"), self.bias, MAX_BIAS);
        let is_key = (1..=i128::from(i64::MAX)).contains(&self.hashing_key);
        check.holds_at(|| field("hashing_key"), is_key, "must be a 64-bit integer above 0", self.hashing_key);
        let is_scheme = matches!(self.seeding_scheme.as_str(), "lefthash" | "selfhash");
        check.holds_at(|| field("seeding_scheme"), is_scheme, "must be lefthash or selfhash", &self.seeding_scheme);
        check.range(&field("context_width"), self.context_width, 1, 16);
    }
}

impl SynthIdText {
    fn check(&self, check: &mut Check) {
        let field = |name: &str| format!("watermarking_config.synth_id_text.{name}");
        check.range(&field("ngram_len"), self.ngram_len, 2, 16);
        let count = self.keys.len();
        let rule = format!("must be 1 to {MAX_SYNTH_ID_KEYS} integers");
        check.holds_at(|| field("keys"), (1..=MAX_SYNTH_ID_KEYS).contains(&count), &rule, count);
        let seed = ("sampling_table_seed".to_owned(), self.sampling_table_seed);
        let keys = self.keys.iter().enumerate().map(|(index, &key)| (format!("keys[{index}]"), key));
        for (name, value) in keys.chain([seed]) {
            check.holds_at(|| field(&name), i64::try_from(value).is_ok(), "must be a 64-bit integer", value);
        }
        check.range(&field("context_history_size"), self.context_history_size, 1, 1 << 16);
        check.range(&field("sampling_table_size"), self.sampling_table_size, 1, 1 << 20);
    }
}
