//! Arrays of numpy, borrowed.

use crate::errors::value_error;
use numpy::{Element, PyReadonlyArray, PyUntypedArrayMethods, ndarray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The elements of `array` in C order, without a copy; the exception calls it `name`.
pub fn contiguous<'a, T: Element, D: ndarray::Dimension>(
    name: &str,
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<&'a [T]> {
    if array.is_c_contiguous() {
        array.as_slice().map_err(value_error)
    } else {
        Err(PyValueError::new_err(format!("{name} must be C-contiguous")))
    }
}
