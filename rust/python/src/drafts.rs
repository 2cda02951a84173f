//! Prompt lookup for Python.

use crate::errors::{guard, to_py};
use crate::ids::{Ids, Integer};
use pyo3::prelude::*;
use tokenwire_core::lookup;
use tokenwire_core::params::checked_ids;

/// Guesses of a sequence's next tokens, from what followed the same n-gram earlier in it.
#[pyclass(module = "tokenwire._native")]
struct PromptLookup(lookup::PromptLookup);

#[pymethods]
impl PromptLookup {
    #[new]
    #[pyo3(signature = (token_ids, *, max_ngram))]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(py: Python<'_>, token_ids: Ids, max_ngram: Integer) -> PyResult<Self> {
        let longest = max_ngram.at_least_one("max_matching_ngram_size")?;
        guard(py, || Ok(lookup::PromptLookup::new(&checked(&token_ids)?, longest.get()))).map(Self)
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn extend(&mut self, py: Python<'_>, token_ids: Ids) -> PyResult<()> {
        let lookup = &mut self.0;
        guard(py, || {
            lookup.extend(&checked(&token_ids)?);
            Ok(())
        })
    }

    #[pyo3(signature = (count, *, ends = Ids(Vec::new())), text_signature = "($self, count, *, ends=())")]
    #[allow(clippy::needless_pass_by_value)] // As above.
    fn guess(&self, count: usize, ends: Ids) -> PyResult<Vec<u32>> {
        let ends = checked(&ends).map_err(to_py)?;
        Ok(self.0.guess(count, &ends).to_vec())
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

fn checked(ids: &Ids) -> tokenwire_core::error::Result<Vec<u32>> {
    checked_ids("token_ids", &ids.0, u32::MAX as usize)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PromptLookup>()
}
