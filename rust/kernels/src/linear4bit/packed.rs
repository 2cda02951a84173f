//! Weights in the order in which the kernels read them.

use super::Weights;
use crate::Level;
use crate::product::{BLOCK, GROUP, Shape};

/// Where each column of a group stands among the 32 bytes of two input features; a permutation.
pub type Places = [usize; GROUP];

/// Columns stand in order.
pub const IN_ORDER: Places = {
    let mut places = [0; GROUP];
    let mut column = 0;
    while column < GROUP {
        places[column] = column;
        column += 1;
    }
    places
};

/// The codes of 64 input features for the 32 columns of a group, and their scales.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Block {
    /// For each pair of input features one byte per column, at its place: the first feature's code in the high half.
    pub codes: [[u8; GROUP]; BLOCK / 2],
    /// By column.
    pub scales: [f32; GROUP],
}

/// Why a layer cannot be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The inner size does not consist of whole blocks.
    #[error("in_features must be a positive multiple of {BLOCK}, got {0}")]
    InFeatures(usize),
    /// There is no output.
    #[error("out_features must be at least 1, got 0")]
    OutFeatures,
    /// A scale would hold for a part of a block.
    #[error("block_size must be a positive multiple of {BLOCK}, got {0}")]
    BlockSize(usize),
    /// An array has another length than the sizes ask for.
    #[error("{name} must have {expected} elements, got {got}")]
    Length {
        /// Name of the array.
        name: &'static str,
        /// Elements by the sizes.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The CPU lacks the instructions.
    #[error("this CPU has no {0} instructions")]
    Level(Level),
}

/// A whole matrix. The last group is filled up with columns of scale zero.
#[derive(Debug)]
pub struct Packed {
    blocks: Vec<Block>,
    pub shape: Shape,
}

impl Packed {
    /// Checks `weights` and copies them into place.
    pub fn new(weights: &Weights<'_>, places: Places) -> Result<Self, Error> {
        let &Weights { packed, absmax, block_size, in_features, out_features, bias, .. } = weights;
        if in_features == 0 || !in_features.is_multiple_of(BLOCK) {
            return Err(Error::InFeatures(in_features));
        }
        if out_features == 0 {
            return Err(Error::OutFeatures);
        }
        if block_size == 0 || !block_size.is_multiple_of(BLOCK) {
            return Err(Error::BlockSize(block_size));
        }
        let size = in_features.saturating_mul(out_features);
        check_length("packed", size / 2, packed.len())?;
        check_length("absmax", size.div_ceil(block_size), absmax.len())?;
        if let Some(bias) = bias {
            check_length("bias", out_features, bias.len())?;
        }
        let shape = Shape { in_features, out_features };
        let blocks_per_group = shape.blocks();
        let (rows, _) = packed.as_chunks::<{ BLOCK / 2 }>();
        let empty = Block { codes: [[0; GROUP]; BLOCK / 2], scales: [0.0; GROUP] };
        let mut blocks = vec![empty; shape.groups() * blocks_per_group];
        for (index, block) in blocks.iter_mut().enumerate() {
            let (group, number) = (index / blocks_per_group, index % blocks_per_group);
            let columns = group * GROUP..out_features.min((group + 1) * GROUP);
            for ((column, &place), scale) in columns.zip(&places).zip(&mut block.scales) {
                let piece = column * blocks_per_group + number;
                for (bytes, &byte) in block.codes.iter_mut().zip(&rows[piece]) {
                    bytes[place] = byte;
                }
                // Scales go over the flattened matrix, so one may reach from a column into the next.
                *scale = absmax[piece * BLOCK / block_size];
            }
        }
        Ok(Self { blocks, shape })
    }

    /// The blocks of a group, from the first input feature on.
    pub fn group(&self, index: usize) -> &[Block] {
        let count = self.shape.blocks();
        &self.blocks[index * count..][..count]
    }
}

pub fn check_length(name: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(Error::Length { name, expected, got }) }
}
