//! Parameters for Python: keyword arguments into options, which the core validates.
//!
//! A field is read by its name from the keywords, so that it is written twice here and not five times: in the
//! signature that Python sees, and where its value goes.

use crate::errors::guard;
use crate::ids::{Ids, Integer};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;
use std::sync::Arc;
use tokenwire_core::params::{self, GreenList, SamplingOptions, StoppingOptions, SynthIdText, Watermark};

/// How to turn logits into a token.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct SamplingParams(pub Arc<params::SamplingParams>);

#[pymethods]
impl SamplingParams {
    #[new]
    #[pyo3(
        signature = (**fields),
        text_signature = "(*, vocab_size, do_sample=False, temperature=1.0, top_h=None, top_k=0, top_p=1.0, min_p=0.0, \
            typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0, min_tokens_to_keep=1, watermark=None, \
            renormalize_logits=False, \
            repetition_penalty=1.0, encoder_repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, \
            no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0, logit_bias=None, sequence_bias=(), \
            bad_words_ids=(), suppress_tokens=(), begin_suppress_tokens=(), allowed_token_ids=None, \
            forced_bos_token_id=None, remove_invalid_values=False, guidance_scale=1.0, seed=0, logprobs=None, \
            processed_logprobs=False, explain=False)"
    )]
    fn new(py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut options = SamplingOptions::new(required(fields, "vocab_size")?);
        for field in Field::all(fields) {
            let field = field?;
            match field.name.as_ref() {
                "vocab_size" => {}
                "do_sample" => options.do_sample = field.read()?,
                "temperature" => options.temperature = field.read()?,
                "top_h" => options.top_h = field.read()?,
                "top_k" => options.top_k = field.integer()?,
                "top_p" => options.top_p = field.read()?,
                "min_p" => options.min_p = field.read()?,
                "typical_p" => options.typical_p = field.read()?,
                "epsilon_cutoff" => options.epsilon_cutoff = field.read()?,
                "eta_cutoff" => options.eta_cutoff = field.read()?,
                "min_tokens_to_keep" => options.min_tokens_to_keep = field.integer()?,
                "watermark" => options.watermark = field.watermark()?,
                "renormalize_logits" => options.renormalize_logits = field.read()?,
                "repetition_penalty" => options.repetition_penalty = field.read()?,
                "encoder_repetition_penalty" => options.encoder_repetition_penalty = field.read()?,
                "presence_penalty" => options.presence_penalty = field.read()?,
                "frequency_penalty" => options.frequency_penalty = field.read()?,
                "no_repeat_ngram_size" => options.no_repeat_ngram_size = field.integer()?,
                "encoder_no_repeat_ngram_size" => options.encoder_no_repeat_ngram_size = field.integer()?,
                "logit_bias" => options.logit_bias = field.biases()?,
                "sequence_bias" => {
                    let entries: Vec<(Ids, f64)> = field.items()?;
                    options.sequence_bias = entries.into_iter().map(|(ids, bias)| (ids.0, bias)).collect();
                }
                "bad_words_ids" => {
                    let words: Vec<Ids> = field.items()?;
                    options.bad_words_ids = words.into_iter().map(|ids| ids.0).collect();
                }
                "suppress_tokens" => options.suppress_tokens = field.read::<Ids>()?.0,
                "begin_suppress_tokens" => options.begin_suppress_tokens = field.read::<Ids>()?.0,
                "allowed_token_ids" => options.allowed_token_ids = field.read::<Option<Ids>>()?.map(|ids| ids.0),
                "forced_bos_token_id" => options.forced_bos_token_id = field.optional_integer()?,
                "remove_invalid_values" => options.remove_invalid_values = field.read()?,
                "guidance_scale" => options.guidance_scale = field.read()?,
                "seed" => options.seed = field.read::<Integer>()?.0,
                "logprobs" => options.logprobs = field.optional_integer()?,
                "processed_logprobs" => options.processed_logprobs = field.read()?,
                "explain" => options.explain = field.read()?,
                _ => return Err(field.unexpected()),
            }
        }
        guard(py, || params::SamplingParams::new(&options)).map(|params| Self(Arc::new(params)))
    }
}

/// When a sequence ends.
#[pyclass(frozen, module = "tokenwire._native")]
pub struct StoppingParams(pub Arc<params::StoppingParams>);

#[pymethods]
impl StoppingParams {
    #[new]
    #[pyo3(
        signature = (**fields),
        text_signature = "(*, vocab_size, max_new_tokens, min_new_tokens=0, min_length=0, eos_token_ids=(), \
            forced_eos_token_ids=(), exponential_decay_length_penalty=None, stop_token_ids=(), stop_strings=(), \
            include_stop_string=False)"
    )]
    fn new(py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut options = StoppingOptions::new(required(fields, "vocab_size")?, required(fields, "max_new_tokens")?);
        for field in Field::all(fields) {
            let field = field?;
            match field.name.as_ref() {
                "vocab_size" | "max_new_tokens" => {}
                "min_new_tokens" => options.min_new_tokens = field.integer()?,
                "min_length" => options.min_length = field.integer()?,
                "eos_token_ids" => options.eos_token_ids = field.read::<Ids>()?.0,
                "forced_eos_token_ids" => options.forced_eos_token_ids = field.read::<Ids>()?.0,
                "exponential_decay_length_penalty" => {
                    let penalty: Option<(Integer, f64)> = field.read()?;
                    options.exponential_decay_length_penalty = penalty.map(|(start, factor)| (start.clamped(), factor));
                }
                "stop_token_ids" => options.stop_token_ids = field.read::<Ids>()?.0,
                "stop_strings" => {
                    let strings: Vec<PyBackedStr> = field.read()?;
                    options.stop_strings = strings.iter().map(ToString::to_string).collect();
                }
                "include_stop_string" => options.include_stop_string = field.read()?,
                _ => return Err(field.unexpected()),
            }
        }
        guard(py, || params::StoppingParams::new(&options)).map(|params| Self(Arc::new(params)))
    }
}

