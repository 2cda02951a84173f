//! Core errors as Python exceptions that name the field.

use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenwire_core::error::{Error, Result};

create_exception!(tokenwire._native, InvalidParametersError, PyValueError);
create_exception!(tokenwire._native, TokenizerError, PyValueError);
create_exception!(tokenwire._native, TemplateError, PyValueError);

/// Maps a core error to its Python exception; `InvalidParametersError` carries `violations`.
pub fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Tokenizer(_) => TokenizerError::new_err(text),
        Error::Template(_) => TemplateError::new_err(text),
        Error::InvalidParameters(violations) => Python::attach(|py| {
            let exception = InvalidParametersError::new_err(text);
            let rows: Vec<_> = violations.into_iter().map(|v| (v.field, v.rule, v.value)).collect();
            match exception.value(py).setattr("violations", rows) {
                Ok(()) => exception,
                Err(failure) => failure,
            }
        }),
    }
}

/// A `ValueError` with the error's text.
pub fn value_error(error: impl Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Runs `work` without the GIL; its errors become exceptions, a panic in it a `RuntimeError`.
///
/// pyo3 alone would raise `PanicException`, a `BaseException` that no `except Exception` catches.
pub fn guard<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    // What `work` borrowed mutably may be half changed: its owner must treat a RuntimeError as the end of that state.
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(to_py(error)),
        Err(_) => Err(PyRuntimeError::new_err("internal error in tokenwire's extension; its place is on stderr")),
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // The default hook prints the message, which for a slicing error quotes the text: a prompt must not reach the log.
    std::panic::set_hook(Box::new(|info| match info.location() {
        Some(place) => eprintln!("tokenwire: panic at {place}"),
        None => eprintln!("tokenwire: panic"),
    }));
    let py = module.py();
    module.add("InvalidParametersError", py.get_type::<InvalidParametersError>())?;
    module.add("TokenizerError", py.get_type::<TokenizerError>())?;
    module.add("TemplateError", py.get_type::<TemplateError>())
}
