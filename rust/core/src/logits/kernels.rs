//! Loops over a whole row, written so that the compiler vectorizes them.
//!
//! Each kernel is compiled twice, for the baseline and for AVX2, and pulp picks one at run time: a safe call where
//! `#[target_feature]` would need `unsafe`. Lanes, the order of every sum and each fused multiply-add are fixed in the
//! source, so the results are the same bits on every CPU (one from before 2013, without the instruction, is slow).

// Inlining is what lets a loop be compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]

/// Elements per entry of a row's chunk maxima.
pub const CHUNK: usize = 128;
/// Elements per partial sum. Within a block sums are `f32` in [`SUM_LANES`] lanes, across blocks `f64`.
pub const BLOCK: usize = 512;

const MAX_LANES: usize = 32;
const SUM_LANES: usize = 16;

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

/// `exp(x)` for `x <= 0`, within 2 units in the last place; 0 where the result would be subnormal.
///
/// Cephes' expf: `x = n ln 2 + r`, a polynomial in `r`, and `2^n` put together from bits. The large constant rounds to
/// an integer and leaves it in the low bits of the sum. Private: outside a kernel `mul_add` would be a function call.
#[inline(always)]
#[allow(clippy::excessive_precision, clippy::unreadable_literal, clippy::approx_constant)] // Cephes' constants.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12582912.0; // 1.5 * 2^23
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(2.12194440e-4, n.mul_add(-0.693359375, x));
    let p = r.mul_add(1.9875691500e-4, 1.3981999507e-3);
    let p = r.mul_add(p, 8.3334519073e-3);
    let p = r.mul_add(p, 4.1665795894e-2);
    let p = r.mul_add(p, 1.6666665459e-1);
    let p = r.mul_add(p, 5.0000001201e-1);
    let p = r.mul_add(r.mul_add(p, 1.0), 1.0);
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits().wrapping_sub(127)) << 23);
    if x > -87.0 { p * power } else { 0.0 }
}

#[inline(always)]
fn sum_lanes(lanes: [f32; SUM_LANES]) -> f64 {
    let mut total = 0.0;
    for lane in lanes {
        total += f64::from(lane);
    }
    total
}

kernel! {
    /// Sum of `exp((value - max) * rate)`; `max` is the largest value and finite.
    pub fn exp_sum<'a>(values: &'a [f32], max: f32, rate: f32) -> f64 {
        let mut total = 0.0;
        for block in values.chunks(BLOCK) {
            total += block_exp_sum(block, max, rate);
        }
        total
    }
}

/// Like [`exp_sum`], for each [`BLOCK`] of values.
pub fn exp_block_sums(values: &[f32], max: f32, rate: f32, sums: &mut Vec<f64>) {
    sums.resize(values.len().div_ceil(BLOCK), 0.0);
    block_sums_into(values, max, rate, sums);
}

kernel! {
    fn block_sums_into<'a>(values: &'a [f32], max: f32, rate: f32, sums: &'a mut [f64]) -> () {
        for (sum, block) in sums.iter_mut().zip(values.chunks(BLOCK)) {
            *sum = block_exp_sum(block, max, rate);
        }
    }
}

#[inline(always)]
fn block_exp_sum(block: &[f32], max: f32, rate: f32) -> f64 {
    let (groups, tail) = block.as_chunks::<SUM_LANES>();
    let mut lanes = [0.0_f32; SUM_LANES];
    for group in groups {
        for lane in 0..SUM_LANES {
            lanes[lane] += exp((group[lane] - max) * rate);
        }
    }
    let mut total = sum_lanes(lanes);
    for &value in tail {
        total += f64::from(exp((value - max) * rate));
    }
    total
}

/// Writes `exp((value - max) * rate)` of each value and returns their sum; `max` is the largest value and finite.
pub fn exps(values: &[f32], max: f32, rate: f32, out: &mut Vec<f32>) -> f64 {
    out.resize(values.len(), 0.0);
    exps_into(values, max, rate, out)
}

kernel! {
    fn exps_into<'a>(values: &'a [f32], max: f32, rate: f32, out: &'a mut [f32]) -> f64 {
        let mut total = 0.0;
        for (block, out) in values.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let (groups, tail) = block.as_chunks::<SUM_LANES>();
            let (out_groups, out_tail) = out.as_chunks_mut::<SUM_LANES>();
            let mut lanes = [0.0_f32; SUM_LANES];
            for (group, out) in groups.iter().zip(out_groups) {
                for lane in 0..SUM_LANES {
                    out[lane] = exp((group[lane] - max) * rate);
                    lanes[lane] += out[lane];
                }
            }
            total += sum_lanes(lanes);
            for (&value, out) in tail.iter().zip(out_tail) {
                *out = exp((value - max) * rate);
                total += f64::from(*out);
            }
        }
        total
    }
}

/// Writes the bin of each value: of `bins` equal ones between `low` and the largest value, the first also for all
/// values below.
pub fn bins_of(values: &[f32], low: f32, bins_per_unit: f32, bins: u32, out: &mut Vec<u32>) {
    out.resize(values.len(), 0);
    bins_into(values, low, bins_per_unit, bins, out);
}

kernel! {
    fn bins_into<'a>(values: &'a [f32], low: f32, bins_per_unit: f32, bins: u32, out: &'a mut [u32]) -> () {
        // Adding 2^23 leaves the rounded integer in the low bits. Comparisons this way round send -inf to 0.
        const ROUND: f32 = 8_388_608.0;
        #[allow(clippy::cast_precision_loss)] // A few thousand.
        let last = (bins - 1) as f32;
        for (bin, &value) in out.iter_mut().zip(values) {
            let place = (value - low) * bins_per_unit;
            let place = if place > 0.0 { place } else { 0.0 };
            let place = if place < last { place } else { last };
            *bin = (place + ROUND).to_bits() & 0x007f_ffff;
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
    /// Writes the positions of `wanted` among `bins`.
    pub fn positions_of<'a>(bins: &'a [u32], wanted: u32, out: &'a mut Vec<u32>) -> () {
        out.clear();
        append_positions(bins, 0, |bin| bin == wanted, out);
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

kernel! {
    /// Puts -infinity for values below `value` and for those equal to it that come before `position`.
    pub fn cut<'a>(values: &'a mut [f32], value: f32, position: u32) -> () {
        for (other, at) in values.iter_mut().zip(0_u32..) {
            *other = if *other > value || (*other == value && at >= position) { *other } else { f32::NEG_INFINITY };
        }
    }
}
