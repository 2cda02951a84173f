//! A tokenizer.json through the tokenizers crate.

mod added;
mod encode;
mod extensions;
mod selfcheck;

pub use encode::TokenSpans;

use crate::detokenizer::{self, DecodePlan, Vocabulary};
use crate::error::{Error, Result};
use added::AddedTokens;
use extensions::Extensions;
use std::path::Path;

/// Highest number of ids that a file may define: a single wild id must not claim gigabytes.
const MAX_VOCAB_SIZE: usize = 1 << 24;

/// A tokenizer: text to ids and back. Immutable; share it with `Arc`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: AddedTokens,
    vocabulary: Vocabulary,
    plan: DecodePlan,
    special_token_ids: Vec<u32>,
    extensions: Extensions,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let json = std::fs::read_to_string(path)
            .map_err(|error| Error::Tokenizer(format!("cannot read {}: {error}", path.display())))?;
        Self::from_json(&json).map_err(|error| Error::Tokenizer(format!("{}: {error}", path.display())))
    }

    /// Reads the text of a tokenizer.json. Its padding and truncation settings do not act.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it is not a tokenizer.
    pub fn from_json(json: &str) -> Result<Self> {
        let mut inner: tokenizers::Tokenizer =
            json.parse().map_err(|error| Error::Tokenizer(format!("not a tokenizer.json: {error}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let vocab_size = inner.get_vocab(true).values().map(|&id| id as usize + 1).max().unwrap_or(0);
        if vocab_size > MAX_VOCAB_SIZE {
            let highest = vocab_size - 1;
            return Err(Error::Tokenizer(format!("token id {highest} is above the limit of {MAX_VOCAB_SIZE}")));
        }
        let plan = DecodePlan::new(inner.get_decoder());
        let tokens = (0u32..).take(vocab_size).map(|id| {
            let token = inner.id_to_token(id)?;
            let is_special = inner.get_added_vocabulary().is_special_token(&token);
            Some((token, is_special))
        });
        let vocabulary = Vocabulary::new(tokens, plan.byte_level());
        let mut special_token_ids: Vec<u32> = inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        special_token_ids.sort_unstable();
        let added = AddedTokens::new(&inner)?;
        // Sorted here: where a token is healed first, the sequences of the same batch would wait for it.
        let ordinary = (0u32..).take(vocab_size).filter(|&id| !vocabulary.is_special(id));
        let extensions = Extensions::new(ordinary.filter_map(|id| Some((inner.id_to_token(id)?, id))));
        let tokenizer = Self { inner, added, vocabulary, plan, special_token_ids, extensions };
        selfcheck::decoding(&tokenizer)?;
        Ok(tokenizer)
    }

    /// One more than the highest token id, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Ids of the special (control) tokens, ascending.
    #[must_use]
    pub fn special_token_ids(&self) -> &[u32] {
        &self.special_token_ids
    }

    /// Names of the special tokens, and whether each is looked for in normalized text.
    pub(crate) fn special_token_names(&self) -> Vec<(String, bool)> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.values().filter(|token| token.special).map(|token| (token.content.clone(), token.normalized)).collect()
    }

    /// Id of a vocabulary entry as stored.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Vocabulary entry as stored, for example `Ġworld`.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The tokens whose vocabulary entry begins with that of `id`, itself among them; empty for a special token and for
    /// an id without an entry. Special tokens extend nothing.
    #[must_use]
    pub fn extensions(&self, id: u32) -> Vec<u32> {
        if !self.vocabulary.contains(id) || self.vocabulary.is_special(id) {
            return vec![];
        }
        let Some(entry) = self.id_to_token(id).filter(|entry| !entry.is_empty()) else { return vec![] };
        self.extensions.of(&entry).collect()
    }

    /// Whether another token begins with `id`, so that it may have been cut short at the end of a prompt.
    #[must_use]
    pub fn is_healable(&self, id: u32) -> bool {
        self.extensions(id).len() > 1
    }

    /// Text of ids, equal to transformers' `decode` without clean-up.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id that no token has.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        if let Some(&unknown) = ids.iter().find(|&&id| !self.vocabulary.contains(id)) {
            return Err(Error::Tokenizer(format!("no token has the id {unknown}")));
        }
        Ok(detokenizer::decode(&self.plan, &self.vocabulary, ids, skip_special_tokens))
    }

    pub(crate) fn plan(&self) -> &DecodePlan {
        &self.plan
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}
