//! The streaming decoder against the crate's own, when a tokenizer is loaded.

use super::Tokenizer;
use crate::error::{Error, Result};

/// Sequences decoded both ways: enough to meet every kind of token next to every other.
const SEQUENCES: usize = 24;
const LENGTH: usize = 32;

/// Refuses a tokenizer whose text would differ from transformers', rather than serve wrong text.
///
/// # Errors
/// [`Error::Tokenizer`] when the two decoders disagree.
pub(super) fn decoding(tokenizer: &Tokenizer) -> Result<()> {
    let size = u64::try_from(tokenizer.vocab_size()).unwrap_or(u64::MAX);
    if size == 0 {
        return Ok(());
    }
    let mut state: u64 = 1;
    for round in 0..SEQUENCES {
        // The low ids are where the byte, control and punctuation tokens are: half of the rounds stay there.
        let bound = if round % 2 == 0 { size } else { size.min(300) };
        let ids: Vec<u32> = (0..LENGTH)
            .filter_map(|_| {
                // Knuth's MMIX generator: any spread of ids will do.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                u32::try_from((state >> 33) % bound).ok().filter(|&id| tokenizer.vocabulary.contains(id))
            })
            .collect();
        let skip_special_tokens = round % 4 < 2;
        let expected = tokenizer
            .inner
            .decode(&ids, skip_special_tokens)
            .map_err(|error| Error::Tokenizer(format!("the decoder fails: {error}")))?;
        if tokenizer.decode(&ids, skip_special_tokens)? != expected {
            return Err(Error::Tokenizer("this kind of decoder cannot be streamed".to_owned()));
        }
    }
    Ok(())
}
