//! The decoders of the tokenizers crate as stages of a stream.
//!
//! Each stage gives, token by token, what `decode_chain` of its counterpart in the crate (0.23) gives for all tokens at
//! once. Behind a stage that fuses (`Fuse`, `ByteLevel`) the rest of the chain sees one single token, which arrives in
//! fragments; [`fused`] has the stages for that side.

use super::fused;
use super::utf8::LossyUtf8;
use tokenizers::{Decoder as _, DecoderWrapper};

/// One step of a decoder chain.
pub(super) trait Stage: Send + Sync {
    /// Takes the next token (or fragment) and hands on the tokens (or fragments) that are certain.
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str));
    /// Hands on what was held back.
    fn finish(&mut self, _emit: &mut dyn FnMut(&str)) {}
    /// The stage as it is now.
    fn boxed_clone(&self) -> Box<dyn Stage>;
}

/// Stages in order.
pub(super) type Chain = Vec<Box<dyn Stage>>;

/// Runs one token through a chain.
pub(super) fn push(chain: &mut [Box<dyn Stage>], text: &str, out: &mut String) {
    match chain.split_first_mut() {
        None => out.push_str(text),
        Some((stage, rest)) => stage.push(text, &mut |token| push(rest, token, out)),
    }
}

/// Flushes a chain, first stage first.
pub(super) fn finish(chain: &mut [Box<dyn Stage>], out: &mut String) {
    if let Some((stage, rest)) = chain.split_first_mut() {
        stage.finish(&mut |token| push(rest, token, out));
        finish(rest, out);
    }
}

/// Clean-up of tokenization artefacts, in the order of the crate's `wordpiece::cleanup`.
pub(super) const CLEANUP: [(&str, &str); 11] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

fn cleanup(token: &str) -> String {
    let mut cleaned = token.to_owned();
    // Every pattern starts with a space.
    if token.contains(' ') {
        for (from, to) in CLEANUP {
            if cleaned.contains(from) {
                cleaned = cleaned.replace(from, to);
            }
        }
    }
    cleaned
}

macro_rules! boxed_clone {
    () => {
        fn boxed_clone(&self) -> Box<dyn Stage> {
            Box::new(self.clone())
        }
    };
}
pub(super) use boxed_clone;

/// A tokenizer without decoder: tokens joined by a space.
#[derive(Clone, Default)]
pub(super) struct Join {
    started: bool,
}

impl Stage for Join {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        if self.started {
            emit(" ");
        }
        self.started = true;
        emit(text);
    }
    boxed_clone!();
}

/// `Metaspace`: the replacement is a space, or nothing in the first token.
#[derive(Clone)]
pub(super) struct Metaspace {
    pub(super) replacement: char,
    pub(super) drop_first: bool,
    pub(super) started: bool,
}

impl Stage for Metaspace {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let space = if self.drop_first && !self.started { "" } else { " " };
        self.started = true;
        emit(&text.replace(self.replacement, space));
    }
    boxed_clone!();
}

/// `WordPiece`: a space before every token but the first and those with the prefix.
#[derive(Clone)]
pub(super) struct WordPiece {
    pub(super) prefix: String,
    pub(super) cleanup: bool,
    pub(super) started: bool,
}

impl Stage for WordPiece {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let token = if !std::mem::replace(&mut self.started, true) {
            text.to_owned()
        } else if let Some(continued) = text.strip_prefix(self.prefix.as_str()) {
            continued.to_owned()
        } else {
            format!(" {text}")
        };
        if self.cleanup { emit(&cleanup(&token)) } else { emit(&token) }
    }
    boxed_clone!();
}

/// `BPEDecoder`: the suffix is a space, or nothing in the last token.
#[derive(Clone)]
pub(super) struct Bpe {
    pub(super) suffix: String,
    /// Nothing follows in the chain, so a token may be handed on in fragments.
    pub(super) terminal: bool,
    pub(super) held: Option<String>,
}

