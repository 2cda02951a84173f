//! Stages behind a fusing decoder: one token that arrives in fragments.

use super::stage::{Stage, boxed_clone};
use tokenizers::{Decoder as _, DecoderWrapper};

/// `Strip` on the whole text: up to `start` characters off the front, up to `stop` off the back.
#[derive(Clone)]
pub(super) struct Strip {
    content: char,
    start: usize,
    stop: usize,
    /// Trailing `content` characters held back, at most `stop`.
    held: usize,
}

impl Strip {
    pub(super) fn new(content: char, start: usize, stop: usize) -> Self {
        Self { content, start, stop, held: 0 }
    }

    fn release(&mut self, count: usize, emit: &mut dyn FnMut(&str)) {
        if count > 0 {
            self.held -= count;
            emit(&String::from(self.content).repeat(count));
        }
    }
}

impl Stage for Strip {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let mut rest = text;
        while self.start > 0 && !rest.is_empty() {
            match rest.strip_prefix(self.content) {
                Some(shorter) => (rest, self.start) = (shorter, self.start - 1),
                None => self.start = 0,
            }
        }
        if self.stop == 0 {
            emit(rest);
            return;
        }
        let body = rest.trim_end_matches(self.content);
        if !body.is_empty() {
            self.release(self.held, emit);
            emit(body);
        }
        self.held += rest[body.len()..].chars().count();
        self.release(self.held.saturating_sub(self.stop), emit);
    }
    boxed_clone!();
}

/// `Replace` by a non-empty literal pattern: leftmost matches that do not overlap.
#[derive(Clone)]
pub(super) struct Replace {
    pattern: String,
    content: String,
    /// The longest end of the text that may still become the pattern.
    held: String,
}

impl Replace {
    pub(super) fn new(pattern: &str, content: &str) -> Self {
        Self { pattern: pattern.to_owned(), content: content.to_owned(), held: String::new() }
    }
}

impl Stage for Replace {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let mut joined = std::mem::take(&mut self.held);
        joined.push_str(text);
        let mut rest = joined.as_str();
        while let Some(at) = rest.find(&self.pattern) {
            emit(&rest[..at]);
            emit(&self.content);
            rest = &rest[at + self.pattern.len()..];
        }
        let keep = self.pattern.char_indices().rev().map(|(at, _)| at).find(|&at| rest.ends_with(&self.pattern[..at]));
        let (certain, held) = rest.split_at(rest.len() - keep.unwrap_or(0));
        emit(certain);
        self.held.push_str(held);
    }
    fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        emit(&std::mem::take(&mut self.held));
    }
    boxed_clone!();
}

/// A decoder that must see the whole text: it is held back until the end. Only chains that no published tokenizer has,
/// such as a regular expression behind `Fuse`, come to this.
#[derive(Clone)]
pub(super) struct Whole {
    pub(super) decoder: DecoderWrapper,
    pub(super) text: String,
}

impl Stage for Whole {
    fn push(&mut self, text: &str, _emit: &mut dyn FnMut(&str)) {
        self.text.push_str(text);
    }
    fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        for token in self.decoder.decode_chain(vec![std::mem::take(&mut self.text)]).unwrap_or_default() {
            emit(&token);
        }
    }
    boxed_clone!();
}
