//! Exponentials, their sums, and histograms of them.
//!
//! Within a block sums are `f32` in [`SUM_LANES`] lanes, across blocks `f64`.

use super::{BLOCK, append_positions};

const SUM_LANES: usize = 16;

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

/// Writes `b + scale * (a - b)` of two rows in log-softmax space, each given with its largest value and the logarithm of
/// its sum of `exp(value - max)`; -infinity where both are.
pub fn guide(a: (&[f32], (f32, f32)), b: (&[f32], (f32, f32)), scale: f32, out: &mut Vec<f32>) {
    out.resize(a.0.len(), 0.0);
    guide_into(a.0, a.1, b.0, b.1, scale, out);
}

kernel! {
    fn guide_into<'a>(
        a: &'a [f32], a_norm: (f32, f32), b: &'a [f32], b_norm: (f32, f32), scale: f32, out: &'a mut [f32]
    ) -> () {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            let (a, b) = (a - a_norm.0 - a_norm.1, b - b_norm.0 - b_norm.1);
            let guided = scale * (a - b) + b;
            *out = if (a == f32::NEG_INFINITY) & (b == f32::NEG_INFINITY) { a } else { guided };
        }
    }
}

/// Like [`exp_sum`] for each [`BLOCK`] of values, without those below the floor: a value, and a position from which on
/// values equal to it count.
pub fn exp_block_sums(values: &[f32], max: f32, rate: f32, floor: (f32, u32), sums: &mut Vec<f64>) {
    sums.resize(values.len().div_ceil(BLOCK), 0.0);
    block_sums_into(values, max, rate, floor, sums);
}

kernel! {
    fn block_sums_into<'a>(values: &'a [f32], max: f32, rate: f32, floor: (f32, u32), sums: &'a mut [f64]) -> () {
        const LANE: [u32; SUM_LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let (floor, first) = floor;
        for ((sum, block), start) in sums.iter_mut().zip(values.chunks(BLOCK)).zip((0_u32..).step_by(BLOCK)) {
            let (groups, tail) = block.as_chunks::<SUM_LANES>();
            let mut lanes = [0.0_f32; SUM_LANES];
            let mut position = start;
            for group in groups {
                for lane in 0..SUM_LANES {
                    let weight = exp((group[lane] - max) * rate);
                    let is_tie = (group[lane] == floor) & (position + LANE[lane] >= first);
                    lanes[lane] += if (group[lane] > floor) | is_tie { weight } else { 0.0 };
                }
                position += 16;
            }
            *sum = sum_lanes(lanes);
            for (&value, at) in tail.iter().zip(position..) {
                let is_left = value > floor || (value == floor && at >= first);
                *sum += if is_left { f64::from(exp((value - max) * rate)) } else { 0.0 };
            }
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
            total += block_exps(block, max, rate, out);
        }
        total
    }
}

#[inline(always)]
fn block_exps(block: &[f32], max: f32, rate: f32, out: &mut [f32]) -> f64 {
    let (groups, tail) = block.as_chunks::<SUM_LANES>();
    let (out_groups, out_tail) = out.as_chunks_mut::<SUM_LANES>();
    let mut lanes = [0.0_f32; SUM_LANES];
    for (group, out) in groups.iter().zip(out_groups) {
        for lane in 0..SUM_LANES {
            out[lane] = exp((group[lane] - max) * rate);
            lanes[lane] += out[lane];
        }
    }
    let mut total = sum_lanes(lanes);
    for (&value, out) in tail.iter().zip(out_tail) {
        *out = exp((value - max) * rate);
        total += f64::from(*out);
    }
    total
}

/// Bins of a histogram; the 32 KB of sums stay near the core.
pub const BINS: usize = 1024;
/// Sums per bin. Neighbours go to different ones, so that they need not wait for each other when they share a bin.
const TURNS: usize = 4;

/// Equal bins of values up to the largest; the first bin also takes all values below.
#[derive(Debug, Clone, Copy)]
pub struct Bins {
    /// Where the first bin begins.
    pub low: f32,
    /// Bins per unit of value.
    pub per_unit: f32,
}

