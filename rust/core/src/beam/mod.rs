//! Beam search and beam sampling, equal to transformers' `_beam_search` (5.23) over one prompt.
//!
//! One [`BeamSearch`] is the state of a request. A step takes the logits behind all its beams and says how they go on:
//! for each next beam the beam that it continues and its new token. What the caller keeps per beam (keys and values) it
//! rearranges by that.
//!
//! A step, as there: log-softmax per beam, processors and warpers on it, plus the beam's score so far; of all
//! `num_beams * V` continuations the best, or drawn ones, twice as many as beams (more with several ending tokens, so
//! that enough do not end); those that end, if among the first `num_beams`, become finished sequences with their score
//! divided by length to the power of `length_penalty`; the best that do not end are the next beams.

mod candidates;
mod params;

pub use params::{BeamOptions, EarlyStopping, MAX_LENGTH_PENALTY};

use crate::detokenizer::Detokenizer;
use crate::error;
use crate::generation::{FinishReason, StepError};
use crate::logits::candidates::{Buffers, Candidates, RowError};
use crate::logits::history::History;
use crate::logits::{Pipeline, Settings};
use crate::params::{SamplingParams, StoppingParams, checked_ids};
use crate::rng;
use crate::sampler::{BatchError, Logits};
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;
use candidates::{Best, Continuation, draw, log_softmax};
use params::BeamParams;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What transformers adds to scores that must not be chosen.
const OUT_OF_REACH: f32 = -1e9;

/// One returned sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Generated tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// Their text, up to the stop string that matched.
    pub text: String,
    /// Why the sequence ended; `None`: because its search was told that this step is the last.
    pub finish: Option<FinishReason>,
    /// Summed log probability over length to the power of the length penalty: transformers' `sequences_scores`.
    pub score: f32,
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The search goes on.
    Next {
        /// For each next beam the beam that it continues; 0 behind the prompt.
        parents: Vec<usize>,
        /// For each next beam its new token.
        tokens: Vec<u32>,
    },
    /// The search is over; the returned sequences, best first.
    Done(Vec<Answer>),
    /// The search is over, because a row of logits cannot be used.
    Failed(StepError),
}

/// A sequence that is being generated.
#[derive(Clone)]
struct Beam {
    history: History,
    /// What finds stop strings, where there are any.
    watch: Option<Watch>,
    score: f32,
}

/// Looks for stop strings in a beam's text.
#[derive(Clone)]
struct Watch {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
}

impl Watch {
    /// Whether `token` completes a stop string.
    fn push(&mut self, token: u32) -> bool {
        let (mut piece, mut text) = (String::new(), String::new());
        self.detokenizer.push(token, &mut piece);
        self.matcher.push(&piece, &mut text).is_some() || self.matcher.would_match(|| self.detokenizer.held())
    }
}

/// A finished sequence.
struct Finished {
    tokens: Vec<u32>,
    score: f32,
}

/// The state of one beam search.
pub struct BeamSearch {
    sampling: Arc<SamplingParams>,
    stopping: Arc<StoppingParams>,
    params: BeamParams,
    pipeline: Pipeline,
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    sequence_index: u64,
    /// Running beams, best first; before the first step the prompt alone.
    beams: Vec<Beam>,
    /// At most `num_beams`, best first.
    finished: Vec<Finished>,
    is_over: bool,
    memory: Memory,
}

/// Reused from row to row.
#[derive(Default)]
struct Memory {
    widened: Vec<f32>,
    maxima: Vec<f32>,
    logprobs: Vec<f32>,
    buffers: Buffers,
}

