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
    }

    /// Gives each token the logit that `change` makes from its id and its logit: not NaN, never +infinity, and not
    /// -infinity for all.
    fn rewrite(&mut self, change: impl Fn(u32, f32) -> f32) {
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
