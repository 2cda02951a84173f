//! minijinja set up as transformers sets up jinja2.

use super::{dialect, filters, methods, python};
use chrono::{Local, NaiveDateTime, TimeZone as _};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use regex::Regex;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// Steps of one rendering: an instruction, or 64 bytes of data. Models' templates use a few hundred per message; this
/// many run in about a second.
pub(super) const FUEL: u64 = 10_000_000;

/// Nesting of macros and blocks; the engine's own stack use is known to fit at this depth.
const RECURSION_LIMIT: usize = 200;

const NAME: &str = "chat_template";

/// What `raise_exception` was called with; travels as the source of minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment that holds the compiled template.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    // ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True) in transformers' chat_template_utils.
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| Ok(out.write_str(&python::to_str(value)?)?));
    env.set_unknown_method_callback(methods::call);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION_LIMIT);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = python::to_str(&message)?.into_owned();
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    filters::register(&mut env);
    dialect::register(&mut env);
    env.add_template_owned(NAME, dialect::rewrite(&without_generation_tags(source))?)?;
    Ok(env)
}

/// Renders the compiled template.
pub(super) fn template<'env>(env: &'env Environment<'static>) -> Result<minijinja::Template<'env, 'env>, Error> {
    env.get_template(NAME)
}

static GENERATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

/// transformers' `{% generation %}` marks the assistant's text for training and renders its body in a scope of its own:
/// that is an empty `{% with %}`.
fn without_generation_tags(source: &str) -> String {
    match GENERATION.as_ref() {
        Some(regex) => regex.replace_all(source, "{%${1} ${2}with ${3}%}").into_owned(),
        None => source.to_owned(),
    }
}

/// The local time that `strftime_now` reads; `seconds` since the epoch, or the clock.
pub(super) fn local_time(seconds: Option<f64>) -> Option<NaiveDateTime> {
    let Some(seconds) = seconds else { return Some(Local::now().naive_local()) };
    // f64 has no lossless way to i64; the range is checked by chrono.
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and chrono refuses what is out of range")]
    let micros = (seconds * 1e6).round() as i64;
    Local.timestamp_micros(micros).single().map(|time| time.naive_local())
}

/// `strftime_now(format)` at a fixed time.
pub(super) fn strftime_now(now: NaiveDateTime) -> Value {
    Value::from_function(move |format: &str| -> Result<String, Error> {
        // Python's datetime has no zone here, and its %f has six digits.
        let format = format.replace("%Z", "").replace("%z", "").replace("%f", "%6f");
        let mut out = String::new();
        write!(out, "{}", now.format(&format))
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now does not know this format"))?;
        Ok(out)
    })
}
