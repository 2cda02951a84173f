//! The state of one sequence: history, randomness, detokenizer, stop matcher, and when it ends.

use crate::detokenizer::Detokenizer;
use crate::error::Result;
use crate::logits::candidates::RowError;
use crate::logits::explanation::{self, Explanation};
use crate::logits::healing::TokenHealing;
use crate::logits::history::History;
use crate::logits::logprobs::Logprobs;
use crate::logits::{Pipeline, Settings, eos};
use crate::params::{SamplingParams, StoppingParams, checked_ids};
use crate::rng;
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;
use std::sync::Arc;

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// This EOS token was generated; also when it came at the length limit.
    Eos(u32),
    /// This stop token was generated.
    StopToken(u32),
    /// This stop string appeared.
    StopString(String),
    /// `max_new_tokens` was reached.
    Length,
}

impl FinishReason {
    /// Whether and why `token` ends a sequence.
    pub(crate) fn by_token(stopping: &StoppingParams, token: u32) -> Option<Self> {
        if stopping.eos_token_ids.contains(&token) {
            Some(Self::Eos(token))
        } else if stopping.stop_token_ids.contains(&token) {
            Some(Self::StopToken(token))
        } else {
            None
        }
    }
}

/// Why a step gave a sequence no token, and so ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Its row of logits has no next token.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The sequence was ended before.
    #[error("the sequence was ended")]
    Ended,
    /// A panic: a bug in this crate or in one below.
    #[error("internal error while the next token was chosen")]
    Internal,
}

/// What one step gave one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Emission {
    /// The chosen token, or why there is none; then the sequence is finished.
    pub token: std::result::Result<u32, StepError>,
    /// Text that became certain; on the last step everything that was held back.
    pub text: String,
    /// Set on the last step of a sequence that did not fail.
    pub finish: Option<FinishReason>,
    /// Log probabilities, when asked for.
    pub logprobs: Option<Logprobs>,
    /// Why the token was chosen, when asked for, of the first [`explanation::MOST`] tokens.
    pub explanation: Option<Box<Explanation>>,
}

impl Emission {
    /// Without a token.
    fn without(error: StepError, text: String, finish: Option<FinishReason>) -> Self {
        Self { token: Err(error), text, finish, logprobs: None, explanation: None }
    }
}

/// One sequence. The joined text of its emissions is `Tokenizer::decode` of all generated tokens, the ending one
/// included, up to the stop string that matched, if one did.
pub struct Generation {
    sampling: Arc<SamplingParams>,
    stopping: Arc<StoppingParams>,
    pipeline: Pipeline,
    /// Chooses the first token where it takes the place of the prompt's last one.
    healing: Option<Pipeline>,
    history: History,
    sequence_index: u64,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    piece: String,
    /// Text at the front of the answer that the prompt ends with already.
    given_text: String,
    is_finished: bool,
    eos_probability_max: f64,
    #[cfg(test)]
    panics_at: Option<Place>,
}

/// Where a step can be made to panic, for tests of what survives it.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the token is drawn, with the worker's memory in use.
    Draw,
    /// Behind the draw, with the history already changed.
    Advance,
}

#[cfg(test)]
impl Generation {
    pub(crate) fn panic_at(&mut self, place: Place) {
        self.panics_at = Some(place);
    }

    fn panic_if_asked(&self, place: Place) {
        assert_ne!(self.panics_at, Some(place), "asked to by a test");
    }
}

