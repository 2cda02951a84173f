//! The kernel for AVX2 with fused multiply-add.
//!
//! A code becomes a number through four tables of 16 bytes, one for each byte of an f32: `pshufb` looks 32 codes up at
//! once, and unpacking joins the four bytes again. That is 12 shuffles for 32 weights, the bound for one row. The first
//! one or two rows take the numbers straight from the decoder; where there are more, they are kept as well, and the
//! other rows read them, three rows at a time.
//!
//! Measured on two Zen 3 cores, all linear layers of SmolLM2-135M (106 M weights), one thread / two: 1 row 8.4 / 4.5
//! ms, 16 rows 43 / 22 ms, 512 rows 1,180 / 590 ms, which is 92 / 183 GFLOP/s.

#![allow(unsafe_code)]

use super::{DensePanel, ONES, Panel};
use crate::Level;
use crate::linear4bit::packed::{Block, Places};
use crate::product::{GROUP, Place, Tile, Totals};
use std::arch::x86_64::{
    __m256, __m256i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_set1_epi8, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

/// Lanes of a vector.
const LANES: usize = 8;
/// Vectors of a group.
const VECTORS: usize = GROUP / LANES;

/// Where unpacking, which works within halves of 16 bytes, takes the columns from.
pub const PLACES: Places = {
    let mut places = [0; GROUP];
    let mut column = 0;
    while column < GROUP {
        places[column] = column / LANES * 4 + column % 4 + column % LANES / 4 * 16;
        column += 1;
    }
    places
};

/// The code table by bytes, and the proof that the CPU has the instructions: only `new` makes one.
#[derive(Debug)]
pub struct Kernel(Tables);

/// Byte `i` of the numbers of all codes, twice.
#[derive(Debug)]
struct Tables([[u8; 32]; 4]);

impl Kernel {
    /// None where the CPU lacks the instructions.
    pub fn new(code: &[f32; 16]) -> Option<Self> {
        let bytes = code.map(f32::to_le_bytes);
        let tables = std::array::from_fn(|byte| std::array::from_fn(|place| bytes[place % 16][byte]));
        Level::Avx2.is_available().then_some(Self(Tables(tables)))
    }

    pub fn run(&self, panel: Panel<'_>) {
        // SAFETY: a Kernel exists only where AVX2 and FMA are available.
        unsafe { run(&self.0, panel) }
    }

    // Takes the kernel as the proof of the instructions.
    #[allow(clippy::unused_self)]
    pub fn run_dense(&self, panel: DensePanel<'_>) {
        // SAFETY: as above.
        unsafe { run_dense(panel) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn run(tables: &Tables, panel: Panel<'_>) {
    let Panel { blocks, x, totals, tile } = panel;
    let rows = totals.len();
    for (number, block) in blocks.iter().enumerate() {
        let place = Place { x, count: blocks.len(), number };
        // The split leaves no single row for `multiply`, whose few sums would wait for each other; and three rows in the
        // decoder would need more registers than there are.
        let done = match rows {
            0 => 0,
            1 => decode_and_multiply::<1, false>(tables, block, place, totals, tile),
            2 => decode_and_multiply::<2, false>(tables, block, place, totals, tile),
            _ if rows.is_multiple_of(3) => decode_and_multiply::<1, true>(tables, block, place, totals, tile),
            _ => decode_and_multiply::<2, true>(tables, block, place, totals, tile),
        };
        multiply_rows(tile, &block.scales, place, totals, done);
    }
}

#[target_feature(enable = "avx2,fma")]
fn run_dense(panel: DensePanel<'_>) {
    let DensePanel { tiles, x, totals } = panel;
    for (number, tile) in tiles.iter().enumerate() {
        multiply_rows(tile, &ONES, Place { x, count: tiles.len(), number }, totals, 0);
    }
}

/// All rows from `first` on, with the numbers in `tile`; a single one only where there is no other.
#[target_feature(enable = "avx2,fma")]
fn multiply_rows(tile: &Tile, scales: &[f32; GROUP], place: Place<'_>, totals: &mut [Totals], first: usize) {
    let mut done = first;
    while done < totals.len() {
        let left = &mut totals[done..];
        done += match left.len() {
            1 => multiply::<1>(tile, scales, place, left, done),
            2 | 4 => multiply::<2>(tile, scales, place, left, done),
            _ => multiply::<3>(tile, scales, place, left, done),
        };
    }
}

/// The first `R` rows; with `KEEP` the decoded numbers are written to `tile` too. Returns `R`.
#[target_feature(enable = "avx2,fma")]
fn decode_and_multiply<const R: usize, const KEEP: bool>(
    Tables(tables): &Tables,
    block: &Block,
    place: Place<'_>,
    totals: &mut [Totals],
    Tile(tile): &mut Tile,
) -> usize {
    let x = place.rows::<R>(0);
    let [first, second, third, fourth] = tables;
    let tables = [load_bytes(first), load_bytes(second), load_bytes(third), load_bytes(fourth)];
    let low = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; R];
    for (pair, bytes) in block.codes.iter().enumerate() {
        let bytes = load_bytes(bytes);
        let codes = [_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low), _mm256_and_si256(bytes, low)];
        for (half, codes) in codes.into_iter().enumerate() {
            let feature = 2 * pair + half;
            let weights = decode(tables, codes);
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
#[target_feature(enable = "avx2,fma")]
fn multiply<const R: usize>(
    Tile(tile): &Tile,
    scales: &[f32; GROUP],
    place: Place<'_>,
    totals: &mut [Totals],
    first: usize,
) -> usize {
    let x = place.rows::<R>(first);
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; R];
    for (feature, weights) in tile.iter().enumerate() {
        let mut inputs = [_mm256_setzero_ps(); R];
        for (input, x) in inputs.iter_mut().zip(x) {
            *input = _mm256_set1_ps(x[feature]);
        }
        let (weights, _) = weights.as_chunks::<LANES>();
        // With three rows the registers hold 12 sums, 3 inputs and 1 vector of weights, and not one more.
        for (vector, weights) in weights.iter().enumerate() {
            let weights = load_vector(weights);
            for (sums, input) in sums.iter_mut().zip(inputs) {
                sums[vector] = _mm256_fmadd_ps(input, weights, sums[vector]);
            }
        }
    }
    add_scaled(sums, scales, totals);
    R
}

/// The numbers of 32 codes, by column.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn decode(tables: [__m256i; 4], codes: __m256i) -> [__m256; VECTORS] {
    let [mut first, mut second, mut third, mut fourth] = tables;
    for table in [&mut first, &mut second, &mut third, &mut fourth] {
        *table = _mm256_shuffle_epi8(*table, codes);
    }
    let (low, high) = (_mm256_unpacklo_epi8(first, second), _mm256_unpacklo_epi8(third, fourth));
    let (next_low, next_high) = (_mm256_unpackhi_epi8(first, second), _mm256_unpackhi_epi8(third, fourth));
    [
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high)),
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(next_low, next_high)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(next_low, next_high)),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products(sums: &mut [__m256; VECTORS], x: f32, weights: [__m256; VECTORS]) {
    let x = _mm256_set1_ps(x);
    for (sum, weight) in sums.iter_mut().zip(weights) {
        *sum = _mm256_fmadd_ps(x, weight, *sum);
    }
}

/// Adds the sums of a block, scaled, to the totals of their rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled<const R: usize>(sums: [[__m256; VECTORS]; R], scales: &[f32; GROUP], totals: &mut [Totals]) {
    let scales = load(scales);
    for (sums, Totals(totals)) in sums.into_iter().zip(totals) {
        let mut results = load(totals);
        for ((result, sum), scale) in results.iter_mut().zip(sums).zip(scales) {
            *result = _mm256_fmadd_ps(sum, scale, *result);
        }
        store(totals, results);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(values: &[f32; GROUP]) -> [__m256; VECTORS] {
    let (pieces, _) = values.as_chunks::<LANES>();
    let mut vectors = [_mm256_setzero_ps(); VECTORS];
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        *vector = load_vector(piece);
    }
    vectors
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_vector(values: &[f32; LANES]) -> __m256 {
    // SAFETY: all eight values that are read are there, and the instruction asks for no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn store(values: &mut [f32; GROUP], vectors: [__m256; VECTORS]) {
    let (pieces, _) = values.as_chunks_mut::<LANES>();
    for (piece, vector) in pieces.iter_mut().zip(vectors) {
        // SAFETY: the piece has the eight values that are written.
        unsafe { _mm256_storeu_ps(piece.as_mut_ptr(), vector) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: all 32 bytes that are read are there, and the instruction asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
