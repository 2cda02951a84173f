//! A linear layer whose weights are 4-bit codes, as bitsandbytes stores them (NF4, FP4).
//!
//! A weight is `code[nibble] * absmax[block]` for a table of 16 numbers and one scale per block of 64 or more weights.
//! All arithmetic is in f32: within a block of 64 the products of input and code are summed in order, then the sum is
//! multiplied by the scale and added to the total of the blocks before. No weight is rounded on the way, and every
//! output is computed by this rule alone, so a row's result is the same bits whichever rows it is computed with,
//! whichever kernel serves that number of rows, and on every level that has a fused multiply-add.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod output;
mod packed;
mod portable;

use crate::{Level, ThreadPool};
use output::Output;
use packed::{Block, Packed, Places};
use std::cell::RefCell;
use std::sync::Arc;

pub use packed::Error;

/// Output columns that one task computes; their codes lie side by side, one lane each.
const GROUP: usize = 32;
/// Weights of a column that share a scale here.
const BLOCK: usize = 64;
/// Most rows of one task: enough that decoding a block is a small part of the work, few enough that their totals and
/// the decoded block stay in the first-level cache.
const ROWS: usize = 120;
/// Weights below which a product is not worth waking threads for.
const THREADS_FROM: usize = 1 << 15;

/// Sums of one row for the columns of a group.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Totals([f32; GROUP]);

/// A decoded block, without its scales: the values of each input feature in turn for all columns of the group.
#[derive(Debug)]
#[repr(align(64))]
struct Tile([[f32; GROUP]; BLOCK]);

/// What a kernel computes: the products of some rows with one group of columns.
struct Panel<'a> {
    /// The group's blocks, from the first input feature on.
    blocks: &'a [Block],
    /// Rows of the input; each has as many pieces as there are blocks.
    x: &'a [[f32; BLOCK]],
    /// Where the sums go, for each row; overwritten.
    totals: &'a mut [Totals],
    /// Working memory.
    tile: &'a mut Tile,
}

/// The column of the input that meets one block.
#[derive(Clone, Copy)]
struct Place<'a> {
    x: &'a [[f32; BLOCK]],
    /// Pieces of a row.
    count: usize,
    /// The piece that meets the block.
    number: usize,
}

impl<'a> Place<'a> {
    fn rows<const R: usize>(self, first: usize) -> [&'a [f32; BLOCK]; R] {
        std::array::from_fn(|row| &self.x[(first + row) * self.count + self.number])
    }
}

/// The kernel of one level, with the code table as it reads it.
#[derive(Debug)]
enum Kernel {
    Portable(portable::Table),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Kernel),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Kernel),
}

impl Kernel {
    /// None where this CPU lacks the level.
    fn new(level: Level, code: &[f32; 16]) -> Option<Self> {
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

    fn places(&self) -> Places {
        match self {
            Self::Portable(_) => packed::IN_ORDER,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::PLACES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => packed::IN_ORDER,
        }
    }

    fn run(&self, panel: Panel<'_>) {
        match self {
            Self::Portable(table) => portable::run(table, panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => kernel.run(panel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => kernel.run(panel),
        }
    }
}

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
        self.packed.in_features()
    }

    /// Values of an output row.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.packed.out_features()
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
    pub fn forward(&self, x: &[f32], out: &mut [f32]) -> Result<(), Error> {
        let (width, columns) = (self.in_features(), self.out_features());
        let rows = x.len() / width;
        if x.len() != rows * width || out.len() != rows * columns {
            return Err(Error::Lengths { x: x.len(), out: out.len(), in_features: width, out_features: columns });
        }
        let (x, _) = x.as_chunks::<BLOCK>();
        let output = Output::new(out, columns);
        let groups = self.packed.groups();
        let chunks = rows.div_ceil(ROWS);
        // Chunks of equal size; the groups of a chunk follow each other, so its input stays in the cache.
        let chunk = rows.div_ceil(chunks.max(1));
        let task = |index: usize| {
            let (first, group) = (index / groups * chunk, index % groups);
            self.compute(x, first, chunk.min(rows - first), group, &output);
        };
        if rows * width * columns < THREADS_FROM {
            (0..chunks * groups).for_each(task);
        } else {
            self.pool.run(chunks * groups, &task);
        }
        Ok(())
    }

    /// The columns of one group for `rows` rows from `first` on.
    fn compute(&self, x: &[[f32; BLOCK]], first: usize, rows: usize, group: usize, output: &Output<'_>) {
        let blocks = self.packed.group(group);
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { totals, tile } = &mut **scratch;
            let totals = &mut totals[..rows];
            totals.fill(Totals([0.0; GROUP]));
            let x = &x[first * blocks.len()..][..rows * blocks.len()];
            self.kernel.run(Panel { blocks, x, totals, tile });
            let column = group * GROUP;
            let width = GROUP.min(self.out_features() - column);
            for (row, Totals(totals)) in totals.iter_mut().enumerate() {
                let totals = &mut totals[..width];
                if let Some(bias) = &self.bias {
                    for (total, bias) in totals.iter_mut().zip(&bias[column..]) {
                        *total += bias;
                    }
                }
                output.write(first + row, column, totals);
            }
        });
    }
}

/// Working memory of a thread.
struct Scratch {
    totals: [Totals; ROWS],
    tile: Tile,
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        totals: [Totals([0.0; GROUP]); ROWS],
        tile: Tile([[0.0; GROUP]; BLOCK]),
    }));
}