impl Bins {
    /// The bin of a value. Keeps the order: a larger value never has a lower bin.
    #[inline(always)]
    fn of(self, value: f32) -> u16 {
        // Adding 2^23 leaves the rounded integer in the low bits. Comparisons this way round send -inf to 0.
        const ROUND: f32 = 8_388_608.0;
        #[allow(clippy::cast_precision_loss)]
        const LAST: f32 = (BINS - 1) as f32;
        let place = (value - self.low) * self.per_unit;
        let place = if place > 0.0 { place } else { 0.0 };
        let place = if place < LAST { place } else { LAST };
        #[allow(clippy::cast_possible_truncation)] // Below BINS.
        let bin = (place + ROUND).to_bits() as u16;
        bin
    }
}

/// The sum of weights in one bin, in parts.
pub type Mass = [f64; TURNS];

kernel! {
    /// Adds `exp(value - max)` of each value to its bin and returns the sum of all.
    ///
    /// Weights and bins live for one block only: a pass over memory costs more than the arithmetic.
    pub fn histogram<'a>(values: &'a [f32], max: f32, bins: Bins, masses: &'a mut [Mass; BINS]) -> f64 {
        masses.fill([0.0; TURNS]);
        let mut total = 0.0;
        let mut weights = [0.0_f32; BLOCK];
        let mut places = [0_u16; BLOCK];
        for block in values.chunks(BLOCK) {
            let (weights, places) = (&mut weights[..block.len()], &mut places[..block.len()]);
            total += block_exps(block, max, 1.0, weights);
            for (place, &value) in places.iter_mut().zip(block) {
                *place = bins.of(value);
            }
            add_by_bin(places, weights, masses);
        }
        total
    }
}

kernel! {
    /// Adds each weight to the bin of its key.
    pub fn histogram_of<'a>(keys: &'a [f32], weights: &'a [f32], bins: Bins, masses: &'a mut [Mass; BINS]) -> () {
        masses.fill([0.0; TURNS]);
        let mut places = [0_u16; BLOCK];
        for (keys, weights) in keys.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
            for (place, &key) in places.iter_mut().zip(keys) {
                *place = bins.of(key);
            }
            add_by_bin(&places[..keys.len()], weights, masses);
        }
    }
}

#[inline(always)]
fn add_by_bin(places: &[u16], weights: &[f32], masses: &mut [Mass; BINS]) {
    for (places, weights) in places.chunks(TURNS).zip(weights.chunks(TURNS)) {
        for (turn, (&place, &weight)) in places.iter().zip(weights).enumerate() {
            masses[usize::from(place) % BINS][turn] += f64::from(weight);
        }
    }
}

kernel! {
    /// Sum of `(value - max) * weight`; where the weight is 0, nothing.
    pub fn weighted_distances<'a>(values: &'a [f32], weights: &'a [f32], max: f32) -> f64 {
        let mut total = 0.0;
        for (values, weights) in values.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
            let (groups, tail) = values.as_chunks::<SUM_LANES>();
            let (weight_groups, weight_tail) = weights.as_chunks::<SUM_LANES>();
            let mut lanes = [0.0_f32; SUM_LANES];
            for (group, weights) in groups.iter().zip(weight_groups) {
                for lane in 0..SUM_LANES {
                    let product = (group[lane] - max) * weights[lane];
                    lanes[lane] += if weights[lane] > 0.0 { product } else { 0.0 };
                }
            }
            total += sum_lanes(lanes);
            for (&value, &weight) in tail.iter().zip(weight_tail) {
                total += if weight > 0.0 { f64::from((value - max) * weight) } else { 0.0 };
            }
        }
        total
    }
}

/// Writes how far the information content of each value, `log_total - (value - max)`, is from `entropy`.
pub fn surprise_distances(values: &[f32], max: f32, log_total: f32, entropy: f32, out: &mut Vec<f32>) {
    out.resize(values.len(), 0.0);
    surprise_into(values, max, log_total, entropy, out);
}

kernel! {
    fn surprise_into<'a>(values: &'a [f32], max: f32, log_total: f32, entropy: f32, out: &'a mut [f32]) -> () {
        for (distance, &value) in out.iter_mut().zip(values) {
            *distance = (log_total - (value - max) - entropy).abs();
        }
    }
}

kernel! {
    /// Writes the positions of values in the bin `wanted`.
    pub fn positions_in_bin<'a>(values: &'a [f32], bins: Bins, wanted: u16, out: &'a mut Vec<u32>) -> () {
        out.clear();
        append_positions(values, 0, |value| bins.of(value) == wanted, out);
    }
}
