//! Changes to the logits themselves.

use super::{Buffers, Candidates, Form};
use crate::logits::kernels;

impl Candidates<'_> {
    /// Turns logits into log probabilities.
    pub fn normalize(&mut self) {
        let max = self.max();
        #[allow(clippy::cast_possible_truncation)]
        let log_total = self.log_normalizer() as f32;
        self.rewrite(|_, logit| logit - max - log_total);
        self.removed = self.removed - max - log_total;
    }

    /// Gives all tokens, those that were removed included, the same logit.
    pub fn fill(&mut self, logit: f32) {
        let Buffers { maxima, copy, .. } = &mut *self.buffers;
        copy.clear();
        copy.resize(self.row.len(), logit);
        (self.form, self.floor, self.temperature) = (Form::Copy, None, 1.0);
        self.max = kernels::scan(copy, maxima).max;
    }

    /// Lets `change` write new logits for the tokens that are left, of which it gets the ids: not NaN, never +infinity
    /// and not -infinity for all. From then on those that were removed show as `removed`.
    pub fn rescore(&mut self, removed: f32, change: impl FnOnce(&[u32], &mut [f32])) {
        self.list();
        let Buffers { ids, values, .. } = &mut *self.buffers;
        change(ids, values);
        self.max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.removed = removed;
    }

    /// Gives each token the logit that `change` makes from its id and its logit: not NaN, never +infinity, and not
    /// -infinity for all.
    pub fn rewrite(&mut self, change: impl Fn(u32, f32) -> f32) {
        self.settle();
        let Buffers { maxima, copy, ids, values, .. } = &mut *self.buffers;
        if self.form == Form::List {
            for (&id, value) in ids.iter().zip(values.iter_mut()) {
                *value = change(id, *value);
            }
            self.max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            return;
        }
        if self.form == Form::Row {
            copy.clear();
            copy.extend_from_slice(self.row);
            self.form = Form::Copy;
        }
        for (id, value) in (0..).zip(copy.iter_mut()) {
            *value = change(id, *value);
        }
        self.max = kernels::scan(copy, maxima).max;
    }
}
