//! Finding added tokens in a text, with a say in where control tokens may be read.
//!
//! The crate's `AddedVocabulary` reads special tokens everywhere or nowhere. A rendered chat needs a third way: read
//! those of the template, spell those of the caller. Apart from that choice this is the crate's own procedure (0.23):
//! leftmost-longest matches, tokens without normalization first, then the normalized ones in what is left.

use crate::error::{Error, Result};
use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use std::ops::Range;
use std::sync::LazyLock;
use tokenizers::tokenizer::normalizer::Range as Referential;
use tokenizers::{AddedToken, NormalizedString, Normalizer as _, NormalizerWrapper, PreTokenizedString, Token};

/// Where special tokens are read as such; elsewhere they are spelled like any text.
#[derive(Clone, Copy)]
pub(super) enum Control<'a> {
    Everywhere,
    Nowhere,
    /// Outside these byte ranges of the text, which are sorted and do not overlap.
    Outside(&'a [Range<usize>]),
}

impl Control<'_> {
    /// Whether a special token that covers `bytes` of the text is read as such.
    pub(super) fn reads(self, bytes: &Range<usize>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::Outside(protected) => {
                let next = protected.partition_point(|range| range.end <= bytes.start);
                protected.get(next).is_none_or(|range| range.start >= bytes.end)
            }
        }
    }
}

/// The added tokens of a tokenizer.
pub(super) struct AddedTokens {
    /// Tokens found in the text as given.
    verbatim: Table,
    /// Tokens found in the text as normalized.
    normalized: Table,
}

/// Patterns and, in the same order, their tokens.
#[derive(Default)]
struct Table {
    automaton: Option<AhoCorasick>,
    tokens: Vec<(u32, AddedToken)>,
}

impl AddedTokens {
    pub(super) fn new(inner: &tokenizers::Tokenizer) -> Result<Self> {
        let added = inner.get_added_vocabulary();
        let (mut verbatim, mut normalized) = (Vec::new(), Vec::new());
        for (&id, token) in added.get_added_tokens_decoder() {
            if token.normalized {
                let pattern = added.simple_id_to_token(id).unwrap_or_else(|| token.content.clone());
                normalized.push((pattern, id, token.clone()));
            } else {
                verbatim.push((token.content.clone(), id, token.clone()));
            }
        }
        Ok(Self { verbatim: Table::new(verbatim)?, normalized: Table::new(normalized)? })
    }

    /// The text in pieces, normalized, with the added tokens attached to theirs.
    pub(super) fn extract(
        &self,
        text: &str,
        normalizer: Option<&NormalizerWrapper>,
        control: Control<'_>,
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| self.verbatim.split(&piece, control))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut piece)?;
            }
            self.normalized.split(&piece, control)
        })?;
        Ok(pieces)
    }
}

impl Table {
    fn new(mut tokens: Vec<(String, u32, AddedToken)>) -> Result<Self> {
        tokens.retain(|(pattern, _, _)| !pattern.is_empty());
        tokens.sort_unstable_by_key(|&(_, id, _)| id);
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(pattern, _, _)| pattern))
            .map_err(|error| Error::Tokenizer(format!("added tokens: {error}")))?;
        let tokens = tokens.into_iter().map(|(_, id, token)| (id, token)).collect();
        Ok(Self { automaton: Some(automaton), tokens })
    }

    fn split(
        &self,
        piece: &NormalizedString,
        control: Control<'_>,
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        self.find(piece, control)
            .into_iter()
            .map(|(id, bytes)| {
                let slice = piece.slice(Referential::Normalized(bytes)).ok_or("an added token splits a character")?;
                let tokens = id.map(|id| {
                    let value = slice.get().to_owned();
                    let length = value.len();
                    vec![Token::new(id, value, (0, length))]
                });
                Ok((slice, tokens))
            })
            .collect()
    }

    /// Byte ranges that cover the piece, each with its added token if it is one.
    fn find(&self, piece: &NormalizedString, control: Control<'_>) -> Vec<(Option<u32>, Range<usize>)> {
        let text = piece.get();
        let mut ranges = Vec::new();
        let mut done = 0;
        let matches = self.automaton.iter().flat_map(|automaton| automaton.find_iter(text));
        for found in matches {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.special && !control.reads(&original(piece, &(start..end))) {
                continue;
            }
            if token.single_word && !is_single_word(text, start, end) {
                continue;
            }
            if token.lstrip {
                // Spaces that the match before took are not taken again.
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                ranges.push((None, done..start));
            }
            ranges.push((Some(*id), start..end));
            done = end;
        }
        if done < text.len() || text.is_empty() {
            ranges.push((None, done..text.len()));
        }
        ranges
    }
}

/// The bytes of the whole text that a range of a piece comes from.
pub(super) fn original(piece: &NormalizedString, bytes: &Range<usize>) -> Range<usize> {
    let shift = piece.offsets_original().0;
    let range = piece.convert_offsets(Referential::Normalized(bytes.clone())).unwrap_or_default();
    range.start + shift..range.end + shift
}

static STARTS_WITH_WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\w").ok());
static ENDS_WITH_WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\w$").ok());

fn is_single_word(text: &str, start: usize, end: usize) -> bool {
    let matches = |regex: &Option<Regex>, text: &str| regex.as_ref().is_some_and(|regex| regex.is_match(text));
    let before = text[..start].chars().next_back().map(String::from).unwrap_or_default();
    !matches(&ENDS_WITH_WORD, &before) && !matches(&STARTS_WITH_WORD, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::Control;

    #[test]
    fn a_match_that_touches_protected_text_is_not_read() {
        let control = Control::Outside(&[2..4, 7..9]);
        let table = [(0..2, true), (0..3, false), (3..4, false), (4..7, true), (6..8, false), (9..12, true)];
        for (bytes, reads) in table {
            assert_eq!(control.reads(&bytes), reads, "{bytes:?}");
        }
    }
}
