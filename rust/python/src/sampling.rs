//! Parameters, generations and the sampler for Python.

use crate::arrays::contiguous;
use crate::errors::{guard, to_py, value_error};
use crate::explanations::Explanation;
use crate::ids::{Ids, Integer};
use crate::params::{SamplingParams, StoppingParams};
use crate::text::Tokenizer;
use numpy::{PyArray1, PyReadonlyArray, PyUntypedArrayMethods, ndarray};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use tokenwire_core::generation::{self, FinishReason};
use tokenwire_core::params::checked_ids;
use tokenwire_core::sampler::{self, Drafted, Logits};

/// The state of one sequence.
#[pyclass(module = "tokenwire._native")]
struct Generation(generation::Generation);

#[pymethods]
impl Generation {
    #[new]
    #[pyo3(signature = (
        tokenizer, prompt_ids, sampling, stopping, *, sequence_index = 0, skip_special_tokens = true,
        healed_token_id = None,
    ))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(
        py: Python<'_>,
        tokenizer: &Bound<'_, Tokenizer>,
        prompt_ids: Ids,
        sampling: &Bound<'_, SamplingParams>,
        stopping: &Bound<'_, StoppingParams>,
        sequence_index: u64,
        skip_special_tokens: bool,
        healed_token_id: Option<Integer>,
    ) -> PyResult<Self> {
        let tokenizer = tokenizer.get().0.clone();
        let (sampling, stopping) = (sampling.get().0.clone(), stopping.get().0.clone());
        let make = || {
            let mut generation = generation::Generation::new(
                tokenizer.clone(),
                &prompt_ids.0,
                sampling,
                stopping,
                sequence_index,
                skip_special_tokens,
            )?;
            if let Some(dropped) = healed_token_id.and_then(|id| id.token_id()) {
                generation.heal(&tokenizer, dropped);
            }
            Ok(generation)
        };
        guard(py, make).map(Self)
    }

    #[getter]
    fn num_generated(&self) -> usize {
        self.0.history().generated().len()
    }

    #[getter]
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    fn end(&mut self, py: Python<'_>) -> PyResult<Emission> {
        if self.0.is_finished() {
            return Err(PyValueError::new_err("the generation is finished"));
        }
        let generation = &mut self.0;
        guard(py, || Ok(generation.end())).map(Emission)
    }

    #[getter]
    fn eos_probability_max(&self) -> Option<f64> {
        self.0.eos_probability_max()
    }
}

/// The name of a reason to finish.
pub fn finish_reason(finish: Option<&FinishReason>) -> Option<&'static str> {
    finish.map(|finish| match finish {
        FinishReason::Eos(_) => "eos",
        FinishReason::StopToken(_) => "stop_token",
        FinishReason::StopString(_) => "stop_string",
        FinishReason::Length => "length",
    })
}

/// The stop string that matched.
pub fn stop_string(finish: Option<&FinishReason>) -> Option<&str> {
    match finish {
        Some(FinishReason::StopString(string)) => Some(string),
        _ => None,
    }
}

/// The token that ended a sequence.
pub fn stop_token_id(finish: Option<&FinishReason>) -> Option<u32> {
    match finish {
        Some(&(FinishReason::Eos(id) | FinishReason::StopToken(id))) => Some(id),
        _ => None,
    }
}

/// What one step gave one sequence.
#[pyclass(frozen, module = "tokenwire._native")]
struct Emission(generation::Emission);

#[pymethods]
impl Emission {
    #[getter]
    fn token_id(&self) -> i64 {
        self.0.token.map_or(-1, i64::from)
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
    fn logprob(&self) -> Option<f32> {
        self.0.logprobs.as_ref().map(|logprobs| logprobs.chosen)
    }

    #[getter]
    fn rank(&self) -> Option<usize> {
        self.0.logprobs.as_ref().map(|logprobs| logprobs.rank)
    }

    #[getter]
    fn top_logprobs(&self) -> Vec<(u32, f32)> {
        self.0.logprobs.as_ref().map(|logprobs| logprobs.top.clone()).unwrap_or_default()
    }

    #[getter]
    fn explanation(&self) -> Option<Explanation> {
        self.0.explanation.as_deref().cloned().map(Explanation)
    }

    #[getter]
    fn error(&self) -> Option<String> {
        self.0.token.err().map(|error| error.to_string())
    }
}

/// Logits as an array with `D` dimensions, borrowed.
pub enum LogitsArray<'py, D: ndarray::Dimension> {
    F32(PyReadonlyArray<'py, f32, D>),
    Bf16(PyReadonlyArray<'py, u16, D>),
}

impl<'py, D: ndarray::Dimension> LogitsArray<'py, D> {
    pub fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.extract::<PyReadonlyArray<'py, f32, D>>() {
            Ok(Self::F32(array))
        } else if let Ok(array) = object.extract::<PyReadonlyArray<'py, u16, D>>() {
            Ok(Self::Bf16(array))
        } else {
            let dimensions = D::NDIM.unwrap_or_default();
            let wanted = format!("logits must be an array of float32 or uint16 with {dimensions} dimensions");
            Err(PyTypeError::new_err(wanted))
        }
    }

    /// The shape, and the logits in C order.
    pub fn view(&self) -> PyResult<(&[usize], Logits<'_>)> {
        match self {
            Self::F32(array) => Ok((array.shape(), Logits::F32(contiguous("logits", array)?))),
            Self::Bf16(array) => Ok((array.shape(), Logits::Bf16(contiguous("logits", array)?))),
        }
    }
}

