//! Where minijinja's language differs from jinja2's: a template is rewritten so that its meaning is jinja2's.
//!
//! `rewrite` finds the expressions of a template, parses them with jinja2's grammar and puts calls in the place of what
//! differs: `a % b`, `a ~ b`, comparisons of order, loops and filters over none, and names of Python's methods that are
//! read without being called. `runtime` is what those calls do. Lines stay where they are, so error messages hold; an
//! expression that cannot be parsed stays as it is.

mod lexer;
mod parser;
mod runtime;

pub(super) use runtime::register;

use lexer::{Tag, Tags};
use minijinja::{Error, ErrorKind};

/// Longest template in bytes: those of models have some 20 KiB.
const MAX_SOURCE: usize = 1 << 20;

/// Most tokens of one tag: those of models have a few hundred at most. Parser and compiler need stack for the longest.
const MAX_TAG_TOKENS: usize = 2_000;

/// The template with jinja2's meaning.
///
/// # Errors
/// For a template that is too long, or has too long a tag.
pub(super) fn rewrite(source: &str) -> Result<String, Error> {
    let refuse = |detail: String| Err(Error::new(ErrorKind::SyntaxError, detail));
    if source.len() > MAX_SOURCE {
        return refuse(format!("the template exceeds {MAX_SOURCE} bytes"));
    }
    let mut edits = Vec::new();
    for tag in Tags::new(source) {
        let Tag { tokens, is_statement } = tag;
        if tokens.len() > MAX_TAG_TOKENS {
            return refuse(format!("a tag exceeds {MAX_TAG_TOKENS} tokens"));
        }
        match parser::edits(source, &tokens, is_statement) {
            parser::Outcome::Edits(of_tag) => edits.extend(of_tag),
            parser::Outcome::TooDeep => {
                return refuse(format!("an expression is nested more than {} levels deep", parser::MAX_DEPTH));
            }
        }
    }
    Ok(apply(source, edits))
}

/// A piece of the source and what takes its place. Insertions have an empty piece.
struct Edit {
    start: usize,
    end: usize,
    text: String,
    /// Closes what an earlier edit opened, so it comes before anything that opens at the same place.
    closes: bool,
}

impl Edit {
    fn open(at: usize, text: &str) -> Self {
        Self { start: at, end: at, text: text.to_owned(), closes: false }
    }

    fn close(at: usize, text: &str) -> Self {
        Self { start: at, end: at, text: text.to_owned(), closes: true }
    }

    fn replace(start: usize, end: usize, text: &str) -> Self {
        Self { start, end, text: text.to_owned(), closes: false }
    }
}

/// `edits` are in the order in which the parser finished them: inner before outer.
fn apply(source: &str, edits: Vec<Edit>) -> String {
    let mut ordered: Vec<(usize, Edit)> = edits.into_iter().enumerate().collect();
    ordered.sort_by_key(|(index, edit)| {
        let index = i64::try_from(*index).unwrap_or(i64::MAX);
        // Inner ends come first and outer beginnings; a replaced piece comes after what ends or opens before it.
        (edit.start, edit.end > edit.start, !edit.closes, if edit.closes { index } else { -index })
    });
    let mut out = String::with_capacity(source.len() * 2);
    let mut at = 0;
    for (_, edit) in ordered {
        out.push_str(source.get(at..edit.start).unwrap_or_default());
        out.push_str(&edit.text);
        at = edit.end;
    }
    out.push_str(source.get(at..).unwrap_or_default());
    out
}
