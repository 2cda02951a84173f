//! A linear layer with f32 weights, for the few rows of a decode step.
//!
//! The sums are those of [`crate::linear4bit`], with scales of one: a row alone has the bits that it has in a batch.

use crate::linear4bit::Error;
use crate::linear4bit::packed::check_length;
use crate::product::{BLOCK, GROUP, LengthError, Shape, Tile};
use crate::simd::{DensePanel, Kernel};
use crate::{Level, ThreadPool};
use std::sync::Arc;

/// A linear layer with f32 weights, in the order in which the kernels read them.
#[derive(Debug)]
pub struct Linear {
    /// Group after group, each from the first input feature on. The last group is filled up with zeros.
    tiles: Vec<Tile>,
    shape: Shape,
    kernel: Kernel,
    level: Level,
    bias: Option<Vec<f32>>,
    pool: Arc<ThreadPool>,
}

impl Linear {
    /// Copies `weight` `[out_features, in_features]`, row after row, with `in_features` a multiple of 64.
    ///
    /// # Errors
    /// When sizes do not fit each other, or this CPU lacks `level`.
    pub fn new(
        weight: &[f32],
        in_features: usize,
        bias: Option<&[f32]>,
        level: Level,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, Error> {
        if in_features == 0 || !in_features.is_multiple_of(BLOCK) {
            return Err(Error::InFeatures(in_features));
        }
        let out_features = weight.len() / in_features;
        if out_features == 0 {
            return Err(Error::OutFeatures);
        }
        check_length("weight", out_features * in_features, weight.len())?;
        if let Some(bias) = bias {
            check_length("bias", out_features, bias.len())?;
        }
        let kernel = Kernel::dense(level).ok_or(Error::Level(level))?;
        let shape = Shape { in_features, out_features };
        let mut tiles = vec![Tile([[0.0; GROUP]; BLOCK]); shape.groups() * shape.blocks()];
        let (pieces, _) = weight.as_chunks::<BLOCK>();
        for (column, pieces) in pieces.chunks_exact(shape.blocks()).enumerate() {
            let group = &mut tiles[column / GROUP * shape.blocks()..];
            for (Tile(tile), piece) in group.iter_mut().zip(pieces) {
                for (values, &value) in tile.iter_mut().zip(piece) {
                    values[column % GROUP] = value;
                }
            }
        }
        Ok(Self { tiles, shape, kernel, level, bias: bias.map(<[f32]>::to_vec), pool })
    }

    /// Values of an input row.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.shape.in_features
    }

    /// Values of an output row.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.shape.out_features
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
        self.shape.product(x, out, self.bias.as_deref(), &self.pool, &|group, x, totals, _| {
            let tiles = &self.tiles[group * self.shape.blocks()..][..self.shape.blocks()];
            self.kernel.run_dense(DensePanel { tiles, x, totals });
        })
    }
}
