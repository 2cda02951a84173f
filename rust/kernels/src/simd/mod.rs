//! The kernels of each level: sums of products, block by block.
//!
//! Within a block of 64 the products of input and weight are summed in order, then the sum is multiplied by the scale
//! and added to the total of the blocks before. No weight is rounded on the way, and every output is computed by this
//! rule alone, so a row's result is the same bits whichever rows it is computed with, whichever loop serves that number
//! of rows, and on every level that has a fused multiply-add.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Level;
use crate::linear4bit::packed::{self, Block, Places};
use crate::product::{BLOCK, GROUP, Tile, Totals};

/// Products of some rows with one group of 4-bit columns.
pub struct Panel<'a> {
    /// The group's blocks, from the first input feature on.
    pub blocks: &'a [Block],
    /// Rows of the input; each has as many pieces as there are blocks.
    pub x: &'a [[f32; BLOCK]],
    /// What the sums are added to, for each row.
    pub totals: &'a mut [Totals],
    /// Working memory.
    pub tile: &'a mut Tile,
}

/// Products of some rows with one group of f32 columns.
pub struct DensePanel<'a> {
    /// The group's weights, from the first input feature on.
    pub tiles: &'a [Tile],
    /// Rows of the input; each has as many pieces as there are tiles.
    pub x: &'a [[f32; BLOCK]],
    /// What the sums are added to, for each row.
    pub totals: &'a mut [Totals],
}

/// The scales of f32 weights.
const ONES: [f32; GROUP] = [1.0; GROUP];

/// The kernel of one level, with the code table as it reads it.
#[derive(Debug)]
pub enum Kernel {
    Portable(portable::Table),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Kernel),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Kernel),
}

impl Kernel {
    /// None where this CPU lacks the level.
    pub fn new(level: Level, code: &[f32; 16]) -> Option<Self> {
        match level {
            Level::Portable => Some(Self::Portable(portable::Table::new(code))),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::Kernel::new(code).map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::Kernel::new(code).map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => None,
        }
    }

    /// For f32 weights, which have no codes. None where this CPU lacks the level.
    pub fn dense(level: Level) -> Option<Self> {
        Self::new(level, &[0.0; 16])
    }

    /// How the kernel wants the codes of a group ordered.
    pub fn places(&self) -> Places {
        match self {
            Self::Portable(_) => packed::IN_ORDER,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::PLACES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => packed::IN_ORDER,
        }
    }

    /// Products with 4-bit weights.
    pub fn run(&self, panel: Panel<'_>) {
        match self {
            Self::Portable(table) => portable::run(table, panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.run(panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.run(panel),
        }
    }

    /// Products with f32 weights.
    pub fn run_dense(&self, panel: DensePanel<'_>) {
        match self {
            Self::Portable(_) => portable::run_dense(panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.run_dense(panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.run_dense(panel),
        }
    }
}
