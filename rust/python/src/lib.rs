//! The extension module `tokenwire._native`: conversions and GIL release, no logic.

mod arrays;
mod beams;
mod drafts;
mod errors;
mod explanations;
mod ids;
mod kernels;
mod params;
mod sampling;
mod text;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    text::register(module)?;
    params::register(module)?;
    sampling::register(module)?;
    explanations::register(module)?;
    drafts::register(module)?;
    beams::register(module)?;
    kernels::register(module)
}
