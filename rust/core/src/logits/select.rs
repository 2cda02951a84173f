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

    let (mut sum, mut total) = (0.0, 0.0);
    positions.clear();
    keys.clear();
    if values.len() < HISTOGRAM_FROM {
        positions.extend((0..).zip(values).map(|(position, _)| position));
    } else {
        let bins = bins_below(values, max);
        masses.resize(BINS, Mass::default());
        total = kernels::histogram(values, max, bins, masses.first_chunk_mut()?);
        let mut crossed = 0;
        for (bin, mass) in (0..).zip(masses.iter().map(|parts| parts.iter().sum::<f64>())) {
            crossed = bin;
            if usize::from(bin) + 1 == BINS || reaches((sum + mass) / total) {
                break;
            }
            sum += mass;
        }
        kernels::positions_in_bin(values, bins, crossed, positions);
    }
    keys.extend(positions.iter().filter_map(|&position| values.get(position as usize)));
    let listed = kernels::exps(keys, max, 1.0, weights);
    let total = if values.len() < HISTOGRAM_FROM { listed } else { total };
    #[allow(clippy::cast_possible_truncation)]
    let divisor = total as f32;
    items.clear();
    let weighted = keys.iter().zip(weights.iter()).zip(positions.iter());
    items.extend(weighted.map(|((&value, &weight), &position)| (value, position, weight / divisor)));
    crossing(items, sum / total, reaches)
}

/// Bins down to where values hardly weigh, or a good deal below the bulk of the row where that is nearer.
fn bins_below(values: &[f32], max: f32) -> Bins {
    // e^-24 times the largest vocabulary is below 1e-5. A sample tells how far the row spreads.
    const MOST: f32 = 24.0;
    const SAMPLE: usize = 64;
    let sample = values.iter().step_by(values.len().div_ceil(SAMPLE));
    let least = sample.copied().filter(|value| value.is_finite()).fold(max, f32::min);
    let width = ((max - least) * 1.5).clamp(f32::MIN_POSITIVE, MOST);
    #[allow(clippy::cast_precision_loss)]
    let bins = (BINS - 1) as f32;
    Bins { low: max - width, per_unit: (bins / width).min(f32::MAX) }
}