/// A field that has no default.
fn required(fields: Option<&Bound<'_, PyDict>>, name: &str) -> PyResult<i64> {
    let value = fields.map(|fields| fields.get_item(name)).transpose()?.flatten();
    let value = value.ok_or_else(|| PyTypeError::new_err(format!("missing required keyword argument: '{name}'")))?;
    Field { name: name.to_owned(), value }.integer()
}

/// One keyword argument.
struct Field<'py> {
    name: String,
    value: Bound<'py, PyAny>,
}

impl<'py> Field<'py> {
    fn all(fields: Option<&Bound<'py, PyDict>>) -> impl Iterator<Item = PyResult<Self>> {
        let items = fields.into_iter().flat_map(PyDictMethods::iter);
        items.map(|(name, value)| Ok(Self { name: name.extract()?, value }))
    }

    fn read<T>(&self) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        self.value.extract::<T>().map_err(|error| self.named(error.into()))
    }

    fn integer(&self) -> PyResult<i64> {
        Ok(self.read::<Integer>()?.clamped())
    }

    fn optional_integer(&self) -> PyResult<Option<i64>> {
        Ok(self.read::<Option<Integer>>()?.map(|value| value.clamped()))
    }

    /// A map from ids to numbers, or none.
    fn biases(&self) -> PyResult<Vec<(i64, f64)>> {
        let Some(biases) =
            self.value.extract::<Option<Bound<'py, PyDict>>>().map_err(|error| self.named(error.into()))?
        else {
            return Ok(Vec::new());
        };
        let read = |(id, bias): (Bound<'py, PyAny>, Bound<'py, PyAny>)| {
            Ok((id.extract::<Integer>()?.clamped(), bias.extract::<f64>()?))
        };
        biases.iter().map(read).collect::<PyResult<_>>().map_err(|error| self.named(error))
    }

    /// The items of any iterable.
    fn items<T>(&self) -> PyResult<Vec<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let items = self.value.try_iter().map_err(|error| self.named(error))?;
        items.map(|item| item?.extract::<T>().map_err(|error| self.named(error.into()))).collect()
    }

    /// An object with the attributes of one of the two schemes, or none.
    fn watermark(&self) -> PyResult<Option<Watermark>> {
        if self.value.is_none() {
            return Ok(None);
        }
        let attribute = |name: &str| -> PyResult<Self> {
            Ok(Self { name: format!("{}.{name}", self.name), value: self.value.getattr(name)? })
        };
        if self.value.hasattr("greenlist_ratio")? {
            return Ok(Some(Watermark::GreenList(GreenList {
                greenlist_ratio: attribute("greenlist_ratio")?.read()?,
                bias: attribute("bias")?.read()?,
                hashing_key: attribute("hashing_key")?.read::<Integer>()?.0,
                seeding_scheme: attribute("seeding_scheme")?.read()?,
                context_width: attribute("context_width")?.integer()?,
            })));
        }
        if self.value.hasattr("ngram_len")? {
            let keys: Vec<Integer> = attribute("keys")?.items()?;
            return Ok(Some(Watermark::SynthIdText(SynthIdText {
                ngram_len: attribute("ngram_len")?.integer()?,
                keys: keys.iter().map(|key| key.0).collect(),
                context_history_size: attribute("context_history_size")?.integer()?,
                sampling_table_seed: attribute("sampling_table_seed")?.read::<Integer>()?.0,
                sampling_table_size: attribute("sampling_table_size")?.integer()?,
                skip_first_ngram_calls: attribute("skip_first_ngram_calls")?.read()?,
                debug_mode: attribute("debug_mode")?.read()?,
            })));
        }
        Err(PyTypeError::new_err(format!("argument '{}': not a watermark", self.name)))
    }

    /// A wrong type, with the name of the argument; other errors as they are.
    fn named(&self, error: PyErr) -> PyErr {
        if error.is_instance_of::<PyTypeError>(self.value.py()) {
            PyTypeError::new_err(format!("argument '{}': {}", self.name, error.value(self.value.py())))
        } else {
            error
        }
    }

    fn unexpected(&self) -> PyErr {
        PyTypeError::new_err(format!("unexpected keyword argument '{}'", self.name))
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_SYNTH_ID_KEYS", tokenwire_core::params::MAX_SYNTH_ID_KEYS)?;
    module.add_class::<SamplingParams>()?;
    module.add_class::<StoppingParams>()
}
