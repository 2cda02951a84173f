//! Order statistics without sorting the row.

use super::kernels::{self, BINS, Bins, Mass};
use std::cmp::Ordering;

/// A token's rank value, its position, and its weight.
pub type Item = (f32, u32, f32);

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
    positions: Vec<u32>,
    masses: Vec<Mass>,
}

/// The order of numbers other than NaN; the two zeros are equal, unlike in `total_cmp`.
pub fn numerically(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
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
    let by_rank = |a: &Item, b: &Item| numerically(a.0, b.0).then(a.1.cmp(&b.1));
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
/// `max` is the largest value. A histogram over the values finds the bin where the sum crosses, and only that bin's
/// items are looked at one by one.
pub fn first_of_top_p(values: &[f32], max: f32, p: f64, scratch: &mut Scratch) -> Option<Item> {
    let Scratch { weights, keys, items, positions, masses } = scratch;
    // Probabilities, threshold and comparison in f32 and the sum in f64, as torch's softmax and cumsum have it: ties
    // at the threshold fall the same way.
    #[allow(clippy::cast_possible_truncation)]
    let threshold = (1.0 - p) as f32;
    #[allow(clippy::cast_possible_truncation)]
    let reaches = |sum: f64| sum as f32 > threshold;

    let (mut below, mut all) = (0.0, None);
    if values.len() < HISTOGRAM_FROM {
        positions.clear();
        positions.extend((0..).zip(values).map(|(position, _)| position));
    } else {
        let bins = bins_below(values, max);
        masses.resize(BINS, Mass::default());
        let total = kernels::histogram(values, max, bins, masses.first_chunk_mut()?);
        let crossed = crossed_bin(masses, |sum| reaches(sum / total));
        kernels::positions_in_bin(values, bins, crossed.0, positions);
        (below, all) = (crossed.1, Some(total));
    }
    keys.clear();
    keys.extend(positions.iter().filter_map(|&position| values.get(position as usize)));
    let listed = kernels::exps(keys, max, 1.0, weights);
    let total = all.unwrap_or(listed);
    #[allow(clippy::cast_possible_truncation)]
    let divisor = total as f32;
    items.clear();
    let weighted = keys.iter().zip(weights.iter()).zip(positions.iter());
    items.extend(weighted.map(|((&value, &weight), &position)| (value, position, weight / divisor)));
    crossing(items, below / total, reaches)
}

/// The smallest of `scratch.keys` such that those up to it have at least `mass` of the sum of `scratch.weights`,
/// `total`; the largest key where rounding keeps the sum below. `None` without keys.
pub fn key_at_mass(mass: f32, total: f64, scratch: &mut Scratch) -> Option<f32> {
    let Scratch { weights, keys, items, positions, masses } = scratch;
    #[allow(clippy::cast_possible_truncation)]
    let (divisor, reaches) = (total as f32, |sum: f64| sum as f32 >= mass);
    // The same distance below the middle as `bins_below` looks from the top.
    let widest = keys.iter().step_by(keys.len().div_ceil(SAMPLE).max(1)).copied().filter(|key| key.is_finite());
    let bins = bins_over(0.0, widest.fold(0.0, f32::max));
    masses.resize(BINS, Mass::default());
    kernels::histogram_of(keys, weights, bins, masses.first_chunk_mut()?);
    let (bin, below) = crossed_bin(masses, |sum| reaches(sum / total));
    kernels::positions_in_bin(keys, bins, bin, positions);
    items.clear();
    items.extend(positions.iter().filter_map(|&position| {
        let (key, weight) = (keys.get(position as usize)?, weights.get(position as usize)?);
        Some((*key, position, weight / divisor))
    }));
    crossing(items, below / total, reaches).map(|(key, ..)| key)
}

/// The first bin at which `reaches` holds for the sum of masses, or the last one, and the sum of those before it.
fn crossed_bin(masses: &[Mass], reaches: impl Fn(f64) -> bool) -> (u16, f64) {
    let mut below = 0.0;
    let mut last = (0, 0.0);
    for (bin, parts) in (0..).zip(masses) {
        let mass: f64 = parts.iter().sum();
        // An empty bin has no item to stop at.
        if mass > 0.0 {
            last = (bin, below);
            if reaches(below + mass) {
                break;
            }
        }
        below += mass;
    }
    last
}

/// How many values tell how far a row spreads.
const SAMPLE: usize = 64;

/// Bins down to where values hardly weigh, or a good deal below the bulk of the row where that is nearer.
fn bins_below(values: &[f32], max: f32) -> Bins {
    let sample = values.iter().step_by(values.len().div_ceil(SAMPLE).max(1));
    let least = sample.copied().filter(|value| value.is_finite()).fold(max, f32::min);
    let bins = bins_over(0.0, max - least);
    #[allow(clippy::cast_precision_loss)]
    let width = BINS as f32 / bins.per_unit;
    Bins { low: max - width, ..bins }
}

/// Bins from `low` up to one and a half times what a sample of values spans.
fn bins_over(low: f32, span: f32) -> Bins {
    // e^-24 times the largest vocabulary is below 1e-5.
    const MOST: f32 = 24.0;
    let width = (span * 1.5).clamp(1e-30, MOST);
    #[allow(clippy::cast_precision_loss)]
    let per_unit = BINS as f32 / width;
    Bins { low, per_unit }
}
