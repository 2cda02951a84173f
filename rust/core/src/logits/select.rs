//! Order statistics without sorting the row.

use super::kernels;

/// A token's rank value, its position, and its weight.
pub type Item = (f32, u32, f32);

/// Bins of the histogram; the 32 KB of sums stay near the core.
const BINS: u32 = 1024;
/// Sums per bin.
const TURNS: usize = 4;
/// From this many values on the histogram beats selection.
const HISTOGRAM_FROM: usize = 256;
/// Up to this many items are sorted.
const SORT_UP_TO: usize = 48;

/// Buffers that keep their memory from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Weights of the current values.
    pub weights: Vec<f32>,
    /// Sort keys of the current values, or a copy of them.
    pub keys: Vec<f32>,
    /// Items that selection moves about.
    pub items: Vec<Item>,
    bins: Vec<u32>,
    positions: Vec<u32>,
    masses: Vec<[f64; TURNS]>,
}

/// The k-th largest of `values` (`1 <= k <= values.len()`), which end up in another order.
pub fn kth_largest(values: &mut [f32], k: usize) -> f32 {
    *values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// A value that at least `k` of `values` reach, as close to the k-th largest as the maxima of chunks tell.
///
/// The k-th largest maximum is such a value: each of k chunks holds one that is at least as large.
pub fn bound_of_top(values: &[f32], maxima: &[f32], k: usize, buffer: &mut Vec<f32>) -> f32 {
    buffer.clear();
    if maxima.len() >= k {
        buffer.extend_from_slice(maxima);
    } else if values.len() / 16 >= 2 * k {
        kernels::fine_maxima(values, buffer);
    } else {
        return f32::NEG_INFINITY;
    }
    kth_largest(buffer, k)
}

/// Walks `items` in ascending order of (key, position), adding up weights from `start`, to the first one at which
/// `reaches` holds for the sum; the last one, if it never does. `None` without items.
///
/// `reaches` must be monotone. Halves by selection: linear time, no full sort.
pub fn crossing(mut items: &mut [Item], mut start: f64, reaches: impl Fn(f64) -> bool) -> Option<Item> {
    let by_rank = |a: &Item, b: &Item| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    while items.len() > SORT_UP_TO {
        let middle = items.len() / 2;
        items.select_nth_unstable_by(middle, by_rank);
        let (below, rest) = items.split_at_mut(middle);
        let sum = start + below.iter().map(|item| f64::from(item.2)).sum::<f64>();
        if reaches(sum) {
            items = below;
        } else {
            start = sum;
            items = rest;
        }
    }
    items.sort_unstable_by(by_rank);
    let mut sum = start;
    let found = items.iter().find(|item| {
        sum += f64::from(item.2);
        reaches(sum)
    });
    found.or(items.last()).copied()
}

/// The first item, in ascending order of (value, position), that top-p keeps: transformers' `TopPLogitsWarper` drops
/// items while their cumulative probability is at most `1 - p`.
///
/// `weights` are proportional to the probabilities and sum to `total`; `below` is the part of the total that belongs to
/// values left out because they are certainly dropped. A histogram over the values finds the bin where the sum
/// crosses, and only that bin's items are looked at one by one.
pub fn first_of_top_p(values: &[f32], max: f32, total: f64, below: f64, p: f64, scratch: &mut Scratch) -> Option<Item> {
    let Scratch { weights, items, bins, positions, masses, .. } = scratch;
    // Probabilities, threshold and comparison in f32 and the sum in f64, as torch's softmax and cumsum have it: ties
    // at the threshold fall the same way.
    #[allow(clippy::cast_possible_truncation)]
    let (threshold, divisor) = ((1.0 - p) as f32, total as f32);
    #[allow(clippy::cast_possible_truncation)]
    let reaches = |sum: f64| sum as f32 > threshold;
    let item = |(position, (&value, &weight)): (u32, (&f32, &f32))| (value, position, weight / divisor);
    let mut sum = below / total;
    items.clear();
    if values.len() < HISTOGRAM_FROM {
        items.extend((0..).zip(values.iter().zip(weights.iter())).map(item));
        return crossing(items, sum, reaches);
    }

    let low = certain_below(max, total, p, values.len());
    #[allow(clippy::cast_precision_loss)]
    let bins_per_unit = (BINS - 1) as f32 / (max - low).max(f32::MIN_POSITIVE);
    kernels::bins_of(values, low, bins_per_unit, BINS, bins);
    masses.clear();
    masses.resize(BINS as usize, [0.0; TURNS]);
    add_by_bin(bins, weights, masses);
    let mut crossed = BINS - 1;
    for (bin, mass) in (0..BINS).zip(masses.iter()) {
        let next = sum + mass.iter().sum::<f64>() / total;
        if reaches(next) {
            crossed = bin;
            break;
        }
        sum = if bin + 1 < BINS { next } else { sum };
    }
    kernels::positions_of(bins, crossed, positions);
    items.extend(
        positions.iter().map(|&position| item((position, (&values[position as usize], &weights[position as usize])))),
    );
    crossing(items, sum, reaches)
}

/// Adds each weight to the sum of its bin.
///
/// Neighbours go to different sums of a bin, so that they need not wait for each other when they share it.
fn add_by_bin(bins: &[u32], weights: &[f32], masses: &mut [[f64; TURNS]]) {
    for (bins, weights) in bins.chunks(TURNS).zip(weights.chunks(TURNS)) {
        for (turn, (&bin, &weight)) in bins.iter().zip(weights).enumerate() {
            if let Some(mass) = masses.get_mut(bin as usize) {
                mass[turn] += f64::from(weight);
            }
        }
    }
}

/// A value such that all those below it are dropped by top-p, whatever their number: `count` of them at that value
/// would together have less than `1 - p` of the probability.
pub fn certain_below(max: f32, total: f64, p: f64, count: usize) -> f32 {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let distance = ((1.0 - p) * total / count as f64).ln() as f32;
    max + distance.min(0.0) - 1e-3
}
