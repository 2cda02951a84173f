//! Explanations of chosen tokens for Python.

use pyo3::prelude::*;
use tokenwire_core::logits::explanation;

/// How a token stands in a distribution.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct Standing(explanation::Standing);

#[pymethods]
impl Standing {
    #[getter]
    fn probability(&self) -> f64 {
        self.0.probability
    }

    #[getter]
    fn rank(&self) -> usize {
        self.0.rank
    }

    #[getter]
    fn entropy(&self) -> f64 {
        self.0.entropy
    }

    #[getter]
    fn token_count(&self) -> usize {
        self.0.token_count
    }
}

/// What one processor or warper did.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct ProcessorEffect(explanation::Effect);

#[pymethods]
impl ProcessorEffect {
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    #[getter]
    fn removed_token_count(&self) -> usize {
        self.0.removed
    }

    #[getter]
    fn before(&self) -> Option<Standing> {
        self.0.before.map(Standing)
    }

    #[getter]
    fn after(&self) -> Option<Standing> {
        self.0.after.map(Standing)
    }
}

/// How a token came to be chosen.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct Explanation(pub explanation::Explanation);

#[pymethods]
impl Explanation {
    #[getter]
    fn model(&self) -> Option<Standing> {
        self.0.model.map(Standing)
    }

    #[getter]
    fn effects(&self) -> Vec<ProcessorEffect> {
        self.0.effects.iter().cloned().map(ProcessorEffect).collect()
    }

    #[getter]
    fn outcome(&self) -> Option<Standing> {
        self.0.outcome.map(Standing)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_EXPLAINED_TOKENS", explanation::MOST)?;
    module.add_class::<Standing>()?;
    module.add_class::<ProcessorEffect>()?;
    module.add_class::<Explanation>()
}
