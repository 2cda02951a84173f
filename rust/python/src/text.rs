//! Tokenizer, chat template and padding for Python.

use crate::errors::guard;
use pyo3::prelude::*;
use std::path::Path;
use std::sync::Arc;
use tokenwire_core::tokenizer;

/// A tokenizer, shared with generations.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct Tokenizer(pub Arc<tokenizer::Tokenizer>);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn from_file(py: Python<'_>, path: &str) -> PyResult<Self> {
        guard(py, || tokenizer::Tokenizer::from_file(Path::new(path))).map(|inner| Self(Arc::new(inner)))
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, json: &str) -> PyResult<Self> {
        guard(py, || tokenizer::Tokenizer::from_json(json)).map(|inner| Self(Arc::new(inner)))
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    #[getter]
    fn special_token_ids(&self) -> Vec<u32> {
        self.0.special_token_ids().to_vec()
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()
}
