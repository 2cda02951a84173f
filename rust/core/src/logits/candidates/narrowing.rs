//! Ways to keep fewer tokens, and yet enough.

use super::{Buffers, Candidates, Form};
use crate::logits::{kernels, select};

/// Which of several tokens with the same logit come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// Those with the lowest ids.
    Lowest,
    /// Those with the highest ids.
    Highest,
}

impl Candidates<'_> {
    /// [`Candidates::cut`], but the `least` largest logits stay.
    pub fn cut_but(&mut self, least: usize, ties: Ties, value: f32, position: u32) {
        // The largest one stays anyway.
        if least > 1 && self.count_left(value, position) < least {
            self.keep_best(least, ties);
        } else {
            self.cut(value, position);
        }
    }

    /// The smallest logit that is not further below the largest one than `distance`, at most 0, says.
    pub fn below_max(&mut self, distance: f64) -> f32 {
        let max = self.max();
        #[allow(clippy::cast_possible_truncation)]
        let threshold = (f64::from(max) + distance) as f32;
        // Rounding may have taken it lower, by much where logits are large.
        let is_too_low = f64::from(threshold) - f64::from(max) < distance;
        if is_too_low { threshold.next_up() } else { threshold }
    }

    /// Keeps logits not further below the largest one than `distance` says, and all that are not below the `least`-th
    /// largest.
    pub fn cut_below(&mut self, distance: f64, least: usize) {
        let (max, threshold) = (self.max(), self.below_max(distance));
        let (values, scratch) = self.values();
        let kth = if least > 1 {
            scratch.keys.clear();
            scratch.keys.extend_from_slice(values);
            select::kth_largest(&mut scratch.keys, least.min(values.len()))
        } else {
            max
        };
        self.cut(threshold.min(kth), 0);
    }

    /// How many tokens `cut` would leave.
    fn count_left(&mut self, value: f32, position: u32) -> usize {
        let (values, _) = self.values();
        let is_left = |&(other, at): &(&f32, u32)| *other > value || (*other == value && at >= position);
        values.iter().zip(0..).filter(is_left).count()
    }

    /// Keeps exactly the `count` largest logits, where there are as many.
    fn keep_best(&mut self, count: usize, ties: Ties) {
        self.list();
        let mut order: Vec<_> = self.buffers.ids.iter().copied().zip(self.buffers.values.iter().copied()).collect();
        if order.len() <= count {
            return;
        }
        let by_rank = |a: &(u32, f32), b: &(u32, f32)| {
            let by_id = if ties == Ties::Lowest { a.0.cmp(&b.0) } else { b.0.cmp(&a.0) };
            select::numerically(b.1, a.1).then(by_id)
        };
        let last = *order.select_nth_unstable_by(count - 1, by_rank).1;
        self.filter(|id, value, _| by_rank(&(id, value), &last).is_le());
    }

    /// Keeps tokens whose key, in `keys` of the scratch, is at most `bound`: any, but at least one; and the `least` with
    /// the smallest keys, by position among equals.
    pub fn keep_keys_up_to(&mut self, bound: f32, least: usize) {
        self.settle();
        if least > 1 && self.keep_least_keys(bound, least) {
            return;
        }
        let Buffers { copy, ids, values, positions, scratch, .. } = &mut *self.buffers;
        let keys = &scratch.keys;
        if self.form == Form::List {
            kernels::positions_up_to(values, keys, bound, positions);
            // Positions ascend, so nothing is overwritten before it is read.
            for (place, &position) in positions.iter().enumerate() {
                ids[place] = ids[position as usize];
                values[place] = values[position as usize];
            }
            ids.truncate(positions.len());
            values.truncate(positions.len());
        } else {
            let row: &[f32] = if self.form == Form::Copy { copy } else { self.row };
            kernels::positions_up_to(row, keys, bound, ids);
            values.clear();
            values.extend(ids.iter().filter_map(|&id| row.get(id as usize)));
            self.form = Form::List;
        }
        self.max = self.buffers.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }

    /// Keeps the `least` tokens with the smallest keys, unless at least as many have one up to `bound`.
    fn keep_least_keys(&mut self, bound: f32, least: usize) -> bool {
        let (values, scratch) = self.values();
        let keyed = values.iter().zip(&scratch.keys).zip(0_u32..).filter(|((value, _), _)| **value >= f32::MIN);
        let mut order: Vec<_> = keyed.map(|((_, &key), position)| (key, position)).collect();
        if order.iter().filter(|(key, _)| *key <= bound).count() >= least {
            return false;
        }
        if order.len() > least {
            let by_rank = |a: &(f32, u32), b: &(f32, u32)| select::numerically(a.0, b.0).then(a.1.cmp(&b.1));
            order.select_nth_unstable_by(least - 1, by_rank);
            order.truncate(least);
        }
        let ids = order.iter().map(|&(_, position)| self.id_at(position as usize)).collect();
        self.keep_ids(ids);
        true
    }

    /// Keeps these tokens: any of the candidates, but at least one.
    pub fn keep_ids(&mut self, mut ids: Vec<u32>) {
        ids.sort_unstable();
        self.list();
        self.filter(|id, _, _| ids.binary_search(&id).is_ok());
        self.max = self.buffers.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }

    /// Ids of the `count` largest logits, lower ids first among equals, in any order; none is removed.
    pub fn best_ids(&mut self, count: usize) -> Vec<u32> {
        let (values, _) = self.values();
        let mut order: Vec<_> = (0_u32..).zip(values.iter().copied()).filter(|&(_, value)| value >= f32::MIN).collect();
        if order.len() > count {
            let by_rank = |a: &(u32, f32), b: &(u32, f32)| select::numerically(b.1, a.1).then(a.0.cmp(&b.0));
            order.select_nth_unstable_by(count, by_rank);
            order.truncate(count);
        }
        order.iter().map(|&(position, _)| self.id_at(position as usize)).collect()
    }

    /// Keeps the `count` largest logits (`count >= 1`) and their ties, and returns the first `count`, largest first,
    /// lower ids first among equals.
    pub fn ranked(&mut self, count: usize) -> Vec<(u32, f32)> {
        self.keep_top(count);
        self.list();
        let mut order: Vec<_> = self.buffers.ids.iter().copied().zip(self.buffers.values.iter().copied()).collect();
        order.sort_by(|a, b| select::numerically(b.1, a.1).then(a.0.cmp(&b.0)));
        order.truncate(count);
        order
    }
}
