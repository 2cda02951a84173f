//! Methods of Python's `str`, `list` and `dict` that templates call.
//!
//! minijinja-contrib has most; here are the ones it lacks and those where Python differs: what counts as a space, the
//! line boundaries of `splitlines`, splitting from the right, keyword arguments.

use super::python::is_space;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Called for a method that minijinja's value does not have.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let result = match value.as_str() {
        Some(text) => string_method(text, method, args)?,
        None if value.kind() == ValueKind::Map && method == "copy" => Some(value.clone()),
        None if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) => list_method(value, method, args)?,
        None => None,
    };
    match result {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => value.clone(),
        "index" => {
            let (item,): (Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|other| other == item);
            Value::from(place.ok_or_else(|| invalid("the item is not in the list"))?)
        }
        _ => return Ok(None),
    }))
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" => Value::from(trim(text, set(args)?.as_deref(), true, true)),
        "lstrip" => Value::from(trim(text, set(args)?.as_deref(), true, false)),
        "rstrip" => Value::from(trim(text, set(args)?.as_deref(), false, true)),
        "split" => split(text, args, false)?,
        "rsplit" => split(text, args, true)?,
        "splitlines" => split_lines(text, args)?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = match if method == "partition" { text.find(separator) } else { text.rfind(separator) } {
                _ if separator.is_empty() => return Err(invalid("empty separator")),
                Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(what) } else { text.rfind(what) };
            Value::from(text[..at.ok_or_else(|| invalid("substring not found"))?].chars().count())
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "capitalize" => {
            let () = from_args(args)?;
            Value::from(capitalize(text))
        }
        "swapcase" => {
            let () = from_args(args)?;
            Value::from(text.chars().map(|c| if c.is_uppercase() { lower(c) } else { upper(c) }).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "ljust" | "rjust" | "center" | "zfill" => justify(text, method, args)?,
        "join" => {
            let (values,): (Value,) = from_args(args)?;
            let mut parts = Vec::new();
            for part in values.try_iter()? {
                let Some(part) = part.to_str() else {
                    return Err(invalid(format!("join needs strings, got {}", part.kind())));
                };
                parts.push(part);
            }
            Value::from(parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(text))
        }
        _ => return Ok(None),
    }))
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The characters to strip; none means whitespace.
fn set(args: &[Value]) -> Result<Option<String>, Error> {
    let (characters,): (Option<Value>,) = from_args(args)?;
    match characters {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(invalid("strip needs a string or None")),
        },
    }
}

/// `str.strip` and its halves.
pub(super) fn trim<'a>(text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |character: char| set.map_or_else(|| is_space(character), |set| set.contains(character));
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        match positional.get(index) {
            Some(value) => Ok(value.clone()),
            None if kwargs.has(name) => kwargs.get(name),
            None => Ok(Value::from(())),
        }
    };
    let (separator, limit) = (argument(0, "sep")?, argument(1, "maxsplit")?);
    kwargs.assert_all_used()?;
    let limit = if limit.is_none() { -1 } else { i64::try_from(limit)? };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match separator.as_str() {
        None if separator.is_none() => split_spaces(text, limit, from_right),
        None => return Err(invalid("split needs a string or None")),
        Some("") => return Err(invalid("empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(limit.saturating_add(1), separator).collect(),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `str.split(None)`: runs of whitespace separate, none at the ends.
fn split_spaces(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = trim(text, None, !from_right, from_right);
    while !rest.is_empty() && parts.len() < limit {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut else { break };
        if from_right {
            let width = rest[at..].chars().next().map_or(0, char::len_utf8);
            parts.push(&rest[at + width..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    // What is left keeps the spaces at its far end only where the limit cut the splitting short.
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Line boundaries of `str.splitlines`.
fn is_line_boundary(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\u{B}' | '\u{C}' | '\u{1C}'..='\u{1E}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (positional, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
    let keep_ends = positional.or(kwargs.get("keepends")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_line_boundary).unwrap_or(rest.len());
        let boundary =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep_ends { end + boundary } else { end }]));
        rest = &rest[end + boundary..];
    }
    Ok(Value::from(lines))
}

pub(super) fn upper(character: char) -> String {
    character.to_uppercase().collect()
}

pub(super) fn lower(character: char) -> String {
    character.to_lowercase().collect()
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(upper).unwrap_or_default() + &characters.as_str().to_lowercase()
}

/// `str.title`: a letter behind anything but a letter is upper case.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        out += &if after_letter { lower(character) } else { upper(character) };
        after_letter = character.is_uppercase() || character.is_lowercase();
    }
    out
}

fn justify(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    justified(text, method, width, fill).map(Value::from)
}

/// `str.ljust`, `rjust`, `center` and `zfill`.
pub(super) fn justified(text: &str, method: &str, width: usize, fill: Option<char>) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    if missing > 1 << 20 {
        return Err(invalid("the width is too large"));
    }
    let fill = fill.unwrap_or(if method == "zfill" { '0' } else { ' ' }).to_string();
    let (before, after) = match method {
        "ljust" => (0, missing),
        // CPython puts the odd one on the left when the width is odd.
        "center" => (missing / 2 + (missing & width & 1), missing - missing / 2 - (missing & width & 1)),
        _ => (missing, 0),
    };
    let sign = if method == "zfill" && text.starts_with(['+', '-']) { &text[..1] } else { "" };
    let body = &text[sign.len()..];
    Ok(format!("{sign}{}{body}{}", fill.repeat(before), fill.repeat(after)))
}
