//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use super::MAX_OUTPUT;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use regex::Regex;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// `str.isspace` of one character: Unicode `White_Space` and the four information separators.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

/// Levels of lists and dicts inside each other that are written, compared and stored: models' data have a few.
pub(super) const MAX_NESTING: usize = 200;

/// The error for more than [`MAX_NESTING`] levels.
pub(super) fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {MAX_NESTING} levels deep"))
}

/// Refuses to go on below the deepest level, and beyond the longest text.
fn check_writing(depth: usize, out: &str) -> Result<(), Error> {
    if depth > MAX_NESTING {
        return Err(too_deep());
    }
    if out.len() > MAX_OUTPUT {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a value's text exceeds {MAX_OUTPUT} bytes")));
    }
    Ok(())
}

/// `str(value)`; an undefined value is empty, as jinja2 prints it.
///
/// # Errors
/// For a value that is nested too deeply, or whose text is too long.
pub(super) fn to_str(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::new();
    if !value.is_undefined() {
        write_repr(value, 0, &mut out)?;
    }
    Ok(Cow::Owned(out))
}

fn write_repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check_writing(depth, out)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_str_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => write_number(value, out, ["inf", "-inf", "nan"]),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            out.push_str(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(&item, depth + 1, out)?;
                count += 1;
            }
            if count == 1 && value.is_tuple() {
                out.push(',');
            }
            out.push_str(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out)?;
            }
            out.push('}');
        }
        _ => {
            // Writing to a String cannot fail.
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// What `repr` escapes: everything that `str.isprintable` refuses.
static NOT_PRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}--[ ]]$").ok());

fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    let mut buffer = [0; 4];
    !NOT_PRINTABLE.as_ref().is_some_and(|regex| regex.is_match(character.encode_utf8(&mut buffer)))
}

fn write_str_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        let code = u32::from(character);
        let _ = match character {
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            _ if character == quote => write!(out, "\\{character}"),
            _ if is_printable(character) => out.write_char(character),
            _ if code <= 0xFF => write!(out, "\\x{code:02x}"),
            _ if code <= 0xFFFF => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
}

/// Integers as they are, floats as `float.__repr__`: exponents below -4 and from 16, of two digits at least.
fn write_number(value: &Value, out: &mut String, specials: [&str; 3]) {
    let number = if value.is_integer() { None } else { f64::try_from(value.clone()).ok() };
    let _ = match number {
        None => write!(out, "{value}"),
        Some(number) if number.is_nan() => out.write_str(specials[2]),
        Some(number) if number.is_infinite() => out.write_str(specials[usize::from(number < 0.0)]),
        Some(number) => {
            // Rust's shortest digits are Python's, and its Debug switches to exponents at 1e16 and below 1e-4.
            let digits = format!("{number:?}");
            match digits.split_once('e') {
                None => out.write_str(&digits),
                Some((mantissa, exponent)) => {
                    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                    write!(out, "{}e{sign}{exponent:0>2}", mantissa.trim_end_matches(".0"))
                }
            }
        }
    };
}

/// The options of `json.dumps` that transformers' `tojson` passes on.
pub(super) struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl JsonStyle {
    /// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, in this order when positional.
    pub(super) fn from_args(args: &[Value], kwargs: &Kwargs) -> Result<Self, Error> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if args.len() > names.len() {
            return Err(Error::new(ErrorKind::TooManyArguments, "tojson takes at most four arguments"));
        }
        let mut values = names.map(|_| Value::from(()));
        for (index, name) in names.iter().enumerate() {
            if let Some(value) = args.get(index) {
                values[index] = value.clone();
            } else if kwargs.has(name) {
                values[index] = kwargs.get(name)?;
            }
        }
        kwargs.assert_all_used()?;
        let [ensure_ascii, indent, separators, sort_keys] = values;
        let indent = match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None if indent.is_none() => None,
            None => Some(" ".repeat(usize::try_from(i64::try_from(indent)?.max(0)).unwrap_or(0).min(64))),
        };
        let (mut item_separator, mut key_separator) =
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
        if !separators.is_none() {
            let mut parts = separators.try_iter()?;
            match (parts.next(), parts.next(), parts.next()) {
                (Some(item), Some(key), None) => {
                    item_separator = to_str(&item)?.into_owned();
                    key_separator = to_str(&key)?.into_owned();
                }
                _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
            }
        }
        Ok(Self {
            ensure_ascii: ensure_ascii.is_true(),
            indent,
            item_separator,
            key_separator,
            sort_keys: sort_keys.is_true(),
        })
    }

    /// `json.dumps(value)`.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        check_writing(depth, out)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(value, out, ["Infinity", "-Infinity", "NaN"]),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.write_container(['[', ']'], items, depth, out)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(json_key(&key)?), item));
                }
                if self.sort_keys {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.write_container(['{', '}'], items, depth, out)?;
            }
            kind => {
                let detail = format!("{kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, detail));
            }
        }
        Ok(())
    }

    fn write_container(
        &self,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(open);
        let is_empty = items.is_empty();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(depth + 1, out);
            if let Some(key) = key {
                self.write_string(&key, out);
                out.push_str(&self.key_separator);
            }
            self.write(&item, depth + 1, out)?;
        }
        if !is_empty {
            self.break_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn break_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            let _ = match character {
                '"' => out.write_str("\\\""),
                '\\' => out.write_str("\\\\"),
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '\u{8}' => out.write_str("\\b"),
                '\u{C}' => out.write_str("\\f"),
                '\0'..'\u{20}' => write!(out, "\\u{:04x}", u32::from(character)),
                '\u{7F}'.. if self.ensure_ascii => {
                    let mut units = [0; 2];
                    character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                _ => out.write_char(character),
            };
        }
        out.push('"');
    }
}

/// A key of a dict as `json.dumps` writes it.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => {
            let mut out = String::new();
            write_number(key, &mut out, ["Infinity", "-Infinity", "NaN"]);
            Ok(out)
        }
        kind => Err(Error::new(ErrorKind::NonKey, format!("keys must be str, int, float, bool or None, not {kind}"))),
    }
}