impl Generation {
    /// Starts a sequence behind `prompt_ids`. Sequences of one request differ in `sequence_index`.
    ///
    /// # Errors
    /// [`crate::error::Error::InvalidParameters`] for ids outside the vocabulary.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt_ids: &[i64],
        sampling: Arc<SamplingParams>,
        stopping: Arc<StoppingParams>,
        sequence_index: u64,
        skip_special_tokens: bool,
    ) -> Result<Self> {
        let prompt = checked_ids("prompt_ids", prompt_ids, sampling.vocab_size)?;
        Ok(Self {
            pipeline: Pipeline::new(&Settings { sampling: &sampling, stopping: &stopping }),
            healing: None,
            history: History::new(prompt),
            sequence_index,
            detokenizer: Detokenizer::new(tokenizer, skip_special_tokens),
            matcher: StopMatcher::new(stopping.stop_automaton().clone()),
            piece: String::new(),
            given_text: String::new(),
            is_finished: false,
            eos_probability_max: 0.0,
            #[cfg(test)]
            panics_at: None,
            sampling,
            stopping,
        })
    }

    /// EOS tokens whose probability is still to be watched: all, until one was likely.
    #[must_use]
    pub fn watched_eos(&self) -> &[u32] {
        let is_watched = self.eos_probability_max < eos::LIKELY && !self.is_healing();
        if is_watched { &self.stopping.eos_token_ids } else { &[] }
    }

    /// Takes note of the [`eos::probability`] of one step.
    pub fn note_eos_probability(&mut self, probability: f64) {
        self.eos_probability_max = self.eos_probability_max.max(probability);
    }

    /// The largest probability that an EOS token had in the raw logits of any step so far, up to the first that was at
    /// least [`eos::LIKELY`]; below it, an upper bound that is below it too. `None` without EOS tokens.
    #[must_use]
    pub fn eos_probability_max(&self) -> Option<f64> {
        (!self.stopping.eos_token_ids.is_empty()).then_some(self.eos_probability_max)
    }

    /// Heals the border to the prompt, before the first step: the first token must extend `dropped`, the token that was
    /// taken off the prompt's end, and the text of `dropped` is left out of the answer's. Nothing changes where it is not
    /// [`Tokenizer::is_healable`].
    ///
    /// That token belongs to the prompt, as after transformers' `heal_tokens`: the most likely one is taken, of all
    /// settings `remove_invalid_values` alone acts on it, no length counts it, and it ends nothing, but for a stop string
    /// in the text that it adds.
    pub fn heal(&mut self, tokenizer: &Tokenizer, dropped: u32) {
        if !tokenizer.is_healable(dropped) {
            return;
        }
        // Without its text the answer would repeat the prompt's end.
        let Ok(given_text) = tokenizer.decode(&[dropped], false) else { return };
        self.given_text = given_text;
        let settings = Settings { sampling: &self.sampling, stopping: &self.stopping };
        let healing = TokenHealing::new(tokenizer.extensions(dropped), dropped);
        self.healing = Some(Pipeline::of_healing(&settings, healing));
    }

    /// How to turn logits into a token.
    #[must_use]
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Whether the next token takes the place of the prompt's last one.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.healing.is_some()
    }

    /// Whether the next token is drawn from the distribution, or else the most likely one.
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        self.sampling.do_sample && !self.is_healing()
    }

    /// The processors and warpers that act on the next token.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        self.healing.as_ref().unwrap_or(&self.pipeline)
    }

    /// Prompt and generated tokens.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether the last token was generated, or the sequence failed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// The random number of the next step, in `[0, 1)`.
    #[must_use]
    pub fn uniform(&self) -> f64 {
        #[cfg(test)]
        self.panic_if_asked(Place::Draw);
        rng::uniform(self.sampling.seed, self.sequence_index, self.history.generated().len() as u64)
    }

    /// Whether the next token is to be explained.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.sampling.explain && self.history.generated().len() < explanation::MOST
    }

    /// Takes the chosen token: history, text, and whether this is the end.
    pub fn advance(
        &mut self,
        token: u32,
        logprobs: Option<Logprobs>,
        explanation: Option<Box<Explanation>>,
    ) -> Emission {
        let is_healed = self.healing.take().is_some();
        if is_healed {
            self.history.push_prompt(token);
        } else {
            self.history.push(token);
        }
        #[cfg(test)]
        self.panic_if_asked(Place::Advance);
        let mut text = String::new();
        self.piece.clear();
        self.detokenizer.push(token, &mut self.piece);
        self.leave_out_given_text();
        let mut matched = self.matcher.push(&self.piece, &mut text);
        let by_token = if is_healed { None } else { FinishReason::by_token(&self.stopping, token) };
        let is_full = self.history.generated().len() >= self.stopping.max_new_tokens;
        let is_over = matched.is_some() || by_token.is_some() || is_full;
        if is_over || self.matcher.would_match(|| self.held_text()) {
            matched = matched.or(self.flush(&mut text));
        }
        let by_string = matched.and_then(|index| self.stopping.stop_strings.get(index).cloned());
        let finish = by_token.or(by_string.map(FinishReason::StopString)).or(is_full.then_some(FinishReason::Length));
        self.is_finished = finish.is_some();
        Emission { token: Ok(token), text, finish, logprobs, explanation }
    }

    /// Ends the sequence because its row of logits has no next token.
    pub fn fail(&mut self, error: RowError) -> Emission {
        let mut text = String::new();
        self.flush(&mut text);
        self.is_finished = true;
        Emission::without(error.into(), text, None)
    }

    /// Ends the sequence before its next token and releases all text; the stop string that the end of it completes is
    /// the reason to finish, if one does.
    pub fn end(&mut self) -> Emission {
        let mut text = String::new();
        let matched = self.flush(&mut text);
        self.is_finished = true;
        let by_string = matched.and_then(|index| self.stopping.stop_strings.get(index).cloned());
        Emission::without(StepError::Ended, text, by_string.map(FinishReason::StopString))
    }

    /// Ends the sequence because its step panicked. Text held back is lost: what held it may be half changed.
    pub fn abandon(&mut self) -> Emission {
        self.is_finished = true;
        Emission::without(StepError::Internal, String::new(), None)
    }

    /// What is held back of the answer, as it reads if it ends here.
    fn held_text(&self) -> String {
        let held = self.detokenizer.held();
        let common = self.given_text.len().min(held.len());
        match held.get(common..) {
            Some(rest) if held.get(..common) == self.given_text.get(..common) => rest.to_owned(),
            _ => held,
        }
    }

    /// Takes what the prompt ends with off the front of the answer.
    fn leave_out_given_text(&mut self) {
        let common = self.given_text.len().min(self.piece.len());
        if self.given_text.as_bytes().get(..common) == self.piece.as_bytes().get(..common) {
            self.given_text.drain(..common);
            self.piece.drain(..common);
        } else {
            // What the decoder makes of both together is not what it made of the first alone.
            self.given_text.clear();
        }
    }

    /// Releases all text; returns the stop string that the end of it completes.
    fn flush(&mut self, text: &mut String) -> Option<usize> {
        self.piece.clear();
        self.detokenizer.finish(&mut self.piece);
        self.leave_out_given_text();
        let matched = self.matcher.push(&self.piece, text);
        self.matcher.finish(text);
        matched
    }
}
