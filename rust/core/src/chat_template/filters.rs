//! jinja2's filters and tests where minijinja's differ from them.

use super::methods::{capitalize, justified, lower, trim, upper};
use super::python::{JsonStyle, to_str};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::{filters as contrib, globals};
use std::borrow::Cow;

/// Adds them to an environment, and takes out what jinja2 does not know.
pub(super) fn register(env: &mut Environment<'_>) {
    for unknown in ["split", "lines", "bool", "chain", "zip"] {
        env.remove_filter(unknown);
    }
    for unknown in ["startingwith", "endingwith"] {
        env.remove_test(unknown);
    }
    env.remove_global("debug");
    env.add_function("cycler", globals::cycler);
    env.add_function("joiner", globals::joiner);
    env.add_filter("striptags", contrib::striptags);

    env.add_filter("tojson", |value: &Value, args: Rest<Value>, kwargs: Kwargs| {
        JsonStyle::from_args(&args, &kwargs)?.dumps(value)
    });
    env.add_filter("string", |value: &Value| to_str(value).map(Cow::into_owned));
    env.add_filter("upper", |value: &Value| to_str(value).map(|text| text.to_uppercase()));
    env.add_filter("lower", |value: &Value| to_str(value).map(|text| text.to_lowercase()));
    env.add_filter("capitalize", |value: &Value| to_str(value).map(|text| capitalize(&text)));
    env.add_filter("title", |value: &Value| to_str(value).map(|text| title(&text)));
    env.add_filter("wordcount", |value: &Value| to_str(value).map(|text| word_count(&text)));
    env.add_filter("trim", |value: &Value, characters: Option<&str>| {
        to_str(value).map(|text| trim(&text, characters, true, true).to_owned())
    });
    env.add_filter("center", |value: &Value, width: Option<usize>| {
        justified(&to_str(value)?, "center", width.unwrap_or(80), None)
    });
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_filter("forceescape", |value: &Value| escape(&Value::from(to_str(value)?)));
    env.add_filter("truncate", truncate);
    env.add_filter("join", join);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("int", int);
    env.add_filter("float", float);

    env.add_test("sequence", is_sequence);
}

/// What has a length and items: lists, but also strings and dicts; undefined has both in jinja2.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        // Slices and sums of lists know their length, generators do not.
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// `do_title`: upper case behind a dash, a space or an opening bracket.
fn title(text: &str) -> String {
    let mut after_break = true;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        out += &if after_break { upper(character) } else { lower(character) };
        after_break = character.is_whitespace() || matches!(character, '-' | '(' | '{' | '[' | '<');
    }
    out
}

/// `do_wordcount`: runs of `\w`.
fn word_count(text: &str) -> usize {
    text.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter(|word| !word.is_empty())
        .count()
}

/// `markupsafe.escape`.
fn escape(value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let mut out = String::new();
    for character in to_str(value)?.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// The argument at a place, or of a name.
fn argument(args: &[Value], kwargs: &Kwargs, index: usize, name: &str) -> Result<Option<Value>, Error> {
    match args.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None if kwargs.has(name) => kwargs.get(name).map(Some),
        None => Ok(None),
    }
}

/// `join(value, d='', attribute=None)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn join(values: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let separator = argument(&args, &kwargs, 0, "d")?.unwrap_or_else(|| Value::from(""));
    let attribute = argument(&args, &kwargs, 1, "attribute")?.filter(|name| !name.is_none());
    kwargs.assert_all_used()?;
    let mut parts = Vec::new();
    for item in values.try_iter()? {
        let item = match &attribute {
            Some(name) => item.get_item(name)?,
            None => item,
        };
        parts.push(to_str(&item)?.into_owned());
    }
    Ok(parts.join(&*to_str(&separator)?))
}

/// `truncate(s, length=255, killwords=False, end='...', leeway=5)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn truncate(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let whole = |index: usize, name: &str, default: usize| -> Result<usize, Error> {
        argument(&args, &kwargs, index, name)?.filter(|value| !value.is_none()).map_or(Ok(default), usize::try_from)
    };
    let (length, leeway) = (whole(0, "length", 255)?, whole(3, "leeway", 5)?);
    let by_character = argument(&args, &kwargs, 1, "killwords")?.is_some_and(|value| value.is_true());
    let end = argument(&args, &kwargs, 2, "end")?.unwrap_or_else(|| Value::from("..."));
    kwargs.assert_all_used()?;
    let (Some(text), Some(end)) = (value.as_str(), end.as_str()) else {
        return Err(Error::new(ErrorKind::InvalidOperation, "truncate needs strings"));
    };
    let kept = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "truncate needs a length that its end fits"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let cut = text.char_indices().nth(kept).map_or(text, |(at, _)| &text[..at]);
    let cut = if by_character { cut } else { cut.rsplit_once(' ').map_or(cut, |(words, _)| words) };
    Ok(format!("{cut}{end}"))
}

/// `default(value, default_value='', boolean=False)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn default(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, &kwargs, 0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let by_truth = argument(&args, &kwargs, 1, "boolean")?.is_some_and(|boolean| boolean.is_true());
    kwargs.assert_all_used()?;
    Ok(if value.is_undefined() || (by_truth && !value.is_true()) { other } else { value.clone() })
}

/// `int(value, default=0, base=10)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn int(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, &kwargs, 0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = match argument(&args, &kwargs, 1, "base")? {
        Some(base) => u32::try_from(base)?.clamp(2, 36),
        None => 10,
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(undefined());
    }
    let whole = match value.as_str() {
        Some(text) => {
            let digits = text.trim().to_ascii_lowercase().replace('_', "");
            let prefix = match base {
                2 => "0b",
                8 => "0o",
                16 => "0x",
                _ => "",
            };
            let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
            i128::from_str_radix(digits, base).ok().or_else(|| digits.parse().ok().and_then(truncated))
        }
        None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
        None if value.is_integer() => return Ok(value.clone()),
        None => f64::try_from(value.clone()).ok().and_then(truncated),
    };
    Ok(whole.map_or(other, Value::from))
}

/// jinja2's undefined refuses to be a number.
fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "it is no number")
}

fn truncated(number: f64) -> Option<i128> {
    #[expect(clippy::cast_possible_truncation, reason = "the integer part is what int() gives")]
    number.is_finite().then_some(number as i128)
}

/// `float(value, default=0.0)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn float(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = argument(&args, &kwargs, 0, "default")?.unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(undefined());
    }
    let number = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or(other, Value::from))
}