fn borrow_all<'py>(generations: &Bound<'py, PyAny>, count: usize) -> PyResult<Vec<PyRefMut<'py, Generation>>> {
    let mut borrowed = Vec::with_capacity(count);
    for (index, generation) in generations.try_iter()?.enumerate() {
        let generation = generation?.cast_into::<Generation>()?;
        borrowed.push(generation.try_borrow_mut().map_err(|_| {
            PyValueError::new_err(format!("generation {index} occurs twice or is in use by another call"))
        })?);
    }
    Ok(borrowed)
}

/// Log probability of a given token, its rank, and the most likely tokens with theirs.
type GivenLogprobs = (f32, usize, Vec<(u32, f32)>);

/// Processors, choice, detokenization and stop checks for a whole batch.
#[pyclass(module = "tokenwire._native")]
struct Sampler(sampler::Sampler);

#[pymethods]
impl Sampler {
    #[new]
    #[pyo3(signature = (*, threads = Integer(1)), text_signature = "(*, threads=1)")]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(threads: Integer) -> PyResult<Self> {
        Ok(Self(sampler::Sampler::new(threads.at_least_one("threads")?)))
    }

    #[pyo3(signature = (logits, generations, *, guidance = None))]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn step(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        generations: &Bound<'_, PyAny>,
        guidance: Option<Vec<Integer>>,
    ) -> PyResult<Vec<Emission>> {
        let logits = LogitsArray::<ndarray::Ix2>::new(logits)?;
        let (shape, logits) = logits.view()?;
        let mut borrowed = borrow_all(generations, shape[0])?;
        if borrowed.len() > shape[0] || (borrowed.len() < shape[0] && guidance.is_none()) {
            let message = format!("{} rows of logits for {} generations", shape[0], borrowed.len());
            return Err(PyValueError::new_err(message));
        }
        let guidance = guidance.map(|rows| rows.iter().map(unconditional_row).collect::<Vec<_>>());
        let mut generations: Vec<_> = borrowed.iter_mut().map(|generation| &mut generation.0).collect();
        let sampler = &mut self.0;
        let emissions = guard(py, || Ok(sampler.step(logits, shape[1], &mut generations, guidance.as_deref())))?;
        Ok(emissions.map_err(value_error)?.into_iter().map(Emission).collect())
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn verify(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        generations: &Bound<'_, PyAny>,
        drafts: Vec<Vec<u32>>,
    ) -> PyResult<Vec<Vec<Emission>>> {
        let logits = LogitsArray::<ndarray::Ix2>::new(logits)?;
        let (shape, logits) = logits.view()?;
        let mut borrowed = borrow_all(generations, drafts.len())?;
        if borrowed.len() != drafts.len() {
            let message = format!("{} drafts for {} generations", drafts.len(), borrowed.len());
            return Err(PyValueError::new_err(message));
        }
        let pairs = borrowed.iter_mut().zip(&drafts);
        let mut rows: Vec<_> =
            pairs.map(|(generation, draft)| Drafted { generation: &mut generation.0, draft }).collect();
        let sampler = &mut self.0;
        let emissions = guard(py, || Ok(sampler.verify(logits, shape[1], &mut rows)))?;
        let wrapped = emissions.map_err(value_error)?.into_iter();
        Ok(wrapped.map(|row| row.into_iter().map(Emission).collect()).collect())
    }

    #[pyo3(signature = (logits, token_ids, count, *, remove_invalid_values = false))]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn logprobs_of(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        token_ids: Ids,
        count: usize,
        remove_invalid_values: bool,
    ) -> PyResult<Vec<GivenLogprobs>> {
        let logits = LogitsArray::<ndarray::Ix2>::new(logits)?;
        let (shape, logits) = logits.view()?;
        let token_ids = checked_ids("token_ids", &token_ids.0, shape[1]).map_err(to_py)?;
        let sampler = &mut self.0;
        let mends = remove_invalid_values;
        let logprobs = guard(py, || Ok(sampler.logprobs_of(logits, shape[1], &token_ids, count, mends)))?;
        let entries = logprobs.map_err(value_error)?.into_iter();
        Ok(entries.map(|entry| (entry.chosen, entry.rank, entry.top)).collect())
    }

    #[pyo3(signature = (logits, generation, *, unconditional = None))]
    fn processed_logits<'py>(
        &mut self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        generation: &Bound<'py, Generation>,
        unconditional: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let logits = LogitsArray::<ndarray::Ix1>::new(logits)?;
        let (_, logits) = logits.view()?;
        let unconditional = unconditional.map(LogitsArray::<ndarray::Ix1>::new).transpose()?;
        let unconditional = unconditional.as_ref().map(LogitsArray::view).transpose()?.map(|(_, logits)| logits);
        let generation = generation.try_borrow()?;
        let (sampler, generation) = (&mut self.0, &generation.0);
        let processed = guard(py, || Ok(sampler.processed_logits(logits, unconditional, generation)))?;
        Ok(PyArray1::from_vec(py, processed.map_err(value_error)?.map_err(value_error)?))
    }
}

/// `None` for -1; what is no index becomes one that no batch has.
fn unconditional_row(row: &Integer) -> Option<usize> {
    (row.0 != -1).then(|| usize::try_from(row.0).unwrap_or(usize::MAX))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Generation>()?;
    module.add_class::<Emission>()?;
    module.add_class::<Sampler>()
}
