//! Which bytes of a text each of its tokens gave.

use super::plan::Stream;
use super::stage::byte_of;
use crate::tokenizer::Tokenizer;
use std::sync::Arc;

/// A token and its place in the text of all tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlignedToken {
    /// Token id.
    pub id: u32,
    /// The bytes it stands for; none for a token that is skipped or unknown.
    pub bytes: Vec<u8>,
    /// First byte of the text that it is part of.
    pub start: usize,
    /// One past the last byte of the text that it is part of.
    pub end: usize,
}

/// Aligns the tokens of one sequence with its text, token by token.
///
/// The ranges follow one another without gap or overlap and cover the text. A token ends where the text of the tokens up
/// to it ends, if what follows leaves that text as it is. Tokens that share a character, so that none of them but the
/// last ends with text that stays, divide it by their bytes; where the text is not made of those bytes, because the
/// decoder rewrote the character, the last one of them has it. A character that cannot be completed, shown as U+FFFD,
/// belongs to the token that began it; only then do the bytes of the tokens differ from those of the text.
pub struct Aligner {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    stream: Stream,
    /// Text from `base` on.
    text: String,
    /// Where the last token that is certain ends.
    base: usize,
    pending: Vec<Pending>,
}

/// A token whose end is not certain.
struct Pending {
    id: u32,
    /// The text from `base` on if this were the last token.
    text_if_last: String,
    /// Bytes of a token that stands for bytes rather than text.
    bytes: Option<Vec<u8>>,
}

impl Aligner {
    /// Starts at the beginning of a text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let stream = tokenizer.plan().start();
        Self { tokenizer, skip_special_tokens, stream, text: String::new(), base: 0, pending: Vec::new() }
    }

    /// Takes the next token and returns those that became certain.
    pub fn push(&mut self, id: u32) -> Vec<AlignedToken> {
        let piece = self.tokenizer.vocabulary().piece(id, self.skip_special_tokens);
        if let Some(piece) = piece {
            self.stream.push(piece, &mut self.text);
        }
        let bytes = self.bytes(piece);
        let mut text_if_last = self.text.clone();
        self.stream.clone().finish(&mut text_if_last);
        self.pending.push(Pending { id, text_if_last, bytes });
        self.settle(false)
    }

    /// Returns the rest. Nothing may be pushed afterwards.
    pub fn finish(&mut self) -> Vec<AlignedToken> {
        self.stream.finish(&mut self.text);
        self.settle(true)
    }

    fn bytes(&self, piece: Option<&[u8]>) -> Option<Vec<u8>> {
        let Some(piece) = piece else { return Some(Vec::new()) };
        let plan = self.tokenizer.plan();
        if plan.byte_level() {
            return Some(piece.to_vec());
        }
        let byte = std::str::from_utf8(piece).ok().and_then(byte_of);
        byte.filter(|_| plan.byte_fallback()).map(|byte| vec![byte])
    }

    fn settle(&mut self, is_over: bool) -> Vec<AlignedToken> {
        let mut aligned = Vec::new();
        let (mut settled, mut start) = (0, 0);
        for (index, pending) in self.pending.iter().enumerate() {
            let end = if is_over && index + 1 == self.pending.len() {
                self.text.len()
            } else if !is_over
                && pending.text_if_last.len() > self.text.len()
                && pending.text_if_last.starts_with(&self.text)
            {
                break;
            } else if pending.text_if_last.len() >= start && self.text.starts_with(&pending.text_if_last) {
                pending.text_if_last.len()
            } else {
                continue;
            };
            self.divide(&self.pending[settled..=index], start, end, &mut aligned);
            (settled, start) = (index + 1, end);
        }
        self.pending.drain(..settled);
        for pending in &mut self.pending {
            // What lies before is certain, whatever this token would have made of it.
            pending.text_if_last = pending.text_if_last.get(start..).map(str::to_owned).unwrap_or_default();
        }
        self.text.drain(..start);
        self.base += start;
        aligned
    }

    /// Gives the tokens of a group their parts of `text[start..end]`.
    fn divide(&self, group: &[Pending], start: usize, end: usize, aligned: &mut Vec<AlignedToken>) {
        let text = &self.text.as_bytes()[start..end];
        let bytes: Option<Vec<&[u8]>> = group.iter().map(|pending| pending.bytes.as_deref()).collect();
        let bytes = bytes.map(|bytes| bytes.concat());
        // What is before the bytes was held back until they came, say a space that a decoder strips off the end.
        let held = bytes.filter(|bytes| group.len() > 1 && text.ends_with(bytes)).map(|bytes| text.len() - bytes.len());
        let mut at = start + held.unwrap_or(0);
        for (index, pending) in group.iter().enumerate() {
            let from = if index == 0 { start } else { at };
            if index + 1 == group.len() {
                at = end;
            } else if let (Some(bytes), Some(_)) = (&pending.bytes, held) {
                at += bytes.len();
            }
            let part = &self.text.as_bytes()[from..at];
            let bytes = match &pending.bytes {
                Some(bytes) if held.is_none() && has_replacement(text) => bytes.clone(),
                _ => part.to_vec(),
            };
            aligned.push(AlignedToken { id: pending.id, bytes, start: self.base + from, end: self.base + at });
        }
    }
}

/// Whether U+FFFD is in these bytes.
fn has_replacement(text: &[u8]) -> bool {
    text.windows(3).any(|window| window == "\u{FFFD}".as_bytes())
}
