//! Loops over a whole row, written so that the compiler vectorizes them.
//!
//! Each kernel is compiled twice, for the baseline and for AVX2, and pulp picks one at run time: a safe call where
//! `#[target_feature]` would need `unsafe`. Lanes, the order of every sum and each fused multiply-add are fixed in the
//! source, so the results are the same bits on every CPU (one from before 2013, without the instruction, is slow).

// Inlining is what lets a loop be compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]
// Conditions joined without a branch, so that the loops around them vectorize.
#![allow(clippy::needless_bitwise_bool)]

/// Elements per entry of a row's chunk maxima.
pub const CHUNK: usize = 128;
/// Elements per block of a sum, and per entry of block sums.
pub const BLOCK: usize = 512;

const MAX_LANES: usize = 32;

/// What one pass over a row tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// The largest value that is not NaN; -infinity for an empty row.
    pub max: f32,
    /// Whether any value is NaN.
    pub has_nan: bool,
}

/// Declares functions that run compiled for the best instruction set at hand.
///
/// The body becomes a method marked `inline(always)`: a closure or a function item would be called through a shim
/// that is compiled for the baseline.
macro_rules! kernel {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<'a>($($argument:ident: $type:ty),*) -> $output:ty $body:block) => {
        $(#[$attribute])*
        $visibility fn $name<'a>($($argument: $type),*) -> $output {
            struct Kernel<'a> {
                $($argument: $type),*
            }
            impl pulp::NullaryFnOnce for Kernel<'_> {
                type Output = $output;

                #[inline(always)]
                fn call(self) -> $output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Kernel { $($argument),* })
        }
    };
}

mod softmax;

pub use softmax::*;

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    // Not f32::max: this form is one instruction and keeps `a` when `b` is NaN.
    if b > a { b } else { a }
}

#[inline(always)]
fn halve<const HALF: usize, const FULL: usize>(lanes: [f32; FULL]) -> [f32; HALF] {
    let mut folded = [0.0; HALF];
    for lane in 0..HALF {
        folded[lane] = larger(lanes[lane], lanes[lane + HALF]);
    }
    folded
}

/// Finds the maximum of `values` and of each [`CHUNK`] of them, and whether there is a NaN.
pub fn scan(values: &[f32], maxima: &mut Vec<f32>) -> Scan {
    maxima.resize(values.len().div_ceil(CHUNK), f32::NEG_INFINITY);
    let has_nan = chunk_maxima(values, maxima);
    Scan { max: maxima.iter().copied().fold(f32::NEG_INFINITY, larger), has_nan }
}

/// Elements that stay in the first-level cache between two passes over them.
const PART: usize = 32 * CHUNK;

/// [`scan`] that writes a copy of `values` on its way: a row of a large vocabulary is read from memory once, not twice.
pub fn scan_copying(values: &[f32], maxima: &mut Vec<f32>, copy: &mut Vec<f32>) -> Scan {
    copy.resize(values.len(), 0.0);
    maxima.resize(values.len().div_ceil(CHUNK), f32::NEG_INFINITY);
    let mut has_nan = false;
    for ((from, to), maxima) in values.chunks(PART).zip(copy.chunks_mut(PART)).zip(maxima.chunks_mut(PART / CHUNK)) {
        to.copy_from_slice(from);
        has_nan |= chunk_maxima(to, maxima);
    }
    Scan { max: maxima.iter().copied().fold(f32::NEG_INFINITY, larger), has_nan }
}

kernel! {
    /// Makes every value a finite number: NaN 0, infinities the largest and the smallest.
    pub fn mend<'a>(values: &'a mut [f32]) -> () {
        for value in values {
            // `clamp` passes NaN on.
            *value = if value.is_nan() { 0.0 } else { value.clamp(f32::MIN, f32::MAX) };
        }
    }
}

kernel! {
    fn chunk_maxima<'a>(values: &'a [f32], maxima: &'a mut [f32]) -> bool {
        let mut nan = [0_u32; MAX_LANES];
        let mut tail_nan = false;
        for (chunk, maximum) in values.chunks(CHUNK).zip(maxima) {
            let (groups, tail) = chunk.as_chunks::<MAX_LANES>();
            let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
            for group in groups {
                for lane in 0..MAX_LANES {
                    lanes[lane] = larger(lanes[lane], group[lane]);
                    nan[lane] |= u32::from(group[lane].is_nan());
                }
            }
            *maximum = halve::<1, 2>(halve::<2, 4>(halve::<4, 8>(halve::<8, 16>(halve::<16, MAX_LANES>(lanes)))))[0];
            for &value in tail {
                *maximum = larger(*maximum, value);
                tail_nan |= value.is_nan();
            }
        }
        tail_nan || nan.iter().any(|&lane| lane != 0)
    }
}

/// Index of the first value equal to `wanted`; `maxima` (of [`scan`]) tells where to look.
#[must_use]
pub fn position(values: &[f32], maxima: &[f32], wanted: f32) -> Option<usize> {
    let chunks = values.chunks(CHUNK).zip(maxima).zip((0..).step_by(CHUNK));
    let mut likely = chunks.filter(|&((_, &maximum), _)| maximum == wanted);
    likely.find_map(|((chunk, _), first)| chunk.iter().position(|&value| value == wanted).map(|at| first + at))
}

