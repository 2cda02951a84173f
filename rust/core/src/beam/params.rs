//! Parameters of beam search, validated.

use crate::error::{Error, Result, Violation};
use std::fmt::Display;

/// When a beam search ends, before its length limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When no running beam, at its present length, scores better than the worst finished one (transformers' false).
    Heuristic,
    /// As soon as as many sequences as beams are finished (transformers' true).
    Full,
    /// As `Heuristic`, but with a positive length penalty judged at the length limit (transformers' "never").
    Never,
}

/// Largest amount of a length penalty, either way.
pub const MAX_LENGTH_PENALTY: f64 = 10.0;

/// What a beam search is made with. Names and meanings are transformers'.
#[derive(Debug, Clone, Copy)]
pub struct BeamOptions {
    /// Beams that run side by side. 2 to 2^16.
    pub num_beams: i64,
    /// Sequences to return. 1 to `num_beams`.
    pub num_return_sequences: i64,
    /// Scores are divided by length to this power. At most [`MAX_LENGTH_PENALTY`] either way.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
}

/// Validated [`BeamOptions`].
#[derive(Debug, Clone, Copy)]
pub(super) struct BeamParams {
    pub num_beams: usize,
    pub num_return_sequences: usize,
    pub length_penalty: f64,
    pub early_stopping: EarlyStopping,
}

impl BeamParams {
    pub fn new(options: &BeamOptions) -> Result<Self> {
        let mut violations = Vec::new();
        let mut check = |field: &str, holds: bool, rule: &str, value: &dyn Display| {
            if !holds {
                violations.push(Violation { field: field.to_owned(), rule: rule.to_owned(), value: value.to_string() });
            }
        };
        let BeamOptions { num_beams, num_return_sequences, length_penalty, early_stopping } = *options;
        check("num_beams", (2..=1 << 16).contains(&num_beams), "must be from 2 to 65536", &num_beams);
        let fits = num_return_sequences >= 1 && num_return_sequences <= num_beams;
        check("num_return_sequences", fits, "must be from 1 to num_beams", &num_return_sequences);
        let rule = format!("must be from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}");
        check("length_penalty", length_penalty.abs() <= MAX_LENGTH_PENALTY, &rule, &length_penalty);
        if !violations.is_empty() {
            return Err(Error::InvalidParameters(violations));
        }
        Ok(Self {
            num_beams: usize::try_from(num_beams).unwrap_or_default(),
            num_return_sequences: usize::try_from(num_return_sequences).unwrap_or_default(),
            length_penalty,
            early_stopping,
        })
    }
}
