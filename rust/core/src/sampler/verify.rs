//! A step in which sequences bring drafted tokens: guesses of what they will generate next.

use super::checks::{BatchError, check_scale, check_widths};
use super::{EXPLAINED_COST, Logits, Rows, Sampler, Worker};
use crate::generation::{Emission, Generation};

/// A sequence and the tokens that somebody guessed for it.
pub struct Drafted<'a> {
    /// The sequence.
    pub generation: &'a mut Generation,
    /// Guesses of its next tokens, in order; none for a sequence that is stepped as usual.
    pub draft: &'a [u32],
}

impl Drafted<'_> {
    /// Rows of logits: one behind the last token, and one behind each guess.
    fn positions(&self) -> usize {
        self.draft.len() + 1
    }
}

impl Sampler {
    /// Chooses and appends one token for each sequence, and goes on as long as its guesses come true.
    ///
    /// `logits` are `[positions, width]`, for each sequence one row behind its last token and one behind each guess, as
    /// if the guesses before had been generated. At each position the token is chosen as [`Sampler::step`] chooses it:
    /// with the history up to there, and with the random number of that step. Where it is the guess and does not end
    /// the sequence, the next row is its continuation; the first other token ends the turn. So each sequence gets one
    /// emission at least and one more than its guesses at most, and a wrong guess costs nothing but its row.
    ///
    /// # Exactness
    /// The tokens are those that steps without guesses give: not in distribution only, but each one, greedy or drawn,
    /// because the guess never enters the choice. It is rejection sampling all the same: a guess made with certainty is
    /// a proposal q with all its mass on one token d, which rejection sampling accepts with probability
    /// min(1, p(d) / q(d)) = p(d), and replaces by a draw from max(0, p - q), normalised, which is p without d. A draw
    /// from p is d with the same probability p(d), and given that it is not, it has that same distribution.
    ///
    /// # Errors
    /// As [`Sampler::step`]; then nothing has changed. Sequences with guidance are refused. A row without a usable token
    /// fails its sequence alone, in the last of its emissions, and so does one whose step panics.
    pub fn verify(
        &mut self,
        logits: Logits<'_>,
        width: usize,
        rows: &mut [Drafted<'_>],
    ) -> Result<Vec<Vec<Emission>>, BatchError> {
        let positions: usize = rows.iter().map(Drafted::positions).sum();
        if positions.checked_mul(width) != Some(logits.len()) {
            return Err(BatchError::Shape { count: logits.len(), rows: positions, width });
        }
        check_widths(width, rows.iter().map(|row| &*row.generation))?;
        for (index, row) in rows.iter().enumerate() {
            check_scale(index, row.generation, false)?;
        }
        if let Some(index) = rows.iter().position(|row| row.generation.is_finished()) {
            return Err(BatchError::Finished(index));
        }
        let explained: usize = rows.iter().filter(|row| row.generation.is_explained()).map(Drafted::positions).sum();
        let threads = self.threads_for(logits.len() + explained * (EXPLAINED_COST - 1) * width, rows.len());
        self.workers.resize_with(self.workers.len().max(threads), Worker::default);
        let share = rows.len().div_ceil(threads).max(1);
        let mut emissions = Vec::with_capacity(rows.len());
        std::thread::scope(|scope| {
            let mut first = 0;
            let mut parts = rows.chunks_mut(share).zip(&mut self.workers).map(|(part, worker)| {
                let count: usize = part.iter().map(Drafted::positions).sum();
                let logits = logits.rows(first, count, width);
                first += count;
                (part, worker, logits)
            });
            let own = parts.next();
            let others: Vec<_> =
                parts.map(|(part, worker, logits)| scope.spawn(move || worker.verify(logits, width, part))).collect();
            if let Some((part, worker, logits)) = own {
                emissions.extend(worker.verify(logits, width, part));
            }
            for other in others {
                match other.join() {
                    Ok(part) => emissions.extend(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        Ok(emissions)
    }
}

impl Worker {
    fn verify(&mut self, logits: Logits<'_>, width: usize, rows: &mut [Drafted<'_>]) -> Vec<Vec<Emission>> {
        let mut first = 0;
        let emissions = rows.iter_mut().map(|row| {
            let positions = row.positions();
            let emissions = self.verify_row(logits.rows(first, positions, width), width, row);
            first += positions;
            emissions
        });
        emissions.collect()
    }

    fn verify_row(&mut self, logits: Logits<'_>, width: usize, row: &mut Drafted<'_>) -> Vec<Emission> {
        let mut emissions = Vec::with_capacity(row.positions());
        for position in 0..row.positions() {
            let rows = Rows { own: logits.rows(position, 1, width), unconditional: None };
            let emission = self.isolated_row(rows, row.generation);
            let came_true = emission.token.ok() == row.draft.get(position).copied();
            emissions.push(emission);
            if !came_true || row.generation.is_finished() {
                break;
            }
        }
        emissions
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Drafted, Logits, Sampler};
    use crate::generation::{Emission, Generation, Place, StepError};
    use crate::sampler::tests::{generations, generations_with};
    use crate::sampler::{EXPLAINED_COST, THREADS_FROM};
    use std::num::NonZero;

    const GUESSES: usize = 3;

    /// Each row with guesses that come true up to its own number.
    fn verify(sampler: &mut Sampler, logits: &[f32], width: usize, batch: &mut [Generation]) -> Vec<Vec<Emission>> {
        // The same logits at every position of a row: the guesses are what a row of its own draws.
        let mut drafts = Vec::new();
        for (row, first) in logits.chunks(width * (GUESSES + 1)).enumerate() {
            let mut alone = generations(batch.len(), width);
            let mut draft = Vec::new();
            for position in first.chunks(width).take(GUESSES) {
                let emissions = sampler.step(Logits::F32(position), width, &mut [&mut alone[row]], None).unwrap();
                draft.push(emissions[0].token.unwrap() + u32::from(draft.len() == row % (GUESSES + 1)));
            }
            drafts.push(draft);
        }
        let pairs = batch.iter_mut().zip(&drafts);
        let mut rows: Vec<_> = pairs.map(|(generation, draft)| Drafted { generation, draft }).collect();
        sampler.verify(Logits::F32(logits), width, &mut rows).unwrap()
    }

    #[test]
    fn explained_rows_are_spread_over_threads_sooner() {
        let (rows, width) = (4, THREADS_FROM / (2 * EXPLAINED_COST));
        let logits = vec![0.0; rows * width];
        for (explain, expected) in [(false, 1), (true, 3)] {
            let mut batch = generations_with(rows, width, explain);
            let mut drafted: Vec<_> = batch.iter_mut().map(|generation| Drafted { generation, draft: &[] }).collect();
            let mut sampler = Sampler::new(NonZero::new(3).unwrap());
            sampler.verify(Logits::F32(&logits), width, &mut drafted).unwrap();
            assert_eq!(sampler.workers.len(), expected, "explain {explain}");
        }
    }

    #[test]
    fn a_panic_ends_the_sequence_of_its_own_row_alone() {
        for (width, threads) in [(16, 1), (THREADS_FROM / 8, 3)] {
            for place in [Place::Draw, Place::Advance] {
                let (rows, broken) = (5, 2);
                let logits: Vec<f32> = (0_u8..7).cycle().map(f32::from).take(rows * (GUESSES + 1) * width).collect();
                let mut sampler = Sampler::new(NonZero::new(threads).unwrap());
                let mut batch = generations(rows, width);
                batch[broken].panic_at(place);
                let got = verify(&mut sampler, &logits, width, &mut batch);
                for (row, emissions) in got.iter().enumerate() {
                    let last = emissions.last().unwrap();
                    if row == broken {
                        assert_eq!((emissions.len(), last.token), (1, Err(StepError::Internal)), "{place:?}");
                    } else {
                        assert_eq!(emissions.len(), row % (GUESSES + 1) + 1, "row {row}");
                        assert!(last.token.is_ok());
                    }
                    assert_eq!(batch[row].is_finished(), row == broken);
                }
            }
        }
    }
}