/// Widens bfloat16 bits.
pub fn widen(bits: &[u16], out: &mut Vec<f32>) {
    out.resize(bits.len(), 0.0);
    widen_into(bits, out);
}

kernel! {
    fn widen_into<'a>(bits: &'a [u16], out: &'a mut [f32]) -> () {
        for (value, &half) in out.iter_mut().zip(bits) {
            *value = f32::from_bits(u32::from(half) << 16);
        }
    }
}

/// Writes `(value - shift) / divisor`.
pub fn scale(values: &[f32], shift: f32, divisor: f32, out: &mut Vec<f32>) {
    out.resize(values.len(), 0.0);
    scale_into(values, shift, divisor, out);
}

kernel! {
    fn scale_into<'a>(values: &'a [f32], shift: f32, divisor: f32, out: &'a mut [f32]) -> () {
        for (scaled, &value) in out.iter_mut().zip(values) {
            *scaled = (value - shift) / divisor;
        }
    }
}

kernel! {
    /// Maxima of each 16 values; a rest of less than 16 is left out.
    pub fn fine_maxima<'a>(values: &'a [f32], out: &'a mut Vec<f32>) -> () {
        let (groups, _) = values.as_chunks::<16>();
        out.clear();
        out.extend(groups.iter().map(|&group| halve::<1, 2>(halve::<2, 4>(halve::<4, 8>(halve::<8, 16>(group))))[0]));
    }
}

kernel! {
    /// How many of `values` are at least `threshold`.
    pub fn count_from<'a>(values: &'a [f32], threshold: f32) -> usize {
        let mut count = 0;
        for block in values.chunks(BLOCK) {
            let mut in_block = 0_u32;
            for &value in block {
                in_block += u32::from(value >= threshold);
            }
            count += in_block as usize;
        }
        count
    }
}

kernel! {
    /// How many of `values` are above `value`, or equal to it and before `position`.
    pub fn count_ahead<'a>(values: &'a [f32], value: f32, position: u32) -> usize {
        let mut count = 0;
        for (block, start) in values.chunks(BLOCK).zip((0_u32..).step_by(BLOCK)) {
            let mut in_block = 0_u32;
            for (&other, at) in block.iter().zip(start..) {
                in_block += u32::from((other > value) | ((other == value) & (at < position)));
            }
            count += in_block as usize;
        }
        count
    }
}

kernel! {
    /// Appends the positions of values that are at least `threshold`; `maxima` (of [`scan`]) tells what to pass over.
    pub fn positions_from<'a>(values: &'a [f32], maxima: &'a [f32], threshold: f32, out: &'a mut Vec<u32>) -> () {
        for ((chunk, &maximum), first) in values.chunks(CHUNK).zip(maxima).zip((0..).step_by(CHUNK)) {
            if maximum >= threshold {
                append_positions(chunk, first, |value| value >= threshold, out);
            }
        }
    }
}

kernel! {
    /// Writes the positions of finite values whose key is at most `last`.
    pub fn positions_up_to<'a>(values: &'a [f32], keys: &'a [f32], last: f32, out: &'a mut Vec<u32>) -> () {
        out.clear();
        for ((values, keys), first) in values.chunks(MAX_LANES).zip(keys.chunks(MAX_LANES)).zip((0..).step_by(MAX_LANES)) {
            let mut mask = 0_u32;
            for (lane, (&value, &key)) in values.iter().zip(keys).enumerate() {
                mask |= u32::from(key <= last && value >= f32::MIN) << lane;
            }
            while mask != 0 {
                out.push(first + mask.trailing_zeros());
                mask &= mask - 1;
            }
        }
    }
}

/// Appends `first` plus the place of each item that `holds`.
#[inline(always)]
fn append_positions<T: Copy>(items: &[T], first: u32, holds: impl Fn(T) -> bool, out: &mut Vec<u32>) {
    let (groups, tail) = items.as_chunks::<MAX_LANES>();
    let mut start = first;
    for group in groups {
        let mut mask = 0_u32;
        for (lane, &item) in group.iter().enumerate() {
            mask |= u32::from(holds(item)) << lane;
        }
        while mask != 0 {
            out.push(start + mask.trailing_zeros());
            mask &= mask - 1;
        }
        start += 32;
    }
    for &item in tail {
        if holds(item) {
            out.push(start);
        }
        start += 1;
    }
}

/// Copies `values` with -infinity for those below `value` and those equal to it that come before `position`.
pub fn cut(values: &[f32], value: f32, position: u32, out: &mut Vec<f32>) {
    out.resize(values.len(), 0.0);
    cut_into(values, value, position, out);
}

kernel! {
    fn cut_into<'a>(values: &'a [f32], value: f32, position: u32, out: &'a mut [f32]) -> () {
        for ((kept, &other), at) in out.iter_mut().zip(values).zip(0_u32..) {
            *kept = if other > value || (other == value && at >= position) { other } else { f32::NEG_INFINITY };
        }
    }
}
