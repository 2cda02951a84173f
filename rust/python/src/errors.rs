//! Core errors as Python exceptions that name the field.

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tokenwire_core::error::Error;

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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("InvalidParametersError", py.get_type::<InvalidParametersError>())?;
    module.add("TokenizerError", py.get_type::<TokenizerError>())?;
    module.add("TemplateError", py.get_type::<TemplateError>())
}
