//! One step for a whole batch: processors, choice, detokenization and stop checks, row by row.

mod checks;
mod explain;
mod prompt;
mod verify;

pub use checks::BatchError;
pub use prompt::PromptError;
pub use verify::Drafted;

use crate::generation::{Emission, Generation};
use crate::logits::candidates::{Buffers, Candidates, RowError};
use crate::logits::explanation::{Explanation, TraceMemory};
use crate::logits::kernels::Scan;
use crate::logits::logprobs::{self, Logprobs};
use crate::logits::{eos, guidance, kernels};
use checks::{check_batch, check_scale, check_shape};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// From this many logits in a batch on, rows may be spread over threads: below, starting them costs more than it saves.
const THREADS_FROM: usize = 1 << 20;

/// A row that is explained counts as this many others: it is looked at again behind every processor and warper.
const EXPLAINED_COST: usize = 20;

/// Logits of a batch, `[rows, V]`, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// As numbers.
    F32(&'a [f32]),
    /// As the bits of bfloat16.
    Bf16(&'a [u16]),
}

impl<'a> Logits<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(bits) => bits.len(),
        }
    }

    /// Rows `first..first + count`, each of `width`; empty where there are none.
    pub(crate) fn rows(self, first: usize, count: usize, width: usize) -> Self {
        let range = first * width..(first + count) * width;
        match self {
            Self::F32(values) => Self::F32(values.get(range).unwrap_or_default()),
            Self::Bf16(bits) => Self::Bf16(bits.get(range).unwrap_or_default()),
        }
    }

    /// As `f32`, widened into `buffer` if need be.
    pub(crate) fn widened<'b>(self, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => values,
            Self::Bf16(bits) => {
                kernels::widen(bits, buffer);
                buffer
            }
        }
    }
}

/// Logits `[rows, width]` of a batch: the generations' own rows, then those that guide some of them.
#[derive(Debug, Clone, Copy)]
struct Batch<'a> {
    logits: Logits<'a>,
    width: usize,
    /// Per generation the row without its prompt; empty where no generation has one.
    guidance: &'a [Option<usize>],
}

impl<'a> Batch<'a> {
    fn rows_of(self, index: usize) -> Rows<'a> {
        let row = |index| self.logits.rows(index, 1, self.width);
        Rows { own: row(index), unconditional: self.guidance.get(index).copied().flatten().map(row) }
    }
}

/// What one generation's next token is chosen from, each `[V]`.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    own: Logits<'a>,
    unconditional: Option<Logits<'a>>,
}

impl<'a> Rows<'a> {
    /// The unconditional row. None for a healed token: it belongs to the prompt, which guidance does not choose.
    fn guiding(self, generation: &Generation) -> Option<Logits<'a>> {
        self.unconditional.filter(|_| !generation.is_healing())
    }

    /// Writes `row` `[V]`, which comes with its scan, to `guided` as the unconditional row guides it. Whether one does.
    fn guide(
        self,
        row: (&[f32], Scan),
        generation: &Generation,
        (widened, buffers): (&mut Vec<f32>, &mut Buffers),
        guided: &mut Vec<f32>,
    ) -> bool {
        let Some(unconditional) = self.guiding(generation) else { return false };
        let other = unconditional.widened(widened);
        guidance::guide(row, (other, buffers.scan(other)), generation.sampling().guidance_scale, guided);
        true
    }
}

/// What a row gave.
struct Choice {
    token: u32,
    logprobs: Option<Logprobs>,
    explanation: Option<Box<Explanation>>,
    eos_probability: f64,
}

/// Memory of one thread, reused from row to row.
#[derive(Debug, Default)]
struct Worker {
    widened: Vec<f32>,
    unconditional: Vec<f32>,
    edited: Vec<f32>,
    buffers: Buffers,
    traces: TraceMemory,
}

/// Chooses and appends tokens.
#[derive(Debug)]
pub struct Sampler {
    threads: NonZero<usize>,
    workers: Vec<Worker>,
}

impl Sampler {
    /// A sampler that works with at most `threads` threads, the caller's included; its memory grows with the first
    /// rows.
    #[must_use]
    pub fn new(threads: NonZero<usize>) -> Self {
        Self { threads, workers: Vec::new() }
    }

