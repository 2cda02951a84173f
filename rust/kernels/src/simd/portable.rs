//! The kernel in plain Rust: each block is decoded once, then multiplied with every row in loops that vectorize.

use super::{DensePanel, ONES, Panel};
use crate::linear4bit::packed::Block;
use crate::product::{BLOCK, GROUP, Tile, Totals};

/// The two numbers that a byte of codes stands for.
#[derive(Debug)]
pub struct Table(Box<[[f32; 2]; 256]>);

impl Table {
    pub fn new(code: &[f32; 16]) -> Self {
        Self(Box::new(std::array::from_fn(|byte| [code[byte >> 4], code[byte & 15]])))
    }
}

pub fn run(table: &Table, panel: Panel<'_>) {
    let Panel { blocks, x, totals, tile } = panel;
    for (number, block) in blocks.iter().enumerate() {
        decode(table, block, tile);
        for (Totals(totals), x) in totals.iter_mut().zip(x.chunks_exact(blocks.len())) {
            add_product(&x[number], tile, &block.scales, totals);
        }
    }
}

pub fn run_dense(panel: DensePanel<'_>) {
    let DensePanel { tiles, x, totals } = panel;
    for (number, tile) in tiles.iter().enumerate() {
        for (Totals(totals), x) in totals.iter_mut().zip(x.chunks_exact(tiles.len())) {
            add_product(&x[number], tile, &ONES, totals);
        }
    }
}

fn decode(Table(table): &Table, block: &Block, Tile(tile): &mut Tile) {
    let (pairs, _) = tile.as_chunks_mut::<2>();
    for (bytes, [first, second]) in block.codes.iter().zip(pairs) {
        for ((&byte, first), second) in bytes.iter().zip(first).zip(second) {
            [*first, *second] = table[usize::from(byte)];
        }
    }
}

fn add_product(x: &[f32; BLOCK], Tile(tile): &Tile, scales: &[f32; GROUP], totals: &mut [f32; GROUP]) {
    let mut sums = [0.0; GROUP];
    for (&x, values) in x.iter().zip(tile) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = multiply_add(x, value, *sum);
        }
    }
    for ((total, sum), &scale) in totals.iter_mut().zip(sums).zip(scales) {
        *total = multiply_add(sum, scale, *total);
    }
}

/// Fused where the target has the instruction; elsewhere `mul_add` would be a function call per element.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}