impl Stage for Bpe {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        if let Some(held) = self.held.take() {
            emit(&held.replace(&self.suffix, " "));
        }
        match text.find(&self.suffix) {
            None => emit(text),
            Some(at) if self.terminal => {
                emit(&text[..at]);
                self.held = Some(text[at..].to_owned());
            }
            Some(_) => self.held = Some(text.to_owned()),
        }
    }
    fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        if let Some(held) = self.held.take() {
            emit(&held.replace(&self.suffix, ""));
        }
    }
    boxed_clone!();
}

/// `ByteFallback`: a run of tokens like `<0x61>` is one string, or one U+FFFD per token when it is not UTF-8.
///
/// A run that is valid so far is held back: a later byte can still turn all of it into U+FFFD. Once it is broken,
/// every byte is released at once.
#[derive(Clone, Default)]
pub(super) struct ByteFallback {
    run: Vec<u8>,
    /// Length of the prefix of `run` known to be whole characters: keeps the check linear.
    checked: usize,
    broken: bool,
}

impl ByteFallback {
    fn push_byte(&mut self, byte: u8, emit: &mut dyn FnMut(&str)) {
        if self.broken {
            emit("\u{FFFD}");
            return;
        }
        self.run.push(byte);
        match std::str::from_utf8(&self.run[self.checked..]) {
            Ok(_) => self.checked = self.run.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => {
                self.broken = true;
                self.release_broken(emit);
            }
        }
    }

    fn release_broken(&mut self, emit: &mut dyn FnMut(&str)) {
        for _ in 0..self.run.len() {
            emit("\u{FFFD}");
        }
        self.run.clear();
    }

    fn end_run(&mut self, emit: &mut dyn FnMut(&str)) {
        match std::str::from_utf8(&self.run) {
            Ok("") => {}
            Ok(text) => emit(text),
            Err(_) => self.release_broken(emit),
        }
        *self = Self::default();
    }
}

impl Stage for ByteFallback {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        if let Some(byte) = byte_of(text) {
            self.push_byte(byte, emit);
        } else {
            self.end_run(emit);
            emit(text);
        }
    }
    fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        self.end_run(emit);
    }
    boxed_clone!();
}

/// The byte of a token like `<0x61>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    if token.len() != 6 {
        return None;
    }
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// `ByteLevel` behind another stage; at the head of a chain the bytes come from the vocabulary table.
#[derive(Clone, Default)]
pub(super) struct ByteLevel {
    lossy: LossyUtf8,
}

impl Stage for ByteLevel {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        self.lossy.push(&bytes_of(text), emit);
    }
    fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        self.lossy.finish(emit);
    }
    boxed_clone!();
}

/// Bytes of a byte-level token; a token with a character outside the byte alphabet stands for itself.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_level_byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
fn byte_level_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// `Strip` on whole tokens: up to `start` characters off the front, up to `stop` off the back.
#[derive(Clone)]
pub(super) struct Strip {
    pub(super) content: char,
    pub(super) start: usize,
    pub(super) stop: usize,
}

impl Stage for Strip {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let mut fragment = fused::Strip::new(self.content, self.start, self.stop);
        fragment.push(text, emit);
    }
    boxed_clone!();
}

/// `Replace` by a literal pattern, on whole tokens.
#[derive(Clone)]
pub(super) struct Replace {
    pub(super) pattern: String,
    pub(super) content: String,
}

impl Stage for Replace {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        emit(&text.replace(&self.pattern, &self.content));
    }
    boxed_clone!();
}

/// A decoder of the crate whose result for a token depends on that token alone.
#[derive(Clone)]
pub(super) struct PerToken(pub(super) DecoderWrapper);

impl Stage for PerToken {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        for token in self.0.decode_chain(vec![text.to_owned()]).unwrap_or_default() {
            emit(&token);
        }
    }
    boxed_clone!();
}

/// `CTC`: repeats dropped, padding removed, delimiter to space, empty tokens dropped.
#[derive(Clone)]
pub(super) struct Ctc {
    pub(super) decoder: DecoderWrapper,
    pub(super) previous: Option<String>,
}

impl Stage for Ctc {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        if self.previous.as_deref() != Some(text) {
            self.previous = Some(text.to_owned());
            PerToken(self.decoder.clone()).push(text, emit);
        }
    }
    boxed_clone!();
}
