//! Text to token ids: the tokenizers crate's pipeline with control over special tokens.

use super::Tokenizer;
use super::added::{Control, original};
use crate::chat_template::RenderedChat;
use crate::error::{Error, Result};
use tokenizers::parallelism::MaybeParallelIterator as _;
use tokenizers::{Encoding, Model as _, ModelWrapper, NormalizedString, OffsetType, PreTokenizer as _, Token};

/// Token ids with the text that each covers.
pub struct TokenSpans {
    /// Token ids `[T]`.
    pub ids: Vec<u32>,
    /// Vocabulary entries as stored, `[T]`.
    pub tokens: Vec<String>,
    /// UTF-8 byte ranges in the text, `[T]`; empty for tokens that the tokenizer added.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Token ids of a text, equal to transformers' fast tokenizers.
    ///
    /// Without `parse_special_tokens` no special token comes out of the text, except where the model stands in its
    /// unknown token for text that it cannot spell.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the model cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool, parse_special_tokens: bool) -> Result<Vec<u32>> {
        let control = control(parse_special_tokens);
        Ok(self.run(text, add_special_tokens, control, OffsetType::None)?.get_ids().to_vec())
    }

    /// Like [`Self::encode`] for each text, in parallel.
    ///
    /// # Errors
    /// As [`Self::encode`], for the first text that fails.
    pub fn encode_batch(
        &self,
        texts: &[String],
        add_special_tokens: bool,
        parse_special_tokens: bool,
    ) -> Result<Vec<Vec<u32>>> {
        texts
            .into_maybe_par_iter()
            .map(|text| self.encode(text, add_special_tokens, parse_special_tokens))
            .collect::<Result<_>>()
    }

    /// Like [`Self::encode`], with the vocabulary entry and the byte range of each token.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special_tokens: bool,
    ) -> Result<TokenSpans> {
        let encoding = self.run(text, add_special_tokens, control(parse_special_tokens), OffsetType::Byte)?;
        let ids = encoding.get_ids().to_vec();
        let tokens = ids.iter().map(|&id| self.id_to_token(id).unwrap_or_default()).collect();
        Ok(TokenSpans { ids, tokens, offsets: encoding.get_offsets().to_vec() })
    }

    /// Token ids of a rendered chat. Control tokens come from the template alone: what the caller wrote is spelled.
    /// The tokenizer adds no special tokens of its own, since the template has written them.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_rendered(&self, rendered: &RenderedChat) -> Result<Vec<u32>> {
        let control = Control::Outside(rendered.protected());
        Ok(self.run(rendered.text(), false, control, OffsetType::None)?.get_ids().to_vec())
    }

    fn run(&self, text: &str, add_special_tokens: bool, control: Control<'_>, offsets: OffsetType) -> Result<Encoding> {
        self.pipeline(text, add_special_tokens, control, offsets)
            .map_err(|error| Error::Tokenizer(format!("cannot encode the text: {error}")))
    }

    /// The steps of the crate's `TokenizerImpl::encode`, with this crate's search for added tokens.
    fn pipeline(
        &self,
        text: &str,
        add_special_tokens: bool,
        control: Control<'_>,
        offsets: OffsetType,
    ) -> tokenizers::Result<Encoding> {
        let mut pieces = self.added.extract(text, self.inner.get_normalizer(), control)?;
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        match control {
            Control::Everywhere => model.tokenize_in_pretokenized(&mut pieces, None)?,
            Control::Nowhere | Control::Outside(_) => pieces.tokenize(|piece| {
                let tokens = model.tokenize(piece.get())?;
                self.without_control(model, piece, tokens, control)
            })?,
        }
        let encoding = pieces.into_encoding(None, 0, offsets)?;
        self.inner.post_process(encoding, None, add_special_tokens)
    }

    /// Spells the special tokens that the model itself made from the letters of their name: Unigram and word-level
    /// vocabularies contain them as ordinary entries.
    fn without_control(
        &self,
        model: &ModelWrapper,
        piece: &NormalizedString,
        tokens: Vec<Token>,
        control: Control<'_>,
    ) -> tokenizers::Result<Vec<Token>> {
        let text = piece.get();
        let is_forged = |token: &Token| {
            let (start, end) = token.offsets;
            self.vocabulary.is_special(token.id)
                // An unknown token covers other text than its own name.
                && text.get(start..end).is_some_and(|covered| self.id_to_token(token.id).as_deref() == Some(covered))
                && !control.reads(&original(piece, &(start..end)))
        };
        if !tokens.iter().any(is_forged) {
            return Ok(tokens);
        }
        let mut spelled = Vec::with_capacity(tokens.len() + 8);
        for token in tokens {
            if is_forged(&token) {
                self.spell(model, text, token, &mut spelled)?;
            } else {
                spelled.push(token);
            }
        }
        Ok(spelled)
    }

    /// Tokenizes the first character of a special token's name apart from the rest, so that the name cannot come out.
    /// A name of one character has no other spelling and stays.
    fn spell(&self, model: &ModelWrapper, text: &str, token: Token, into: &mut Vec<Token>) -> tokenizers::Result<()> {
        let (start, end) = token.offsets;
        let name = &text[start..end];
        let first = name.chars().next().map_or(0, char::len_utf8);
        if first == name.len() {
            into.push(token);
            return Ok(());
        }
        for (from, to) in [(start, start + first), (start + first, end)] {
            for mut part in model.tokenize(&text[from..to])? {
                part.offsets = (part.offsets.0 + from, part.offsets.1 + from);
                let covered = &text[part.offsets.0..part.offsets.1];
                if self.vocabulary.is_special(part.id) && self.id_to_token(part.id).as_deref() == Some(covered) {
                    self.spell(model, text, part, into)?;
                } else {
                    into.push(part);
                }
            }
        }
        Ok(())
    }
}

fn control(parse_special_tokens: bool) -> Control<'static> {
    if parse_special_tokens { Control::Everywhere } else { Control::Nowhere }
}
