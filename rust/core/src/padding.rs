//! Padding rows to a rectangle.

use crate::error::{Error, Result, Violation};

/// Highest `multiple_of`: far above any tile size, low enough that a slip does not claim the memory.
const MAX_MULTIPLE: i64 = 1 << 16;

/// Where the padding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the tokens, as decoders need it for generation.
    Left,
    /// After the tokens.
    Right,
}

/// Rows made rectangular: three row-major arrays `[B, T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padded {
    /// `[B, T]`.
    pub shape: [usize; 2],
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// Position of each token in its row from 0; padding holds 0.
    pub position_ids: Vec<i64>,
}

/// Pads rows of token ids to the longest one, rounded up to `multiple_of`; equal to transformers' `tokenizer.pad`.
/// No rows give the shape `[0, 0]`.
///
/// # Errors
/// [`Error::InvalidParameters`] for negative ids and for `multiple_of` outside 1..=65536.
pub fn pad(rows: &[&[i64]], pad_token_id: i64, side: Side, multiple_of: i64) -> Result<Padded> {
    let multiple_of = validate(rows, pad_token_id, multiple_of)?;
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let width = longest.next_multiple_of(multiple_of);
    let cells = rows.len() * width;
    let mut padded = Padded {
        shape: [rows.len(), width],
        input_ids: Vec::with_capacity(cells),
        attention_mask: Vec::with_capacity(cells),
        position_ids: Vec::with_capacity(cells),
    };
    for row in rows {
        let padding = width - row.len();
        let before = if side == Side::Left { padding } else { 0 };
        padded.extend_padding(before, pad_token_id);
        padded.input_ids.extend_from_slice(row);
        padded.attention_mask.resize(padded.input_ids.len(), 1);
        padded.position_ids.extend((0i64..).take(row.len()));
        padded.extend_padding(padding - before, pad_token_id);
    }
    Ok(padded)
}

impl Padded {
    fn extend_padding(&mut self, count: usize, pad_token_id: i64) {
        let length = self.input_ids.len() + count;
        self.input_ids.resize(length, pad_token_id);
        self.attention_mask.resize(length, 0);
        self.position_ids.resize(length, 0);
    }
}

/// `multiple_of` when everything is in range.
fn validate(rows: &[&[i64]], pad_token_id: i64, multiple_of: i64) -> Result<usize> {
    let mut violations = Vec::new();
    let mut violation = |field: String, rule: String, value: i64| {
        violations.push(Violation { field, rule, value: value.to_string() });
    };
    if pad_token_id < 0 {
        violation("pad_token_id".to_owned(), "must not be negative".to_owned(), pad_token_id);
    }
    let multiple = usize::try_from(multiple_of).ok().filter(|_| (1..=MAX_MULTIPLE).contains(&multiple_of));
    if multiple.is_none() {
        violation("multiple_of".to_owned(), format!("must be in 1..={MAX_MULTIPLE}"), multiple_of);
    }
    for (index, row) in rows.iter().enumerate() {
        if let Some(&id) = row.iter().find(|&&id| id < 0) {
            violation(format!("rows[{index}]"), "token ids must not be negative".to_owned(), id);
        }
    }
    multiple.filter(|_| violations.is_empty()).ok_or(Error::InvalidParameters(violations))
}