impl BeamSearch {
    /// Starts behind `prompt_ids`. Searches of one seed differ in `sequence_index`.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidParameters`] for options outside their range and ids outside the vocabulary.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt_ids: &[i64],
        sampling: Arc<SamplingParams>,
        stopping: Arc<StoppingParams>,
        options: &BeamOptions,
        sequence_index: u64,
        skip_special_tokens: bool,
    ) -> error::Result<Self> {
        let params = BeamParams::new(options)?;
        let prompt = checked_ids("prompt_ids", prompt_ids, sampling.vocab_size)?;
        let watch = (!stopping.stop_strings.is_empty()).then(|| Watch {
            detokenizer: Detokenizer::new(tokenizer.clone(), skip_special_tokens),
            matcher: StopMatcher::new(stopping.stop_automaton().clone()),
        });
        Ok(Self {
            pipeline: Pipeline::new(&Settings { sampling: &sampling, stopping: &stopping }),
            beams: vec![Beam { history: History::new(prompt), watch, score: 0.0 }],
            finished: Vec::new(),
            is_over: false,
            memory: Memory::default(),
            sampling,
            stopping,
            params,
            tokenizer,
            skip_special_tokens,
            sequence_index,
        })
    }

    /// Whether the last step was taken.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes the logits `[rows, width]` behind the beams, one row behind the prompt and `num_beams` from then on.
    ///
    /// With `is_last` every continuation ends with this step, as by transformers' `MaxTimeCriteria`. A panic ends this
    /// search alone.
    ///
    /// # Errors
    /// On a shape mismatch or when the search is over; then nothing has changed.
    pub fn step(&mut self, logits: Logits<'_>, width: usize, is_last: bool) -> Result<Step, BatchError> {
        let (rows, vocab_size) = (self.beams.len(), self.sampling.vocab_size);
        if self.is_over {
            return Err(BatchError::Finished(0));
        }
        if rows.checked_mul(width) != Some(logits.len()) {
            return Err(BatchError::Shape { count: logits.len(), rows, width });
        }
        if vocab_size != width {
            return Err(BatchError::Width { width, index: 0, vocab_size });
        }
        let step = catch_unwind(AssertUnwindSafe(|| self.take(logits, width, is_last)))
            .unwrap_or(Ok(Step::Failed(StepError::Internal)))
            .unwrap_or_else(|error| Step::Failed(error.into()));
        self.is_over = !matches!(step, Step::Next { .. });
        Ok(step)
    }

    fn take(&mut self, logits: Logits<'_>, width: usize, is_last: bool) -> Result<Step, RowError> {
        let continuations = self.continuations(logits, width)?;
        let length = self.beams.first().map_or(0, |beam| beam.history.generated().len()) + 1;
        let ends: Vec<bool> = continuations
            .iter()
            .map(|continuation| is_last || length >= self.stopping.max_new_tokens || self.ends(continuation))
            .collect();
        self.finish(&continuations, &ends, length);
        let next = self.next_beams(&continuations, &ends);
        let is_over = ends.iter().all(|&ends| ends) || !self.can_improve(next.first(), length);
        if is_over {
            return Ok(Step::Done(self.answers()));
        }
        let parents = next.iter().map(|continuation| continuation.beam).collect();
        let tokens = next.iter().map(|continuation| continuation.token).collect();
        self.advance(&next);
        Ok(Step::Next { parents, tokens })
    }

    /// Continuations to look at: by score, or in the order in which they were drawn.
    fn continuations(&mut self, logits: Logits<'_>, width: usize) -> Result<Vec<Continuation>, RowError> {
        let num_beams = self.params.num_beams;
        let num_ends = self.stopping.eos_token_ids.len() + self.stopping.stop_token_ids.len();
        let count = ((num_ends + 1).max(2) * num_beams).min(num_beams * width);
        let mut best = Best::new(count);
        let mut offered = Vec::new();
        let is_first = self.beams.len() == 1;
        for (place, beam) in self.beams.iter().enumerate() {
            self.memory.process(logits.rows(place, 1, width), &self.pipeline, &beam.history)?;
            // transformers starts with the prompt in every beam, and all but the first out of reach.
            let equals = if is_first { num_beams } else { 1 };
            for (beam, running) in (place..place + equals).zip(first_and(beam.score, OUT_OF_REACH)) {
                if self.sampling.do_sample {
                    let scored = (0..).zip(&self.memory.logprobs).map(|(token, &logprob)| (token, logprob + running));
                    let possible = scored.filter(|&(_, score)| score > f32::NEG_INFINITY);
                    offered.extend(possible.map(|(token, score)| Continuation { beam, token, score }));
                } else {
                    best.offer(beam, running, &self.memory.logprobs);
                }
            }
        }
        let mut continuations = if self.sampling.do_sample {
            let step = self.beams.first().map_or(0, |beam| beam.history.generated().len());
            let mut uniforms = rng::uniforms(self.sampling.seed, self.sequence_index, step as u64);
            let mut drawn = draw(offered, count, || uniforms.next().unwrap_or_default());
            // There must be enough to go on with, be they impossible.
            let impossible = (0..).map(|token| Continuation { beam: 0, token, score: f32::NEG_INFINITY });
            drawn.extend(impossible.take(count - drawn.len()));
            drawn
        } else {
            best.into_kept()
        };
        if continuations.iter().all(|continuation| continuation.score == f32::NEG_INFINITY) {
            return Err(RowError::NoTokenAllowed);
        }
        if is_first {
            // All beams were the prompt.
            for continuation in &mut continuations {
                continuation.beam = 0;
            }
        }
        Ok(continuations)
    }

    /// Whether a continuation ends by its token or by a stop string.
    fn ends(&self, continuation: &Continuation) -> bool {
        let token = continuation.token;
        FinishReason::by_token(&self.stopping, token).is_some()
            || self.beams[continuation.beam].watch.clone().is_some_and(|mut watch| watch.push(token))
    }

    /// Takes over what ends among the first `num_beams`; the others are only there so that enough go on.
    fn finish(&mut self, continuations: &[Continuation], ends: &[bool], length: usize) {
        let num_beams = self.params.num_beams;
        let penalty = self.penalty(length);
        for (continuation, _) in continuations.iter().zip(ends).take(num_beams).filter(|(_, ends)| **ends) {
            let history = &self.beams[continuation.beam].history;
            let mut tokens = history.generated().to_vec();
            tokens.push(continuation.token);
            self.finished.push(Finished { tokens, score: continuation.score / penalty });
        }
        // Stable: among equals the one that was there before.
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(num_beams);
    }

    /// The best continuations, those that end last.
    fn next_beams(&self, continuations: &[Continuation], ends: &[bool]) -> Vec<Continuation> {
        let scored = continuations.iter().zip(ends);
        let mut next: Vec<Continuation> = scored
            .map(|(&continuation, &ends)| {
                let score = continuation.score + if ends { OUT_OF_REACH } else { 0.0 };
                Continuation { score, ..continuation }
            })
            .collect();
        next.sort_by(|a, b| b.score.total_cmp(&a.score));
        next.truncate(self.params.num_beams);
        next
    }

    /// Whether a running beam may still displace a finished sequence: transformers' `_check_early_stop_heuristic`.
    fn can_improve(&self, best: Option<&Continuation>, length: usize) -> bool {
        let is_full = self.finished.len() == self.params.num_beams;
        if is_full && self.params.early_stopping == EarlyStopping::Full {
            return false;
        }
        let at_limit = self.params.early_stopping == EarlyStopping::Never && self.params.length_penalty > 0.0;
        let length = if at_limit { self.stopping.max_new_tokens } else { length };
        let worst = if is_full { self.finished.last().map(|finished| finished.score) } else { None };
        best.is_some_and(|best| best.score / self.penalty(length) > worst.unwrap_or(OUT_OF_REACH))
    }

    /// `length ** length_penalty`, in double precision and then in that of the scores, as torch divides.
    fn penalty(&self, length: usize) -> f32 {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Lengths are far below 2^53.
        let penalty = (length as f64).powf(self.params.length_penalty) as f32;
        penalty
    }

    fn advance(&mut self, next: &[Continuation]) {
        let beams = next.iter().map(|continuation| {
            let mut beam = self.beams[continuation.beam].clone();
            beam.history.push(continuation.token);
            if let Some(watch) = &mut beam.watch {
                watch.push(continuation.token);
            }
            beam.score = continuation.score;
            beam
        });
        self.beams = beams.collect();
    }

    fn answers(&self) -> Vec<Answer> {
        let returned = self.finished.iter().take(self.params.num_return_sequences);
        let mut answers: Vec<Answer> = returned.map(|finished| self.answer(&finished.tokens, finished.score)).collect();
        // Where fewer ended because too few tokens were allowed, transformers returns the prompt alone.
        answers.resize_with(self.params.num_return_sequences, || self.answer(&[], OUT_OF_REACH));
        answers
    }

    /// Text and reason, as a sequence on its own would get them.
    fn answer(&self, tokens: &[u32], score: f32) -> Answer {
        let mut detokenizer = Detokenizer::new(self.tokenizer.clone(), self.skip_special_tokens);
        let mut matcher = StopMatcher::new(self.stopping.stop_automaton().clone());
        let (mut piece, mut text, mut stop) = (String::new(), String::new(), None);
        for &token in tokens {
            piece.clear();
            detokenizer.push(token, &mut piece);
            stop = stop.or(matcher.push(&piece, &mut text));
        }
        piece.clear();
        detokenizer.finish(&mut piece);
        stop = stop.or(matcher.push(&piece, &mut text));
        matcher.finish(&mut text);
        let by_token = tokens.last().and_then(|&token| FinishReason::by_token(&self.stopping, token));
        let by_string = stop.and_then(|index: usize| self.stopping.stop_strings.get(index).cloned());
        let is_full = tokens.len() >= self.stopping.max_new_tokens;
        let finish = by_token.or(by_string.map(FinishReason::StopString)).or(is_full.then_some(FinishReason::Length));
        Answer { tokens: tokens.to_vec(), text, finish, score }
    }
}

