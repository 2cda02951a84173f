//! Integers and token ids from Python, of any size and in any sequence.

use crate::errors::to_py;
use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use std::num::NonZero;
use tokenwire_core::error::{Error, Violation};

/// A Python integer of any size; what 128 bits cannot hold becomes the nearest that they can.
pub struct Integer(pub i128);

impl Integer {
    /// The nearest 64-bit number: outside every range wherever the integer is.
    pub fn clamped(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(if self.0 < 0 { i64::MIN } else { i64::MAX })
    }

    /// The integer as a count of at least one; the exception names `field`.
    pub fn at_least_one(&self, field: &str) -> PyResult<NonZero<usize>> {
        usize::try_from(self.0).ok().and_then(NonZero::new).ok_or_else(|| {
            to_py(Error::InvalidParameters(vec![Violation {
                field: field.to_owned(),
                rule: "must be at least 1".to_owned(),
                value: self.0.to_string(),
            }]))
        })
    }

    /// The integer as a token id; `None` where no vocabulary has it.
    pub fn token_id(&self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }
}

impl<'py> FromPyObject<'_, 'py> for Integer {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(value) = object.extract::<i64>() {
            return Ok(Self(value.into()));
        }
        match object.extract::<i128>() {
            Ok(value) => Ok(Self(value)),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Self(if object.lt(0)? { i128::MIN } else { i128::MAX }))
            }
            Err(error) => Err(error),
        }
    }
}

/// Token ids as an int64 array or any iterable of integers, each [`Integer::clamped`].
pub struct Ids(pub Vec<i64>);

impl<'py> FromPyObject<'_, 'py> for Ids {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.extract::<PyReadonlyArray1<'_, i64>>() {
            return Ok(Self(array.as_array().to_vec()));
        }
        object.try_iter()?.map(|id| Ok(id?.extract::<Integer>()?.clamped())).collect::<PyResult<_>>().map(Self)
    }
}
