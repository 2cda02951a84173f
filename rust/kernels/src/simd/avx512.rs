//! The kernel for AVX512F.
//!
//! The table of a code is one vector, so a permutation looks 16 codes up at once; it reads the low four bits of each
//! lane, and a shift brings the other four there. The first rows, up to four, take the numbers straight from the
//! decoder; where there are more, they are kept as well, and the other rows read them, up to eight at a time.
//!
//! Not measured yet: the machine that this was written on has AVX2 only. The tests run it where the CPU can.

#![allow(unsafe_code)]

use super::{DensePanel, ONES, Panel};
use crate::Level;
use crate::linear4bit::packed::Block;
use crate::product::{BLOCK, GROUP, Place, Tile, Totals};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_loadu_si128, _mm512_cvtepu8_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_permutexvar_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi32, _mm512_storeu_ps,
};

/// Lanes of a vector.
const LANES: usize = 16;
/// Vectors of a group.
const VECTORS: usize = GROUP / LANES;

/// The code table, and the proof that the CPU has the instructions: only `new` makes one.
#[derive(Debug)]
pub struct Kernel([f32; LANES]);

impl Kernel {
    /// None where the CPU lacks the instructions.
    pub fn new(code: &[f32; 16]) -> Option<Self> {
        Level::Avx512.is_available().then_some(Self(*code))
    }

    pub fn run(&self, panel: Panel<'_>) {
        // SAFETY: a Kernel exists only where AVX512F is available.
        unsafe { run(&self.0, panel) }
    }

    // Takes the kernel as the proof of the instructions.
    #[allow(clippy::unused_self)]
    pub fn run_dense(&self, panel: DensePanel<'_>) {
        // SAFETY: as above.
        unsafe { run_dense(panel) }
    }
}

#[target_feature(enable = "avx512f")]
fn run(table: &[f32; LANES], panel: Panel<'_>) {
    let Panel { blocks, x, totals, tile } = panel;
    let rows = totals.len();
    for (number, block) in blocks.iter().enumerate() {
        let place = Place { x, count: blocks.len(), number };
        let done = match rows {
            0 => 0,
            1 => decode_and_multiply::<1, false>(table, block, place, totals, tile),
            2 => decode_and_multiply::<2, false>(table, block, place, totals, tile),
            3 => decode_and_multiply::<3, false>(table, block, place, totals, tile),
            4 => decode_and_multiply::<4, false>(table, block, place, totals, tile),
            _ => decode_and_multiply::<4, true>(table, block, place, totals, tile),
        };
        multiply_rows(tile, &block.scales, place, totals, done);
    }
}

#[target_feature(enable = "avx512f")]
fn run_dense(panel: DensePanel<'_>) {
    let DensePanel { tiles, x, totals } = panel;
    for (number, tile) in tiles.iter().enumerate() {
        multiply_rows(tile, &ONES, Place { x, count: tiles.len(), number }, totals, 0);
    }
}

/// All rows from `first` on, with the numbers in `tile`.
#[target_feature(enable = "avx512f")]
fn multiply_rows(tile: &Tile, scales: &[f32; GROUP], place: Place<'_>, totals: &mut [Totals], first: usize) {
    let mut done = first;
    while done < totals.len() {
        let left = &mut totals[done..];
        done += match left.len() {
            1 => multiply::<1>(tile, scales, place, left, done),
            2..4 => multiply::<2>(tile, scales, place, left, done),
            4..8 => multiply::<4>(tile, scales, place, left, done),
            _ => multiply::<8>(tile, scales, place, left, done),
        };
    }
}

/// The first `R` rows; with `KEEP` the decoded numbers are written to `tile` too. Returns `R`.
#[target_feature(enable = "avx512f")]
fn decode_and_multiply<const R: usize, const KEEP: bool>(
    table: &[f32; LANES],
    block: &Block,
    place: Place<'_>,
    totals: &mut [Totals],
    Tile(tile): &mut Tile,
) -> usize {
    let x = place.rows::<R>(0);
    let table = load_vector(table);
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
    for (pair, bytes) in block.codes.iter().enumerate() {
        let (halves, _) = bytes.as_chunks::<LANES>();
        let codes: [__m512i; VECTORS] = [load_codes(&halves[0]), load_codes(&halves[1])];
        for half in 0..2 {
            let feature = 2 * pair + half;
            let mut weights = [_mm512_setzero_ps(); VECTORS];
            for (weights, codes) in weights.iter_mut().zip(codes) {
                // The first feature's code is in the high four bits of the byte; bits above the low four do not count.
                let codes = if half == 0 { _mm512_srli_epi32::<4>(codes) } else { codes };
                *weights = _mm512_permutexvar_ps(codes, table);
            }
            if KEEP {
                store(&mut tile[feature], weights);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                add_products(sums, x[feature], weights);
            }
        }
    }
    add_scaled(sums, &block.scales, totals);
    R
}

/// `R` rows from `first` on, with the numbers in `tile`. Returns `R`.
#[target_feature(enable = "avx512f")]
fn multiply<const R: usize>(
    Tile(tile): &Tile,
    scales: &[f32; GROUP],
    place: Place<'_>,
    totals: &mut [Totals],
    first: usize,
) -> usize {
    let x: [&[f32; BLOCK]; R] = place.rows(first);
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
    for (feature, weights) in tile.iter().enumerate() {
        let weights = load(weights);
        for (sums, x) in sums.iter_mut().zip(x) {
            add_products(sums, x[feature], weights);
        }
    }
    add_scaled(sums, scales, totals);
    R
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_products(sums: &mut [__m512; VECTORS], x: f32, weights: [__m512; VECTORS]) {
    let x = _mm512_set1_ps(x);
    for (sum, weight) in sums.iter_mut().zip(weights) {
        *sum = _mm512_fmadd_ps(x, weight, *sum);
    }
}

/// Adds the sums of a block, scaled, to the totals of their rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_scaled<const R: usize>(sums: [[__m512; VECTORS]; R], scales: &[f32; GROUP], totals: &mut [Totals]) {
    let scales = load(scales);
    for (sums, Totals(totals)) in sums.into_iter().zip(totals) {
        let mut results = load(totals);
        for ((result, sum), scale) in results.iter_mut().zip(sums).zip(scales) {
            *result = _mm512_fmadd_ps(sum, scale, *result);
        }
        store(totals, results);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; GROUP]) -> [__m512; VECTORS] {
    let (pieces, _) = values.as_chunks::<LANES>();
    [load_vector(&pieces[0]), load_vector(&pieces[1])]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_vector(values: &[f32; LANES]) -> __m512 {
    // SAFETY: all sixteen values that are read are there, and the instruction asks for no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: &mut [f32; GROUP], vectors: [__m512; VECTORS]) {
    let (pieces, _) = values.as_chunks_mut::<LANES>();
    for (piece, vector) in pieces.iter_mut().zip(vectors) {
        // SAFETY: the piece has the sixteen values that are written.
        unsafe { _mm512_storeu_ps(piece.as_mut_ptr(), vector) }
    }
}

/// Sixteen bytes, each in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_codes(bytes: &[u8; LANES]) -> __m512i {
    // SAFETY: all sixteen bytes that are read are there, and the instruction asks for no alignment.
    let bytes: __m128i = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    _mm512_cvtepu8_epi32(bytes)
}
