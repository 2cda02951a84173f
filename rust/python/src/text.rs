//! Tokenizer, chat template and padding for Python.

use crate::errors::{TokenizerError, guard, to_py};
use crate::ids::{Ids, Integer};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokenwire_core::chat_template::ChatInput;
use tokenwire_core::error::{Error, Violation};
use tokenwire_core::padding::{self, Side};
use tokenwire_core::{chat_template, detokenizer, tokenizer};

type IdArray<'py> = Bound<'py, PyArray1<i64>>;

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

    fn token_to_id(&self, py: Python<'_>, token: &str) -> PyResult<Option<u32>> {
        guard(py, || Ok(self.0.token_to_id(token)))
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn id_to_token(&self, py: Python<'_>, token_id: Integer) -> PyResult<Option<String>> {
        guard(py, || Ok(token_id.token_id().and_then(|id| self.0.id_to_token(id))))
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn extensions<'py>(&self, py: Python<'py>, token_id: Integer) -> PyResult<IdArray<'py>> {
        let ids = guard(py, || Ok(token_id.token_id().map(|id| self.0.extensions(id)).unwrap_or_default()))?;
        Ok(id_array(py, ids))
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn is_healable(&self, py: Python<'_>, token_id: Integer) -> PyResult<bool> {
        guard(py, || Ok(token_id.token_id().is_some_and(|id| self.0.is_healable(id))))
    }

    #[pyo3(signature = (text, *, add_special_tokens = true, parse_special_tokens = true))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        add_special_tokens: bool,
        parse_special_tokens: bool,
    ) -> PyResult<IdArray<'py>> {
        guard(py, || self.0.encode(text, add_special_tokens, parse_special_tokens)).map(|ids| id_array(py, ids))
    }

    #[pyo3(signature = (texts, *, add_special_tokens = true, parse_special_tokens = true))]
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 extracts a sequence of str as owned strings")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
        add_special_tokens: bool,
        parse_special_tokens: bool,
    ) -> PyResult<Vec<IdArray<'py>>> {
        let rows = guard(py, || self.0.encode_batch(&texts, add_special_tokens, parse_special_tokens))?;
        Ok(rows.into_iter().map(|ids| id_array(py, ids)).collect())
    }

    #[pyo3(signature = (text, *, add_special_tokens = true, parse_special_tokens = true))]
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        add_special_tokens: bool,
        parse_special_tokens: bool,
    ) -> PyResult<(IdArray<'py>, Vec<String>, Bound<'py, PyArray2<i64>>)> {
        let (spans, offsets) = guard(py, || {
            let spans = self.0.encode_with_offsets(text, add_special_tokens, parse_special_tokens)?;
            // A text in memory is shorter than 2^63 bytes.
            let bytes = |offset: usize| i64::try_from(offset).unwrap_or(i64::MAX);
            let offsets: Vec<i64> = spans.offsets.iter().flat_map(|&(start, end)| [bytes(start), bytes(end)]).collect();
            Ok((spans, offsets))
        })?;
        let rows = spans.ids.len();
        Ok((id_array(py, spans.ids), spans.tokens, offsets.into_pyarray(py).reshape([rows, 2])?))
    }

    fn encode_rendered<'py>(&self, py: Python<'py>, rendered: &RenderedChat) -> PyResult<IdArray<'py>> {
        guard(py, || self.0.encode_rendered(&rendered.0)).map(|ids| id_array(py, ids))
    }

    #[pyo3(signature = (token_ids, *, skip_special_tokens = true))]
    fn decode(&self, py: Python<'_>, token_ids: Ids, skip_special_tokens: bool) -> PyResult<String> {
        let ids: Vec<u32> = token_ids.0.into_iter().map(narrow).collect::<PyResult<_>>()?;
        guard(py, || self.0.decode(&ids, skip_special_tokens))
    }
}

/// Streaming detokenization of one sequence.
#[pyclass(module = "tokenwire._native")]
pub struct Detokenizer(detokenizer::Detokenizer);

