//! Which of all continuations of all beams are looked at: the best, or drawn ones.

use crate::logits::candidates::RowError;
use crate::logits::kernels;

/// One continuation: a beam, its next token, and the score of both together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Continuation {
    pub beam: usize,
    pub token: u32,
    pub score: f32,
}

/// Writes the log-softmax of `logits` `[V]` to `out`, in f32 as torch does.
///
/// Tokens at +infinity share the probability, as everywhere in this crate.
///
/// # Errors
/// When the row holds NaN or nothing above -infinity.
pub(super) fn log_softmax(logits: &[f32], maxima: &mut Vec<f32>, out: &mut Vec<f32>) -> Result<(), RowError> {
    let scan = kernels::scan(logits, maxima);
    if scan.has_nan {
        return Err(RowError::Nan);
    }
    out.clear();
    if scan.max == f32::NEG_INFINITY {
        return Err(RowError::NoTokenAllowed);
    }
    if scan.max == f32::INFINITY {
        #[allow(clippy::cast_precision_loss)] // A vocabulary is below 2^24, or the difference does not matter.
        let count = logits.iter().filter(|&&logit| logit == f32::INFINITY).count() as f32;
        out.extend(logits.iter().map(|&logit| if logit == f32::INFINITY { -count.ln() } else { f32::NEG_INFINITY }));
        return Ok(());
    }
    #[allow(clippy::cast_possible_truncation)]
    let log_sum = kernels::exp_sum(logits, scan.max, 1.0).ln() as f32;
    out.extend(logits.iter().map(|&logit| logit - scan.max - log_sum));
    Ok(())
}

/// The continuations with the highest scores, best first; among equals the one that was offered first.
#[derive(Debug)]
pub(super) struct Best {
    count: usize,
    kept: Vec<Continuation>,
}

impl Best {
    pub fn new(count: usize) -> Self {
        Self { count, kept: Vec::with_capacity(count + 1) }
    }

    /// Offers every continuation of `beam`, whose tokens have the log probabilities `logprobs` `[V]`.
    pub fn offer(&mut self, beam: usize, running: f32, logprobs: &[f32]) {
        let mut bar = self.bar();
        for (token, &logprob) in (0..).zip(logprobs) {
            let score = logprob + running;
            if bar.is_none_or(|bar| score > bar) {
                let place = self.kept.partition_point(|other| other.score >= score);
                self.kept.insert(place, Continuation { beam, token, score });
                self.kept.truncate(self.count);
                bar = self.bar();
            }
        }
    }

    /// The score to beat; `None` while there is room.
    fn bar(&self) -> Option<f32> {
        if self.kept.len() < self.count { None } else { self.kept.last().map(|last| last.score) }
    }

    pub fn into_kept(self) -> Vec<Continuation> {
        self.kept
    }
}

/// Draws `count` of `offered` without replacement, each with the probability that the softmax of the scores of those
/// still there gives it: the distribution, order included, of `torch.multinomial` over the softmax of all.
///
/// Where fewer have any probability, the others follow by score, as offered among equals.
pub(super) fn draw(
    mut offered: Vec<Continuation>,
    count: usize,
    mut uniform: impl FnMut() -> f64,
) -> Vec<Continuation> {
    let max = offered.iter().map(|continuation| continuation.score).fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> =
        offered.iter().map(|continuation| f64::from(continuation.score - max).exp()).map(or_zero).collect();
    let mut drawn = Vec::with_capacity(count);
    while drawn.len() < count {
        let total: f64 = weights.iter().sum();
        let mut left = uniform() * total;
        let mut chosen = None;
        for (place, &weight) in weights.iter().enumerate().filter(|&(_, &weight)| weight > 0.0) {
            // Rounding may leave a little behind the last one.
            chosen = Some(place);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        let Some(place) = chosen else { break };
        weights[place] = 0.0;
        drawn.push(offered[place]);
        offered[place].score = f32::NAN;
    }
    if drawn.len() < count {
        offered.retain(|continuation| !continuation.score.is_nan());
        offered.sort_by(|a, b| b.score.total_cmp(&a.score));
        drawn.extend(offered.into_iter().take(count - drawn.len()));
    }
    drawn
}

/// Scores at -infinity, all of them perhaps, have no probability.
fn or_zero(weight: f64) -> f64 {
    if weight.is_nan() { 0.0 } else { weight }
}

#[cfg(test)]
mod tests {
    use super::{Best, Continuation, draw};
    use crate::rng;

    fn continuations(scores: &[f32]) -> Vec<Continuation> {
        (0..).zip(scores).map(|(token, &score)| Continuation { beam: 0, token, score }).collect()
    }

    #[test]
    fn the_best_are_those_of_a_stable_sort() {
        let rows = [[-1.0, -3.0, -1.0, f32::NEG_INFINITY], [-1.0, 0.0, -3.0, -2.0]];
        let mut all: Vec<Continuation> = Vec::new();
        let mut best = Best::new(6);
        for (beam, row) in rows.iter().enumerate() {
            best.offer(beam, -0.5, row);
            all.extend((0..).zip(row).map(|(token, &score)| Continuation { beam, token, score: score - 0.5 }));
        }
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all.truncate(6);
        assert_eq!(best.into_kept(), all);
    }

    #[test]
    fn draws_follow_the_distribution_of_drawing_without_replacement() {
        // P(first a, then b) = p_a * p_b / (1 - p_a).
        let probabilities = [0.5_f64, 0.3, 0.15, 0.05];
        #[allow(clippy::cast_possible_truncation)]
        let scores: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
        let rounds = 40_000_u32;
        let mut counts = [[0.0_f64; 4]; 4];
        for round in 0..rounds {
            let mut uniforms = rng::uniforms(3, 0, u64::from(round));
            let drawn = draw(continuations(&scores), 2, || uniforms.next().unwrap_or_default());
            counts[drawn[0].token as usize][drawn[1].token as usize] += 1.0;
        }
        let mut chi_square = 0.0;
        for first in 0..4 {
            for second in (0..4).filter(|&second| second != first) {
                let p = probabilities[first] * probabilities[second] / (1.0 - probabilities[first]);
                let expected = p * f64::from(rounds);
                chi_square += (counts[first][second] - expected).powi(2) / expected;
            }
        }
        // 11 degrees of freedom: 31.3 is passed once in a thousand times.
        assert!(chi_square < 31.3, "{chi_square}");
    }

    #[test]
    fn what_has_no_probability_comes_last_by_score() {
        let scores = [-1e9, 0.0, f32::NEG_INFINITY, -2e9, f32::NEG_INFINITY];
        let tokens: Vec<u32> = draw(continuations(&scores), 4, || 0.5).iter().map(|drawn| drawn.token).collect();
        assert_eq!(tokens, [1, 0, 3, 2]);
        let nothing = draw(continuations(&[f32::NEG_INFINITY; 2]), 2, || 0.5);
        assert_eq!(nothing.len(), 2);
    }
}
