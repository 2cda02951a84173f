//! Sampling and stopping parameters, validated.
//!
//! Names and ranges are those of `GenerationConfig` in `proto/tokenwire/v1/generation.proto`. A constructor looks at
//! every field and reports all violations at once; what it returns is valid for good.

mod check;
mod sampling;
mod stopping;
mod watermark;

pub use sampling::{Sampling, SamplingOptions, SamplingParams};
pub use stopping::{Stopping, StoppingOptions, StoppingParams};
pub use watermark::{GreenList, MAX_SYNTH_ID_KEYS, SynthIdText, Watermark};

use crate::error::Result;
use check::Check;

/// Checks ids that come from outside against the vocabulary.
///
/// # Errors
/// [`crate::error::Error::InvalidParameters`] with every id that is not in `[0, vocab_size)`.
pub fn checked_ids(field: &str, ids: &[i64], vocab_size: usize) -> Result<Vec<u32>> {
    let mut check = Check::default();
    let checked = check.ids(field, ids, u32::try_from(vocab_size).unwrap_or(u32::MAX));
    check.finish()?;
    Ok(checked)
}