    /// Chooses and appends one token per row of `logits` `[generations.len(), width]`.
    ///
    /// With `guidance`, one entry per generation, `logits` has more rows behind these, and an entry is the index of the
    /// row that the same model gives without the prompt; every generation whose guidance scale is not 1 needs one, and
    /// no other may have one.
    ///
    /// A row's result does not depend on the other rows. A row without a usable token fails alone, and so does one
    /// whose step panics.
    ///
    /// # Errors
    /// On a shape mismatch or a finished generation; then nothing has changed.
    pub fn step(
        &mut self,
        logits: Logits<'_>,
        width: usize,
        generations: &mut [&mut Generation],
        guidance: Option<&[Option<usize>]>,
    ) -> Result<Vec<Emission>, BatchError> {
        let rows = generations.len();
        check_batch(logits, width, generations.iter().map(|generation| &**generation), guidance)?;
        if let Some(index) = generations.iter().position(|generation| generation.is_finished()) {
            return Err(BatchError::Finished(index));
        }
        let batch = Batch { logits, width, guidance: guidance.unwrap_or_default() };
        let explained = generations.iter().filter(|generation| generation.is_explained()).count();
        let threads = self.threads_for(logits.len() + explained * (EXPLAINED_COST - 1) * width, rows);
        self.workers.resize_with(self.workers.len().max(threads), Worker::default);
        let share = rows.div_ceil(threads).max(1);
        let mut emissions = Vec::with_capacity(rows);
        std::thread::scope(|scope| {
            let mut parts = generations.chunks_mut(share).zip(&mut self.workers).zip((0..).step_by(share));
            let own = parts.next();
            let others: Vec<_> =
                parts.map(|((part, worker), first)| scope.spawn(move || worker.step(batch, first, part))).collect();
            if let Some(((part, worker), first)) = own {
                emissions.extend(worker.step(batch, first, part));
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

    /// Threads for the work of `logits` plain logits in `rows` sequences.
    fn threads_for(&self, logits: usize, rows: usize) -> usize {
        if logits < THREADS_FROM { 1 } else { self.threads.get().min(rows.max(1)) }
    }

    /// What the draw (or the greedy choice) of the next step sees: all V logits after processors and warpers,
    /// -infinity for tokens that were removed. Changes nothing.
    ///
    /// # Errors
    /// On a shape mismatch; the inner error where the step would fail the row.
    pub fn processed_logits(
        &mut self,
        logits: Logits<'_>,
        unconditional: Option<Logits<'_>>,
        generation: &Generation,
    ) -> Result<Result<Vec<f32>, RowError>, BatchError> {
        let width = logits.len();
        for row in std::iter::once(logits).chain(unconditional) {
            check_shape(row, 1, width, std::iter::once(generation))?;
        }
        check_scale(0, generation, unconditional.is_some())?;
        self.workers.resize_with(self.workers.len().max(1), Worker::default);
        let mut processed = vec![0.0; width];
        let rows = Rows { own: logits, unconditional };
        let result = self.workers.iter_mut().take(1).try_for_each(|worker| {
            worker.candidates(rows, generation).map(|(mut candidates, _)| candidates.write_to(&mut processed))
        });
        Ok(result.map(|()| processed))
    }
}

impl Worker {
    fn step(&mut self, batch: Batch<'_>, first: usize, generations: &mut [&mut Generation]) -> Vec<Emission> {
        let rows = generations.iter_mut().zip(first..);
        rows.map(|(generation, index)| self.isolated_row(batch.rows_of(index), generation)).collect()
    }

    /// One row, whose panic ends its own sequence alone.
    fn isolated_row(&mut self, rows: Rows<'_>, generation: &mut Generation) -> Emission {
        // What a panic leaves half changed is used no more: the memory is dropped, the sequence is finished.
        catch_unwind(AssertUnwindSafe(|| self.row(rows, generation))).unwrap_or_else(|_| {
            *self = Self::default();
            generation.abandon()
        })
    }

    fn row(&mut self, rows: Rows<'_>, generation: &mut Generation) -> Emission {
        match self.choose(rows, generation) {
            Ok(choice) => {
                generation.note_eos_probability(choice.eos_probability);
                generation.advance(choice.token, choice.logprobs, choice.explanation)
            }
            Err(error) => generation.fail(error),
        }
    }

    fn choose(&mut self, rows: Rows<'_>, generation: &Generation) -> Result<Choice, RowError> {
        let sampling = generation.sampling();
        let (mut candidates, eos_probability) = self.candidates(rows, generation)?;
        let token = if generation.is_drawn() { candidates.draw(generation.uniform()) } else { candidates.best() };
        let logprobs = match sampling.logprobs {
            None => None,
            Some(count) if sampling.processed_logprobs => Some(logprobs::of_candidates(candidates, token, count)),
            Some(count) => {
                let mut raw = rows.own.widened(&mut self.widened);
                if generation.pipeline().mends_nan() {
                    self.edited.clear();
                    self.edited.extend_from_slice(raw);
                    kernels::mend(&mut self.edited);
                    raw = &self.edited;
                }
                Some(logprobs::of_row(raw, token, count, &mut self.buffers)?)
            }
        };
        let explanation = generation.is_explained().then(|| Box::new(self.explain(rows, generation, token)));
        Ok(Choice { token, logprobs, explanation, eos_probability })
    }

    /// Runs guidance, processors and warpers over one row; beside what is left, how likely an EOS token was in the row
    /// as it came.
    fn candidates<'a>(
        &'a mut self,
        rows: Rows<'a>,
        generation: &Generation,
    ) -> Result<(Candidates<'a>, f64), RowError> {
        let (pipeline, history) = (generation.pipeline(), generation.history());
        let mut row = rows.own.widened(&mut self.widened);
        let edits = pipeline.edits(history);
        let copies = edits && rows.guiding(generation).is_none();
        let mut scan = if copies { self.buffers.scan_copying(row, &mut self.edited) } else { self.buffers.scan(row) };
        // A processor could hide a NaN, so it is looked for before.
        if scan.has_nan && !pipeline.mends_nan() {
            return Err(RowError::Nan);
        }
        let eos_probability = match generation.watched_eos() {
            [] => 0.0,
            ids => eos::probability(ids, row, scan, self.buffers.maxima()),
        };
        let memory = (&mut self.unconditional, &mut self.buffers);
        let is_guided = rows.guide((row, scan), generation, memory, &mut self.edited);
        if edits || is_guided {
            pipeline.process(history, &mut self.edited);
            row = &self.edited;
            scan = self.buffers.scan(row);
        }
        let mut candidates = Candidates::scanned(row, scan, &mut self.buffers)?;
        pipeline.warp(history, &mut candidates);
        Ok((candidates, eos_probability))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::{EXPLAINED_COST, Logits, Sampler, THREADS_FROM};
    use crate::generation::{Emission, Generation, Place, StepError};
    use crate::params::{SamplingOptions, SamplingParams, StoppingOptions, StoppingParams};
    use crate::tokenizer::Tokenizer;
    use std::num::NonZero;
    use std::sync::Arc;

    /// Generations of words, one per row, each with its own draws.
    pub(crate) fn generations(rows: usize, width: usize) -> Vec<Generation> {
        generations_with(rows, width, false)
    }

    /// The same, explained or not.
    pub(crate) fn generations_with(rows: usize, width: usize, explain: bool) -> Vec<Generation> {
        let file = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;
        let tokenizer = Arc::new(Tokenizer::from_json(file).unwrap());
        let width = i64::try_from(width).unwrap();
        let options = SamplingOptions { do_sample: true, explain, ..SamplingOptions::new(width) };
        let sampling = Arc::new(SamplingParams::new(&options).unwrap());
        let stopping = Arc::new(StoppingParams::new(&StoppingOptions::new(width, 9)).unwrap());
        let make = |row| Generation::new(tokenizer.clone(), &[0], sampling.clone(), stopping.clone(), row, true);
        (0..rows as u64).map(|row| make(row).unwrap()).collect()
    }

    fn step(sampler: &mut Sampler, logits: &[f32], width: usize, generations: &mut [Generation]) -> Vec<Emission> {
        let mut borrowed: Vec<&mut Generation> = generations.iter_mut().collect();
        sampler.step(Logits::F32(logits), width, &mut borrowed, None).unwrap()
    }

    #[test]
    fn explained_rows_are_spread_over_threads_sooner() {
        // Of all the work that pays for threads, each row is this part: plain too little, explained enough.
        let (rows, width) = (4, THREADS_FROM / (2 * EXPLAINED_COST));
        let logits = vec![0.0; rows * width];
        for (explain, expected) in [(false, 1), (true, 3)] {
            let mut sampler = Sampler::new(NonZero::new(3).unwrap());
            step(&mut sampler, &logits, width, &mut generations_with(rows, width, explain));
            assert_eq!(sampler.workers.len(), expected, "explain {explain}");
        }
    }

    #[test]
    fn a_panic_ends_the_sequence_of_its_own_row_alone() {
        for (width, threads) in [(16, 1), (THREADS_FROM / 8, 3)] {
            for place in [Place::Draw, Place::Advance] {
                let (rows, broken) = (9, 4);
                let logits: Vec<f32> = (0_u8..7).cycle().map(f32::from).take(rows * width).collect();
                let mut sampler = Sampler::new(NonZero::new(threads).unwrap());
                let expected = step(&mut sampler, &logits, width, &mut generations(rows, width));
                let mut batch = generations(rows, width);
                batch[broken].panic_at(place);
                let got = step(&mut sampler, &logits, width, &mut batch);
                for (row, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let expected = if row == broken { Err(StepError::Internal) } else { expected.token };
                    assert_eq!(got.token, expected, "row {row}, {place:?}");
                    assert_eq!(batch[row].is_finished(), row == broken);
                }
                // The sampler goes on with the others.
                batch.remove(broken);
                let next = step(&mut sampler, &logits[width..], width, &mut batch);
                assert!(next.iter().all(|emission| emission.token.is_ok()));
            }
        }
    }
}
