//! What must hold of a batch before any of its rows is touched.

use super::Logits;
use crate::generation::Generation;

/// Why a batch was refused before any row was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The logits have another shape than the generations ask for.
    #[error("{count} logits are not {rows} rows of {width}")]
    Shape {
        /// Logits given.
        count: usize,
        /// Generations given.
        rows: usize,
        /// Columns given.
        width: usize,
    },
    /// A generation was made for another vocabulary.
    #[error("the logits have {width} columns, but generation {index} was made for a vocabulary of {vocab_size}")]
    Width {
        /// Columns given.
        width: usize,
        /// Place in the batch.
        index: usize,
        /// Its vocabulary.
        vocab_size: usize,
    },
    /// A generation takes no more tokens.
    #[error("generation {0} is finished")]
    Finished(usize),
    /// Guidance is not one entry per generation.
    #[error("{count} entries of guidance for {rows} generations")]
    GuidanceCount {
        /// Entries given.
        count: usize,
        /// Generations given.
        rows: usize,
    },
    /// A generation with a guidance scale has no unconditional row, or one without has one.
    #[error("generation {index} has guidance_scale {scale}, which does not go with its entry of guidance")]
    Guidance {
        /// Place in the batch.
        index: usize,
        /// Its scale.
        scale: String,
    },
    /// An unconditional row is not one of those behind the generations' own.
    #[error("the unconditional row of generation {index}, {row}, is not one of those from {first} to {last}")]
    GuidanceRow {
        /// Place in the batch.
        index: usize,
        /// Row given.
        row: usize,
        /// First possible row.
        first: usize,
        /// Last possible row.
        last: usize,
    },
}

/// The shape of a batch, and its guidance.
pub(super) fn check_batch<'a>(
    logits: Logits<'_>,
    width: usize,
    generations: impl ExactSizeIterator<Item = &'a Generation> + Clone,
    guidance: Option<&[Option<usize>]>,
) -> Result<(), BatchError> {
    let own = generations.len();
    let rows = if guidance.is_some() { (logits.len() / width.max(1)).max(own) } else { own };
    check_shape(logits, rows, width, generations.clone())?;
    let entries = guidance.unwrap_or_default();
    if guidance.is_some() && entries.len() != own {
        return Err(BatchError::GuidanceCount { count: entries.len(), rows: own });
    }
    for (index, generation) in generations.enumerate() {
        let entry = entries.get(index).copied().flatten();
        check_scale(index, generation, entry.is_some())?;
        if let Some(row) = entry.filter(|row| !(own..rows).contains(row)) {
            return Err(BatchError::GuidanceRow { index, row, first: own, last: rows.saturating_sub(1) });
        }
    }
    Ok(())
}

/// As many logits as `rows` of `width`, which is the vocabulary of every generation.
pub(super) fn check_shape<'a>(
    logits: Logits<'_>,
    rows: usize,
    width: usize,
    generations: impl Iterator<Item = &'a Generation>,
) -> Result<(), BatchError> {
    if rows.checked_mul(width) != Some(logits.len()) {
        return Err(BatchError::Shape { count: logits.len(), rows, width });
    }
    check_widths(width, generations)
}

/// Every generation is made for `width` columns.
pub(super) fn check_widths<'a>(
    width: usize,
    generations: impl Iterator<Item = &'a Generation>,
) -> Result<(), BatchError> {
    for (index, generation) in generations.enumerate() {
        let vocab_size = generation.sampling().vocab_size;
        if vocab_size != width {
            return Err(BatchError::Width { width, index, vocab_size });
        }
    }
    Ok(())
}

/// A generation is guided where its scale says so, and nowhere else.
#[allow(clippy::float_cmp)] // Off is exact.
pub(super) fn check_scale(index: usize, generation: &Generation, is_guided: bool) -> Result<(), BatchError> {
    let scale = generation.sampling().guidance_scale;
    if is_guided == (scale != 1.0) { Ok(()) } else { Err(BatchError::Guidance { index, scale: scale.to_string() }) }
}