#[pymethods]
impl Detokenizer {
    #[new]
    #[pyo3(signature = (tokenizer, *, skip_special_tokens = true))]
    fn new(py: Python<'_>, tokenizer: &Tokenizer, skip_special_tokens: bool) -> PyResult<Self> {
        guard(py, || Ok(detokenizer::Detokenizer::new(Arc::clone(&tokenizer.0), skip_special_tokens))).map(Self)
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn push(&mut self, py: Python<'_>, token_id: Integer) -> PyResult<String> {
        guard(py, || {
            let mut out = String::new();
            if let Some(id) = token_id.token_id() {
                self.0.push(id, &mut out);
            }
            Ok(out)
        })
    }

    fn finish(&mut self, py: Python<'_>) -> PyResult<String> {
        guard(py, || {
            let mut out = String::new();
            self.0.finish(&mut out);
            Ok(out)
        })
    }
}

/// Alignment of one sequence's tokens with its text.
#[pyclass(module = "tokenwire._native")]
pub struct Aligner(detokenizer::Aligner);

/// Token id, bytes, and the half-open byte range in the text.
type AlignedToken = (u32, Cow<'static, [u8]>, usize, usize);

#[pymethods]
impl Aligner {
    #[new]
    #[pyo3(signature = (tokenizer, *, skip_special_tokens = true))]
    fn new(py: Python<'_>, tokenizer: &Tokenizer, skip_special_tokens: bool) -> PyResult<Self> {
        guard(py, || Ok(detokenizer::Aligner::new(Arc::clone(&tokenizer.0), skip_special_tokens))).map(Self)
    }

    #[allow(clippy::needless_pass_by_value)] // What pyo3 hands over.
    fn push(&mut self, py: Python<'_>, token_id: Integer) -> PyResult<Vec<AlignedToken>> {
        // An id that is none is one without a vocabulary entry.
        guard(py, || Ok(self.0.push(token_id.token_id().unwrap_or(u32::MAX)))).map(parts)
    }

    fn finish(&mut self, py: Python<'_>) -> PyResult<Vec<AlignedToken>> {
        guard(py, || Ok(self.0.finish())).map(parts)
    }
}

fn parts(tokens: Vec<detokenizer::AlignedToken>) -> Vec<AlignedToken> {
    tokens.into_iter().map(|token| (token.id, token.bytes.into(), token.start, token.end)).collect()
}

fn narrow(id: i64) -> PyResult<u32> {
    u32::try_from(id).map_err(|_| TokenizerError::new_err(format!("no token has the id {id}")))
}

fn id_array(py: Python<'_>, ids: Vec<u32>) -> IdArray<'_> {
    PyArray1::from_iter(py, ids.into_iter().map(i64::from))
}

/// A rendered chat.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct RenderedChat(chat_template::RenderedChat);

#[pymethods]
impl RenderedChat {
    #[getter]
    fn text(&self) -> &str {
        self.0.text()
    }
}

/// A compiled chat template.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct ChatTemplate(chat_template::ChatTemplate);

#[pymethods]
impl ChatTemplate {
    #[new]
    #[pyo3(signature = (source, *, tokenizer, special_tokens))]
    fn new(
        py: Python<'_>,
        source: &str,
        tokenizer: &Tokenizer,
        special_tokens: HashMap<String, String>,
    ) -> PyResult<Self> {
        let special_tokens = special_tokens.into_iter().collect();
        guard(py, || chat_template::ChatTemplate::new(source, &tokenizer.0, special_tokens)).map(Self)
    }

    #[pyo3(signature = (
        messages_json, *, tools_json = None, documents_json = None, variables_json = None,
        add_generation_prompt = false, continue_final_message = false, now = None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "each is a keyword argument in Python")]
    fn render(
        &self,
        py: Python<'_>,
        messages_json: &str,
        tools_json: Option<&str>,
        documents_json: Option<&str>,
        variables_json: Option<&str>,
        add_generation_prompt: bool,
        continue_final_message: bool,
        now: Option<f64>,
    ) -> PyResult<RenderedChat> {
        let input = ChatInput {
            messages_json,
            tools_json,
            documents_json,
            variables_json,
            add_generation_prompt,
            continue_final_message,
            now,
        };
        guard(py, || self.0.render(&input)).map(RenderedChat)
    }
}

/// Rows made rectangular.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct Padded {
    input_ids: Py<PyArray2<i64>>,
    attention_mask: Py<PyArray2<i64>>,
    position_ids: Py<PyArray2<i64>>,
}

#[pymethods]
impl Padded {
    #[getter]
    fn input_ids(&self, py: Python<'_>) -> Py<PyArray2<i64>> {
        self.input_ids.clone_ref(py)
    }

    #[getter]
    fn attention_mask(&self, py: Python<'_>) -> Py<PyArray2<i64>> {
        self.attention_mask.clone_ref(py)
    }

    #[getter]
    fn position_ids(&self, py: Python<'_>) -> Py<PyArray2<i64>> {
        self.position_ids.clone_ref(py)
    }
}

#[pyfunction]
#[pyo3(signature = (rows, *, pad_token_id, side, multiple_of = 1))]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 extracts a sequence of arrays as an owned list of borrows")]
fn pad(
    py: Python<'_>,
    rows: Vec<PyReadonlyArray1<'_, i64>>,
    pad_token_id: i64,
    side: &str,
    multiple_of: i64,
) -> PyResult<Padded> {
    let side = match side {
        "left" => Side::Left,
        "right" => Side::Right,
        other => {
            return Err(to_py(Error::InvalidParameters(vec![Violation {
                field: "side".to_owned(),
                rule: "must be 'left' or 'right'".to_owned(),
                value: format!("'{}'", other.chars().take(40).collect::<String>()),
            }])));
        }
    };
    // Rows with a stride are copied, the others borrowed.
    let rows: Vec<Cow<'_, [i64]>> = rows
        .iter()
        .map(|row| row.as_slice().map_or_else(|_| row.as_array().iter().copied().collect(), Cow::Borrowed))
        .collect();
    let padded = guard(py, || {
        let rows: Vec<&[i64]> = rows.iter().map(AsRef::as_ref).collect();
        padding::pad(&rows, pad_token_id, side, multiple_of)
    })?;
    let array = |values: Vec<i64>| values.into_pyarray(py).reshape(padded.shape).map(Bound::unbind);
    Ok(Padded {
        input_ids: array(padded.input_ids)?,
        attention_mask: array(padded.attention_mask)?,
        position_ids: array(padded.position_ids)?,
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_class::<Detokenizer>()?;
    module.add_class::<Aligner>()?;
    module.add_class::<RenderedChat>()?;
    module.add_class::<ChatTemplate>()?;
    module.add_class::<Padded>()?;
    module.add_function(wrap_pyfunction!(pad, module)?)
}
