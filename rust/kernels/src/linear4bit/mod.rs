//! A linear layer whose weights are 4-bit codes, as bitsandbytes stores them (NF4, FP4).
//!
//! A weight is `code[nibble] * absmax[block]` for a table of 16 numbers and one scale per block of 64 or more weights.
//! All arithmetic is in f32; the order of the sums is the same for every number of rows.

pub(crate) mod packed;

use crate::product::LengthError;
use crate::simd::{Kernel, Panel};
use crate::{Level, ThreadPool};
use packed::Packed;
use std::sync::Arc;

pub use packed::Error;

/// Weights as bitsandbytes keeps them, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// Two codes a byte, the first in the high half, row after row: `[out_features, in_features / 2]`.
    pub packed: &'a [u8],
    /// One scale for each `block_size` codes of the flattened matrix.
    pub absmax: &'a [f32],
    /// Codes that share a scale: a multiple of 64.
    pub block_size: usize,
    /// The number that each code stands for.
    pub code: &'a [f32; 16],
    /// Values of an input row: a multiple of 64.
    pub in_features: usize,
    /// Values of an output row.
    pub out_features: usize,
    /// Added to each output row, `[out_features]`.
    pub bias: Option<&'a [f32]>,
}

/// A linear layer with 4-bit weights, repacked for the kernels of one level.
#[derive(Debug)]
pub struct Linear4Bit {
    packed: Packed,
    kernel: Kernel,
    level: Level,
    bias: Option<Vec<f32>>,
    pool: Arc<ThreadPool>,
}

impl Linear4Bit {
    /// Repacks `weights` for `level`; products run on `pool`.
    ///
    /// # Errors
    /// When sizes do not fit each other, or this CPU lacks `level`.
    pub fn new(weights: Weights<'_>, level: Level, pool: Arc<ThreadPool>) -> Result<Self, Error> {
        let kernel = Kernel::new(level, weights.code).ok_or(Error::Level(level))?;
        let packed = Packed::new(&weights, kernel.places())?;
        Ok(Self { packed, kernel, level, bias: weights.bias.map(<[f32]>::to_vec), pool })
    }

    /// Values of an input row.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.packed.shape.in_features
    }

    /// Values of an output row.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.packed.shape.out_features
    }

    /// The instructions it uses.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Writes `x W^T + bias` to `out`: `x` is `[rows, in_features]`, `out` `[rows, out_features]`, both row after row.
    ///
    /// # Errors
    /// When the lengths are not those of the same number of rows.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) -> Result<(), LengthError> {
        let bias = self.bias.as_deref();
        self.packed.shape.product(x, out, bias, &self.pool, &|group, x, totals, tile| {
            self.kernel.run(Panel { blocks: self.packed.group(group), x, totals, tile });
        })
    }
}
