//! Kernels of the forward pass for Python.

use crate::arrays::contiguous;
use crate::errors::{guard, value_error};
use crate::ids::Integer;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;
use tokenwire_kernels::linear4bit::Weights;
use tokenwire_kernels::{self as kernels, LengthError, Level};

// Python's allocator aligns objects to 16 bytes, whatever their Rust type asks for.
const _: () = assert!(align_of::<kernels::Linear4Bit>() <= 16 && align_of::<kernels::Linear>() <= 16);

/// Threads that the kernels share.
#[pyclass(frozen, module = "tokenwire._native")]
struct ThreadPool(Arc<kernels::ThreadPool>);

#[pymethods]
impl ThreadPool {
    #[new]
    #[pyo3(signature = (*, threads), text_signature = "(*, threads)")]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(threads: Integer) -> PyResult<Self> {
        Ok(Self(Arc::new(kernels::ThreadPool::new(threads.at_least_one("threads")?))))
    }

    #[getter]
    fn threads(&self) -> usize {
        self.0.threads()
    }
}

/// A linear layer with NF4 or FP4 weights.
#[pyclass(frozen, module = "tokenwire._native")]
struct Linear4Bit(kernels::Linear4Bit);

#[pymethods]
impl Linear4Bit {
    #[new]
    #[pyo3(signature = (packed, absmax, code, *, block_size, in_features, out_features, pool, bias = None, level = None))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(
        py: Python<'_>,
        packed: PyReadonlyArray1<'_, u8>,
        absmax: PyReadonlyArray1<'_, f32>,
        code: PyReadonlyArray1<'_, f32>,
        block_size: usize,
        in_features: usize,
        out_features: usize,
        pool: &Bound<'_, ThreadPool>,
        bias: Option<PyReadonlyArray1<'_, f32>>,
        level: Option<&str>,
    ) -> PyResult<Self> {
        let level = level.map_or(Ok(Level::best()), str::parse).map_err(value_error)?;
        let code = contiguous("code", &code)?;
        let weights = Weights {
            packed: contiguous("packed", &packed)?,
            absmax: contiguous("absmax", &absmax)?,
            block_size,
            code: code
                .try_into()
                .map_err(|_| PyValueError::new_err(format!("code must have 16 elements, got {}", code.len())))?,
            in_features,
            out_features,
            bias: bias.as_ref().map(|bias| contiguous("bias", bias)).transpose()?,
        };
        let pool = pool.get().0.clone();
        guard(py, || Ok(kernels::Linear4Bit::new(weights, level, pool)))?.map(Self).map_err(value_error)
    }

    #[getter]
    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    #[getter]
    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    #[getter]
    fn level(&self) -> String {
        self.0.level().to_string()
    }

    fn forward(&self, py: Python<'_>, x: PyReadonlyArray2<'_, f32>, out: PyReadwriteArray2<'_, f32>) -> PyResult<()> {
        let layer = &self.0;
        forward(py, x, out, (layer.in_features(), layer.out_features()), |x, out| layer.forward(x, out))
    }
}

/// A linear layer with float32 weights.
#[pyclass(frozen, module = "tokenwire._native")]
struct Linear(kernels::Linear);

#[pymethods]
impl Linear {
    #[new]
    #[pyo3(signature = (weight, *, pool, bias = None, level = None))]
    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn new(
        py: Python<'_>,
        weight: PyReadonlyArray2<'_, f32>,
        pool: &Bound<'_, ThreadPool>,
        bias: Option<PyReadonlyArray1<'_, f32>>,
        level: Option<&str>,
    ) -> PyResult<Self> {
        let level = level.map_or(Ok(Level::best()), str::parse).map_err(value_error)?;
        let bias = bias.as_ref().map(|bias| contiguous("bias", bias)).transpose()?;
        let (_, in_features) = weight.as_array().dim();
        let weight = contiguous("weight", &weight)?;
        let pool = pool.get().0.clone();
        let make = || Ok(kernels::Linear::new(weight, in_features, bias, level, pool));
        guard(py, make)?.map(Self).map_err(value_error)
    }

    #[getter]
    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    #[getter]
    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    #[getter]
    fn level(&self) -> String {
        self.0.level().to_string()
    }

    fn forward(&self, py: Python<'_>, x: PyReadonlyArray2<'_, f32>, out: PyReadwriteArray2<'_, f32>) -> PyResult<()> {
        let layer = &self.0;
        forward(py, x, out, (layer.in_features(), layer.out_features()), |x, out| layer.forward(x, out))
    }
}

/// Checks that `x` and `out` fit a layer of `shape` (values of an input row, of an output row), and computes.
#[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
fn forward(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    mut out: PyReadwriteArray2<'_, f32>,
    shape: (usize, usize),
    layer: impl FnOnce(&[f32], &mut [f32]) -> Result<(), LengthError> + Send,
) -> PyResult<()> {
    let ((x_rows, width), (out_rows, columns)) = (x.as_array().dim(), out.as_array().dim());
    if (width, columns) != shape || x_rows != out_rows {
        let (in_features, out_features) = shape;
        return Err(PyValueError::new_err(format!(
            "x [{x_rows}, {width}] and out [{out_rows}, {columns}] are not [rows, {in_features}] and [rows, {out_features}]"
        )));
    }
    let x = contiguous("x", &x)?;
    if !out.is_c_contiguous() {
        return Err(PyValueError::new_err("out must be C-contiguous"));
    }
    let out = out.as_slice_mut().map_err(value_error)?;
    guard(py, || Ok(layer(x, out)))?.map_err(value_error)
}

/// Names of the levels of vector instructions that this CPU has, from the least to the best.
#[pyfunction]
fn kernel_levels() -> Vec<String> {
    Level::available().iter().map(ToString::to_string).collect()
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ThreadPool>()?;
    module.add_class::<Linear4Bit>()?;
    module.add_class::<Linear>()?;
    module.add_function(wrap_pyfunction!(kernel_levels, module)?)
}
