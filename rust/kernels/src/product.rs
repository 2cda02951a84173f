//! A product of rows with a matrix, shared by the layers: cut into tasks, summed by a kernel, written out.

use crate::ThreadPool;
use crate::output::Output;
use std::cell::RefCell;

/// Output columns that one task computes; their codes lie side by side, one lane each.
pub const GROUP: usize = 32;
/// Weights of a column that are summed, and scaled, together.
pub const BLOCK: usize = 64;
/// Most rows of one task: enough that decoding a block is a small part of the work, few enough that their totals and
/// the decoded block stay in the first-level cache.
const ROWS: usize = 120;
/// Weights below which a product is not worth waking threads for.
const THREADS_FROM: usize = 1 << 15;

/// Sums of one row for the columns of a group.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Totals(pub [f32; GROUP]);

/// The weights of a block, without their scales: of each input feature in turn for all columns of the group.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Tile(pub [[f32; GROUP]; BLOCK]);

/// The column of the input that meets one block.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub x: &'a [[f32; BLOCK]],
    /// Pieces of a row.
    pub count: usize,
    /// The piece that meets the block.
    pub number: usize,
}

impl<'a> Place<'a> {
    /// The pieces of `R` rows from `first` on.
    pub fn rows<const R: usize>(self, first: usize) -> [&'a [f32; BLOCK]; R] {
        std::array::from_fn(|row| &self.x[(first + row) * self.count + self.number])
    }
}

/// Input and output do not hold the same number of whole rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{x} input and {out} output values are not rows of {in_features} and {out_features}")]
pub struct LengthError {
    /// Values of the input.
    pub x: usize,
    /// Values of the output.
    pub out: usize,
    /// Values of an input row.
    pub in_features: usize,
    /// Values of an output row.
    pub out_features: usize,
}

/// The sizes of a matrix of weights.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Values of an input row: a positive multiple of [`BLOCK`].
    pub in_features: usize,
    /// Values of an output row: at least one.
    pub out_features: usize,
}

/// Adds the products of some rows `x` with the columns of a group to their totals; the tile is working memory.
pub type AddProducts<'a> = &'a (dyn Fn(usize, &[[f32; BLOCK]], &mut [Totals], &mut Tile) + Sync);

impl Shape {
    /// Number of groups of columns.
    pub fn groups(self) -> usize {
        self.out_features.div_ceil(GROUP)
    }

    /// Blocks of a column.
    pub fn blocks(self) -> usize {
        self.in_features / BLOCK
    }

    /// Writes the products of the rows of `x`, and `bias`, to the rows of `out`, on the threads of `pool`.
    pub fn product(
        self,
        x: &[f32],
        out: &mut [f32],
        bias: Option<&[f32]>,
        pool: &ThreadPool,
        add_products: AddProducts<'_>,
    ) -> Result<(), LengthError> {
        let Self { in_features, out_features } = self;
        let rows = x.len() / in_features;
        if x.len() != rows * in_features || out.len() != rows * out_features {
            return Err(LengthError { x: x.len(), out: out.len(), in_features, out_features });
        }
        let (x, _) = x.as_chunks::<BLOCK>();
        let output = Output::new(out, out_features);
        let chunks = rows.div_ceil(ROWS);
        // Chunks of equal size; the groups of a chunk follow each other, so its input stays in the cache.
        let chunk = rows.div_ceil(chunks.max(1));
        let task = |index: usize| {
            let (first, group) = (index / self.groups() * chunk, index % self.groups());
            let rows = chunk.min(rows - first);
            let x = &x[first * self.blocks()..][..rows * self.blocks()];
            SCRATCH.with_borrow_mut(|scratch| {
                let Scratch { totals, tile } = &mut **scratch;
                let totals = &mut totals[..rows];
                totals.fill(Totals([0.0; GROUP]));
                add_products(group, x, totals, tile);
                self.write(totals, bias, first, group, &output);
            });
        };
        let tasks = chunks * self.groups();
        if rows * in_features * out_features < THREADS_FROM {
            (0..tasks).for_each(task);
        } else {
            pool.run(tasks, &task);
        }
        Ok(())
    }

    /// The totals of a group, with their bias, for the rows from `first` on.
    fn write(self, totals: &mut [Totals], bias: Option<&[f32]>, first: usize, group: usize, output: &Output<'_>) {
        let column = group * GROUP;
        let width = GROUP.min(self.out_features - column);
        for (row, Totals(totals)) in totals.iter_mut().enumerate() {
            let totals = &mut totals[..width];
            if let Some(bias) = bias {
                for (total, bias) in totals.iter_mut().zip(&bias[column..]) {
                    *total += bias;
                }
            }
            output.write(first + row, column, totals);
        }
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
