//! Which stages a tokenizer's decoder becomes.

use super::stage::{self, Chain, Stage};
use super::{fused, utf8::LossyUtf8};
use serde_json::Value;
use tokenizers::DecoderWrapper;

/// How tokens become text. Shared; each stream clones the chain.
pub(crate) struct DecodePlan {
    /// The chain starts with `ByteLevel`: the vocabulary table holds bytes.
    pub(super) byte_level: bool,
    /// Tokens like `<0x61>` stand for bytes.
    byte_fallback: bool,
    pub(super) chain: Chain,
}

impl DecodePlan {
    pub(crate) fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return Self { byte_level: false, byte_fallback: false, chain: vec![Box::new(stage::Join::default())] };
        };
        let mut decoders = Vec::new();
        flatten(decoder, &mut decoders);
        let byte_level = matches!(decoders.first(), Some(DecoderWrapper::ByteLevel(_)));
        let byte_fallback = decoders.iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_)));
        let mut chain: Chain = Vec::new();
        let mut is_fused = byte_level;
        let tail = &decoders[usize::from(byte_level)..];
        for (index, decoder) in tail.iter().enumerate() {
            if is_fused {
                append_fused(decoder, &mut chain);
            } else {
                append(decoder, index + 1 == tail.len(), &mut chain);
                is_fused = matches!(decoder, DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_));
            }
        }
        Self { byte_level, byte_fallback, chain }
    }

    /// Whether the vocabulary table holds the bytes of byte-level tokens.
    pub(crate) fn byte_level(&self) -> bool {
        self.byte_level
    }

    /// Whether tokens like `<0x61>` stand for bytes.
    pub(crate) fn byte_fallback(&self) -> bool {
        self.byte_fallback
    }

    /// A fresh copy of the chain.
    pub(super) fn start(&self) -> Stream {
        Stream {
            lossy: self.byte_level.then(LossyUtf8::default),
            chain: self.chain.iter().map(|stage| stage.boxed_clone()).collect(),
        }
    }
}

/// The state of one decode.
pub(super) struct Stream {
    lossy: Option<LossyUtf8>,
    chain: Chain,
}

impl Clone for Stream {
    fn clone(&self) -> Self {
        Self { lossy: self.lossy.clone(), chain: self.chain.iter().map(|stage| stage.boxed_clone()).collect() }
    }
}

impl Stream {
    /// Takes a token as the vocabulary table holds it.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut String) {
        let chain = self.chain.as_mut_slice();
        match &mut self.lossy {
            Some(lossy) => lossy.push(piece, &mut |text| stage::push(chain, text, out)),
            None => {
                if let Ok(text) = std::str::from_utf8(piece) {
                    stage::push(chain, text, out);
                }
            }
        }
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        let chain = self.chain.as_mut_slice();
        if let Some(lossy) = &mut self.lossy {
            lossy.finish(&mut |text| stage::push(chain, text, out));
        }
        stage::finish(chain, out);
    }
}

/// Nested sequences as one list.
fn flatten(decoder: &DecoderWrapper, into: &mut Vec<DecoderWrapper>) {
    if let DecoderWrapper::Sequence(sequence) = decoder {
        sequence.get_decoders().iter().for_each(|inner| flatten(inner, into));
    } else {
        into.push(decoder.clone());
    }
}

/// Adds the stage of a decoder that sees separate tokens.
fn append(decoder: &DecoderWrapper, terminal: bool, chain: &mut Chain) {
    let stage: Box<dyn Stage> = match decoder {
        DecoderWrapper::BPE(bpe) => Box::new(stage::Bpe { suffix: bpe.suffix.clone(), terminal, held: None }),
        DecoderWrapper::ByteLevel(_) => Box::new(stage::ByteLevel::default()),
        DecoderWrapper::WordPiece(wordpiece) => {
            Box::new(stage::WordPiece { prefix: wordpiece.prefix.clone(), cleanup: wordpiece.cleanup, started: false })
        }
        DecoderWrapper::Metaspace(metaspace) => Box::new(metaspace_stage(metaspace)),
        DecoderWrapper::CTC(_) => Box::new(stage::Ctc { decoder: decoder.clone(), previous: None }),
        DecoderWrapper::Replace(_) => match literal(decoder) {
            Some((pattern, content)) => Box::new(stage::Replace { pattern, content }),
            None => Box::new(stage::PerToken(decoder.clone())),
        },
        DecoderWrapper::Strip(strip) => {
            Box::new(stage::Strip { content: strip.content, start: strip.start, stop: strip.stop })
        }
        DecoderWrapper::ByteFallback(_) => Box::new(stage::ByteFallback::default()),
        // What follows sees fragments of one token: `append_fused`.
        DecoderWrapper::Fuse(_) | DecoderWrapper::Sequence(_) => return,
    };
    chain.push(stage);
}

/// Adds the stages of a decoder that sees one token in fragments.
fn append_fused(decoder: &DecoderWrapper, chain: &mut Chain) {
    let replacements: Vec<(String, String)> = match decoder {
        DecoderWrapper::Strip(strip) => {
            chain.push(Box::new(fused::Strip::new(strip.content, strip.start, strip.stop)));
            return;
        }
        DecoderWrapper::Metaspace(metaspace) => {
            let metaspace = metaspace_stage(metaspace);
            let space = if metaspace.drop_first { "" } else { " " };
            vec![(metaspace.replacement.to_string(), space.to_owned())]
        }
        DecoderWrapper::Replace(_) => match literal(decoder) {
            Some(replacement) => vec![replacement],
            None => return chain.push(whole(decoder)),
        },
        DecoderWrapper::BPE(bpe) if !bpe.suffix.is_empty() => vec![(bpe.suffix.clone(), String::new())],
        DecoderWrapper::WordPiece(wordpiece) if wordpiece.cleanup => {
            stage::CLEANUP.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
        }
        DecoderWrapper::Fuse(_) | DecoderWrapper::Sequence(_) | DecoderWrapper::WordPiece(_) => vec![],
        DecoderWrapper::BPE(_)
        | DecoderWrapper::ByteLevel(_)
        | DecoderWrapper::CTC(_)
        | DecoderWrapper::ByteFallback(_) => return chain.push(whole(decoder)),
    };
    for (pattern, content) in replacements {
        chain.push(Box::new(fused::Replace::new(&pattern, &content)));
    }
}

fn whole(decoder: &DecoderWrapper) -> Box<dyn Stage> {
    Box::new(fused::Whole { decoder: decoder.clone(), text: String::new() })
}

fn metaspace_stage(metaspace: &tokenizers::decoders::metaspace::Metaspace) -> stage::Metaspace {
    let never = tokenizers::pre_tokenizers::metaspace::PrependScheme::Never;
    stage::Metaspace {
        replacement: metaspace.get_replacement(),
        drop_first: metaspace.get_prepend_scheme() != never,
        started: false,
    }
}

/// Pattern and content of a `Replace` by a non-empty literal; the crate keeps the pattern private but serializes it.
fn literal(replace: &DecoderWrapper) -> Option<(String, String)> {
    let value = serde_json::to_value(replace).ok()?;
    let pattern = value.get("pattern")?.get("String").and_then(Value::as_str)?;
    let content = value.get("content").and_then(Value::as_str)?;
    (!pattern.is_empty()).then(|| (pattern.to_owned(), content.to_owned()))
}
