//! What is read off the candidates in the end.

use super::{Candidates, Form};
use crate::logits::kernels;

impl Candidates<'_> {
    /// Natural logarithm of the sum of `exp(logit - max)`.
    pub fn log_normalizer(&mut self) -> f64 {
        self.settle_floor();
        kernels::exp_sum(self.stored(), self.max, self.temperature.recip()).ln()
    }

    /// Log probability of `id`, given the [`Candidates::log_normalizer`]; -infinity for a token that was removed.
    #[must_use]
    pub fn logprob(&self, id: u32, log_normalizer: f64) -> f32 {
        let position = match self.form {
            Form::List => self.buffers.ids.binary_search(&id).ok(),
            _ => Some(id as usize),
        };
        let value = position.and_then(|position| self.stored().get(position)).copied();
        self.logprob_of(value.unwrap_or(f32::NEG_INFINITY), log_normalizer)
    }

    /// The place of `id` by probability, from 1; among equals the lower id comes first.
    #[must_use]
    pub fn rank(&self, id: u32) -> usize {
        let ids = &self.buffers.ids;
        match (self.form, ids.binary_search(&id)) {
            (Form::List, Ok(position)) => {
                let (value, position) = (self.buffers.values.get(position), u32::try_from(position));
                let (value, position) = (value.copied().unwrap_or(f32::NEG_INFINITY), position.unwrap_or(u32::MAX));
                kernels::count_ahead(&self.buffers.values, value, position) + 1
            }
            // All in the list, and of those removed the ones with lower ids.
            (Form::List, Err(listed_below)) => ids.len() + (id as usize - listed_below) + 1,
            _ => {
                let value = self.stored().get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
                kernels::count_ahead(self.stored(), value, id) + 1
            }
        }
    }

    fn logprob_of(&self, value: f32, log_normalizer: f64) -> f32 {
        let distance = (f64::from(value) - f64::from(self.max)) / f64::from(self.temperature);
        #[allow(clippy::cast_possible_truncation)]
        let logprob = (distance - log_normalizer) as f32;
        logprob.min(0.0)
    }

    /// The `count` most likely tokens with their log probabilities, best first, lower ids first among equals.
    ///
    /// Leaves no more than these and their ties: the last thing to ask.
    #[must_use]
    pub fn into_top(mut self, count: usize, log_normalizer: f64) -> Vec<(u32, f32)> {
        if count == 0 {
            return Vec::new();
        }
        let (max, temperature) = (self.max, std::mem::replace(&mut self.temperature, 1.0));
        let order = self.ranked(count);
        (self.max, self.temperature) = (max, temperature);
        order.into_iter().map(|(id, value)| (id, self.logprob_of(value, log_normalizer))).collect()
    }

    /// Writes all V logits as the draw sees them, -infinity (or what [`Candidates::rescore`] says) for tokens that were removed.
    pub fn write_to(&mut self, logits: &mut [f32]) {
        self.settle();
        if self.form == Form::List {
            logits.fill(self.removed);
            for (&id, &value) in self.buffers.ids.iter().zip(&self.buffers.values) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = value;
                }
            }
        } else {
            logits.copy_from_slice(self.stored());
        }
    }
}