impl Memory {
    /// Leaves in `logprobs` what transformers adds to a beam's score: log-softmax, processed, narrowed.
    fn process(&mut self, row: Logits<'_>, pipeline: &Pipeline, history: &History) -> Result<(), RowError> {
        let Self { widened, maxima, logprobs, buffers } = self;
        let row = row.widened(widened);
        match log_softmax(row, maxima, logprobs) {
            // The log-softmax of a row with NaN is NaN throughout; a processor mends it.
            Err(RowError::Nan) if pipeline.mends_nan() => {
                logprobs.clear();
                logprobs.resize(row.len(), f32::NAN);
            }
            result => result?,
        }
        if pipeline.edits(history) {
            pipeline.process(history, logprobs);
        }
        // The view of the row must end before it is written.
        widened.clear();
        widened.extend_from_slice(logprobs);
        match Candidates::new(widened, buffers) {
            Ok(mut candidates) => {
                pipeline.warp(history, &mut candidates);
                candidates.write_to(logprobs);
                Ok(())
            }
            // Other beams may still have a token.
            Err(RowError::NoTokenAllowed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// `first`, then `other` for ever.
fn first_and(first: f32, other: f32) -> impl Iterator<Item = f32> {
    std::iter::once(first).chain(std::iter::repeat(other))
}
