//! Beam search for Python.

use crate::errors::{guard, value_error};
use crate::ids::{Ids, Integer};
use crate::params::{SamplingParams, StoppingParams};
use crate::sampling::{LogitsArray, finish_reason, stop_string, stop_token_id};
use crate::text::Tokenizer;
use numpy::ndarray;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tokenwire_core::beam::{self, BeamOptions, EarlyStopping, Step};

/// The state of one beam search.
#[pyclass(module = "tokenwire._native")]
struct BeamSearch(beam::BeamSearch);

#[pymethods]
impl BeamSearch {
    #[new]
    #[pyo3(signature = (
        tokenizer, prompt_ids, sampling, stopping, *, num_beams, num_return_sequences = Integer(1),
        length_penalty = 1.0, early_stopping = "false", sequence_index = 0, skip_special_tokens = true,
    ), text_signature = "(tokenizer, prompt_ids, sampling, stopping, *, num_beams, num_return_sequences=1, \
        length_penalty=1.0, early_stopping='false', sequence_index=0, skip_special_tokens=True)")]
    // A Python caller names each.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
    fn new(
        py: Python<'_>,
        tokenizer: &Bound<'_, Tokenizer>,
        prompt_ids: Ids,
        sampling: &Bound<'_, SamplingParams>,
        stopping: &Bound<'_, StoppingParams>,
        num_beams: Integer,
        num_return_sequences: Integer,
        length_penalty: f64,
        early_stopping: &str,
        sequence_index: u64,
        skip_special_tokens: bool,
    ) -> PyResult<Self> {
        let early_stopping = match early_stopping {
            "false" => EarlyStopping::Heuristic,
            "true" => EarlyStopping::Full,
            "never" => EarlyStopping::Never,
            other => {
                let message = format!("early_stopping: must be false, true or never, got {other}");
                return Err(PyValueError::new_err(message));
            }
        };
        let options = BeamOptions {
            num_beams: num_beams.clamped(),
            num_return_sequences: num_return_sequences.clamped(),
            length_penalty,
            early_stopping,
        };
        let tokenizer = tokenizer.get().0.clone();
        let (sampling, stopping) = (sampling.get().0.clone(), stopping.get().0.clone());
        let make = || {
            beam::BeamSearch::new(
                tokenizer,
                &prompt_ids.0,
                sampling,
                stopping,
                &options,
                sequence_index,
                skip_special_tokens,
            )
        };
        guard(py, make).map(Self)
    }

    #[getter]
    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    #[pyo3(signature = (logits, *, is_last = false))]
    fn step(&mut self, py: Python<'_>, logits: &Bound<'_, PyAny>, is_last: bool) -> PyResult<BeamStep> {
        let logits = LogitsArray::<ndarray::Ix2>::new(logits)?;
        let (shape, logits) = logits.view()?;
        let search = &mut self.0;
        let step = guard(py, || Ok(search.step(logits, shape[1], is_last)))?;
        step.map(BeamStep).map_err(value_error)
    }
}

/// What one step gave a beam search.
#[pyclass(frozen, module = "tokenwire._native")]
struct BeamStep(Step);

#[pymethods]
impl BeamStep {
    #[getter]
    fn parents(&self) -> &[usize] {
        if let Step::Next { parents, .. } = &self.0 { parents } else { &[] }
    }

    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        if let Step::Next { tokens, .. } = &self.0 { tokens.clone() } else { Vec::new() }
    }

    #[getter]
    fn answers(&self) -> Vec<BeamAnswer> {
        if let Step::Done(answers) = &self.0 { answers.iter().cloned().map(BeamAnswer).collect() } else { Vec::new() }
    }

    #[getter]
    fn error(&self) -> Option<String> {
        if let Step::Failed(error) = &self.0 { Some(error.to_string()) } else { None }
    }
}

/// One returned sequence of a beam search.
#[pyclass(frozen, module = "tokenwire._native")]
struct BeamAnswer(beam::Answer);

#[pymethods]
impl BeamAnswer {
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.0.tokens.clone()
    }

    #[getter]
    fn text(&self) -> &str {
        &self.0.text
    }

    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        finish_reason(self.0.finish.as_ref())
    }

    #[getter]
    fn stop_string(&self) -> Option<&str> {
        stop_string(self.0.finish.as_ref())
    }

    #[getter]
    fn stop_token_id(&self) -> Option<u32> {
        stop_token_id(self.0.finish.as_ref())
    }

    #[getter]
    fn score(&self) -> f32 {
        self.0.score
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_LENGTH_PENALTY", beam::MAX_LENGTH_PENALTY)?;
    module.add_class::<BeamSearch>()?;
    module.add_class::<BeamStep>()?;
    module.add_class::<BeamAnswer>()
}
