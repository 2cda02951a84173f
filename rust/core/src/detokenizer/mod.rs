//! Streaming detokenization: text as soon as it is certain.
//!
//! Contract with `generation`: `Detokenizer::new(Arc<Tokenizer>, skip_special_tokens: bool)`,
//! `push(&mut self, id: u32, out: &mut String)` appends the text that became certain,
//! `finish(&mut self, out: &mut String)` appends what is held back. All output joined equals
//! `Tokenizer::decode(all ids, skip_special_tokens)`.
//!
//! A decoder of the tokenizers crate becomes a chain of streaming stages when the tokenizer is loaded, so a token costs
//! a table look-up and a few short string operations, whatever came before it. `Tokenizer::decode` runs the same chain.

mod alignment;
mod fused;
mod plan;
mod stage;
mod utf8;
mod vocabulary;

pub use alignment::{AlignedToken, Aligner};
pub(crate) use plan::DecodePlan;
pub(crate) use vocabulary::Vocabulary;

use crate::tokenizer::Tokenizer;
use plan::Stream;
use std::sync::Arc;

/// Turns the tokens of one sequence into text, one at a time.
///
/// Held back is only what a later token may change: at most three bytes of an unfinished character; a valid run of
/// byte-fallback tokens, because one bad byte turns the whole run into U+FFFD; the end that a decoder strips or
/// replaces. Ids outside the vocabulary (a model's padded rows) give no text, as in transformers.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    stream: Stream,
}

impl Detokenizer {
    /// Starts at the beginning of a text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let stream = tokenizer.plan().start();
        Self { tokenizer, skip_special_tokens, stream }
    }

    /// Takes the next token and appends the text that became certain to `out`.
    pub fn push(&mut self, id: u32, out: &mut String) {
        if let Some(piece) = self.tokenizer.vocabulary().piece(id, self.skip_special_tokens) {
            self.stream.push(piece, out);
        }
    }

    /// What is held back, as it reads if the text ends here.
    #[must_use]
    pub fn held(&self) -> String {
        let mut text = String::new();
        self.stream.clone().finish(&mut text);
        text
    }

    /// Appends what is held back to `out`. Nothing may be pushed afterwards.
    pub fn finish(&mut self, out: &mut String) {
        self.stream.finish(out);
    }
}

/// All tokens at once.
pub(crate) fn decode(plan: &DecodePlan, vocabulary: &Vocabulary, ids: &[u32], skip_special_tokens: bool) -> String {
    let mut stream = plan.start();
    let mut out = String::with_capacity(ids.len() * 4);
    for &id in ids {
        if let Some(piece) = vocabulary.piece(id, skip_special_tokens) {
            stream.push(piece, &mut out);
        }
    }
    stream.finish(&mut out);
    out
}
