//! jinja2's grammar of expressions (`jinja2.parser`), far enough to know where each operand begins and ends.

use super::Edit;
use super::lexer::{Kind, Token};
use super::runtime::{
    ATTRIBUTE, CONCAT, CONTAINS, ITEM, ITERABLE, MODULO, ORDER, SHALLOW, SLICEABLE, STORED, is_method,
};

/// Filters that iterate over their input, which none is not.
const ITERATING: [&str; 10] = ["batch", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique"];

/// Nesting of an expression that is allowed; templates have a few levels.
pub(super) const MAX_DEPTH: usize = 60;

/// What one tag needs.
pub(super) enum Outcome {
    /// Nothing, if it is no expression of this grammar.
    Edits(Vec<Edit>),
    /// It is nested more than [`MAX_DEPTH`] levels deep.
    TooDeep,
}

/// The edits of one tag.
pub(super) fn edits(source: &str, tokens: &[Token], is_statement: bool) -> Outcome {
    let mut parser = Parser { source, tokens, at: 0, depth: 0, edits: Vec::new() };
    let parsed = if is_statement { parser.statement() } else { parser.tuple(true).map(|_| ()) };
    match parsed {
        Some(()) if parser.at == tokens.len() => Outcome::Edits(parser.edits),
        None if parser.depth > MAX_DEPTH => Outcome::TooDeep,
        _ => Outcome::Edits(Vec::new()),
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    edits: Vec<Edit>,
}

/// Bytes of an expression in the source.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl<'a> Parser<'a> {
    fn text(&self, index: usize) -> &'a str {
        self.tokens.get(index).and_then(|token| self.source.get(token.start..token.end)).unwrap_or_default()
    }

    fn kind(&self) -> Option<Kind> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn is(&self, kind: Kind, text: &str) -> bool {
        self.kind() == Some(kind) && self.text(self.at) == text
    }

    fn operator(&self) -> &'a str {
        if self.kind() == Some(Kind::Operator) { self.text(self.at) } else { "" }
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).copied();
        self.at += 1;
        token
    }

    fn skip(&mut self, kind: Kind, text: &str) -> bool {
        let found = self.is(kind, text);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, operator: &str) -> Option<()> {
        self.skip(Kind::Operator, operator).then_some(())
    }

    fn end(&self) -> usize {
        self.at.checked_sub(1).and_then(|last| self.tokens.get(last)).map_or(0, |token| token.end)
    }

    fn start(&self) -> Option<usize> {
        self.tokens.get(self.at).map(|token| token.start)
    }

    /// The statements that hold expressions in which something is to be rewritten; others are left as they are.
    fn statement(&mut self) -> Option<()> {
        match self.text(self.at) {
            "if" | "elif" => {
                self.at += 1;
                self.tuple(true)?;
            }
            "for" => {
                while !self.skip(Kind::Name, "in") {
                    self.take()?;
                }
                let start = self.start()?;
                let span = self.tuple(false)?;
                self.edits.push(Edit::open(start, "("));
                self.edits.push(Edit::close(span.end, &format!(") | {ITERABLE}")));
                if self.skip(Kind::Name, "if") {
                    self.condition()?;
                }
                self.skip(Kind::Name, "recursive");
            }
            "set" => {
                let is_attribute = self.text(self.at + 2) == ".";
                while !self.skip(Kind::Operator, "=") {
                    self.take()?;
                }
                let start = self.start()?;
                let span = self.tuple(true)?;
                let filter = if is_attribute { STORED } else { SHALLOW };
                self.edits.push(Edit::open(start, "("));
                self.edits.push(Edit::close(span.end, &format!(") | {filter}")));
            }
            "with" => {
                self.at += 1;
                while self.at < self.tokens.len() {
                    self.take()?;
                    self.expect("=")?;
                    self.condition()?;
                    self.skip(Kind::Operator, ",");
                }
            }
            _ => self.at = self.tokens.len(),
        }
        Some(())
    }

    fn tuple(&mut self, with_condition: bool) -> Option<Span> {
        let start = self.start()?;
        loop {
            if with_condition {
                self.condition()?
            } else {
                self.or()?
            };
            if !self.skip(Kind::Operator, ",") {
                break;
            }
            if self.start().is_none() || matches!(self.operator(), ")" | "]") {
                break;
            }
        }
        Some(Span { start, end: self.end() })
    }

    fn condition(&mut self) -> Option<Span> {
        self.descend()?;
        let span = self.or()?;
        let mut end = span.end;
        while self.skip(Kind::Name, "if") {
            end = self.or()?.end;
            if self.skip(Kind::Name, "else") {
                end = self.condition()?.end;
            }
        }
        self.depth -= 1;
        Some(Span { end, ..span })
    }

    fn descend(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn or(&mut self) -> Option<Span> {
        let mut span = self.and()?;
        while self.skip(Kind::Name, "or") {
            span.end = self.and()?.end;
        }
        Some(span)
    }

    fn and(&mut self) -> Option<Span> {
        let mut span = self.not()?;
        while self.skip(Kind::Name, "and") {
            span.end = self.not()?.end;
        }
        Some(span)
    }

    fn not(&mut self) -> Option<Span> {
        let start = self.start()?;
        while self.skip(Kind::Name, "not") {}
        Some(Span { start, end: self.comparison()?.end })
    }

    fn comparison(&mut self) -> Option<Span> {
        let mut span = self.sum()?;
        let mut links = Vec::new();
        while let Some(first) = self.tokens.get(self.at).copied() {
            let operator = self.operator();
            let function = if matches!(operator, "==" | "!=" | "<" | "<=" | ">" | ">=") {
                self.at += 1;
                ORDER.iter().find(|(text, _)| *text == operator).map(|(_, function)| ("", *function))
            } else if self.is(Kind::Name, "not") && self.text(self.at + 1) == "in" {
                self.at += 2;
                Some(("not ", CONTAINS))
            } else if self.skip(Kind::Name, "in") {
                Some(("", CONTAINS))
            } else {
                break;
            };
            links.push((function, Token { end: self.end(), ..first }));
            span.end = self.sum()?.end;
        }
        // A chain stays: Python judges its links one by one.
        if let [(Some((not, function)), place)] = links[..] {
            self.edits.push(Edit::open(span.start, &format!("({not}{function}(")));
            self.edits.push(Edit::replace(place.start, place.end, ","));
            self.edits.push(Edit::close(span.end, "))"));
        }
        Some(span)
    }

    /// Make a call of the operands in `span`, between which `operators` stand.
    fn call(&mut self, function: &str, span: Span, operators: &[Token]) {
        self.edits.push(Edit::open(span.start, &format!("{function}(")));
        self.edits.extend(operators.iter().map(|token| Edit::replace(token.start, token.end, ",")));
        self.edits.push(Edit::close(span.end, ")"));
    }

    fn sum(&mut self) -> Option<Span> {
        let mut span = self.concatenation()?;
        while matches!(self.operator(), "+" | "-") {
            self.at += 1;
            span.end = self.concatenation()?.end;
        }
        Some(span)
    }

    fn concatenation(&mut self) -> Option<Span> {
        let mut span = self.product()?;
        let mut operators = Vec::new();
        while self.operator() == "~" {
            operators.extend(self.take());
            span.end = self.product()?.end;
        }
        if !operators.is_empty() {
            self.call(CONCAT, span, &operators);
        }
        Some(span)
    }

    fn product(&mut self) -> Option<Span> {
        let mut span = self.power()?;
        while matches!(self.operator(), "*" | "/" | "//" | "%") {
            let is_modulo = self.operator() == "%";
            let operator = self.take()?;
            span.end = self.power()?.end;
            if is_modulo {
                self.call(MODULO, span, &[operator]);
            }
        }
        Some(span)
    }

    fn power(&mut self) -> Option<Span> {
        let mut span = self.unary(true)?;
        while self.skip(Kind::Operator, "**") {
            span.end = self.unary(true)?.end;
        }
        Some(span)
    }

    fn unary(&mut self, with_filter: bool) -> Option<Span> {
        let start = self.start()?;
        let mut span = if matches!(self.operator(), "-" | "+") {
            self.at += 1;
            self.descend()?;
            let end = self.unary(false)?.end;
            self.depth -= 1;
            Span { start, end }
        } else {
            self.primary()?
        };
        self.postfix(&mut span)?;
        if with_filter {
            self.filters(&mut span)?;
        }
        Some(span)
    }

    fn primary(&mut self) -> Option<Span> {
        let start = self.start()?;
        match self.kind()? {
            Kind::Name | Kind::Number => self.at += 1,
            Kind::Text => {
                while self.kind() == Some(Kind::Text) {
                    self.at += 1;
                }
            }
            Kind::Operator => self.container()?,
        }
        Some(Span { start, end: self.end() })
    }

    fn container(&mut self) -> Option<()> {
        let close = match self.operator() {
            "(" => ")",
            "[" => "]",
            "{" => "}",
            _ => return None,
        };
        self.at += 1;
        while self.operator() != close {
            self.condition()?;
            if close == "}" {
                self.expect(":")?;
                self.condition()?;
            }
            if !self.skip(Kind::Operator, ",") {
                break;
            }
        }
        self.expect(close)
    }

    fn postfix(&mut self, span: &mut Span) -> Option<()> {
        loop {
            match self.operator() {
                "." => {
                    let dot = self.take()?;
                    let name = self.take()?;
                    span.end = name.end;
                    // The fields of `loop` have names of their own, and are read in every template.
                    let base = self.source.get(span.start..dot.start).unwrap_or_default();
                    let is_read = self.operator() != "(" && base != "loop";
                    let name = self.source.get(name.start..name.end).unwrap_or_default();
                    if is_read && is_method(name) {
                        self.reading(ATTRIBUTE, *span, dot.start, name);
                    }
                }
                "[" => {
                    let bracket = self.take()?;
                    let literal = self.text(self.at);
                    let is_literal = self.kind() == Some(Kind::Text) && self.text(self.at + 1) == "]";
                    let is_slice = self.subscript()?;
                    if is_slice {
                        self.edits.push(Edit::open(span.start, &format!("{SLICEABLE}(")));
                        self.edits.push(Edit::close(bracket.start, ")"));
                    }
                    span.end = self.end();
                    let name = literal.trim_matches(['"', '\'']);
                    if is_literal && self.operator() != "(" && is_method(name) {
                        self.reading(ITEM, *span, bracket.start, name);
                    }
                }
                "(" => {
                    self.arguments()?;
                    span.end = self.end();
                }
                _ => return Some(()),
            }
        }
    }

    /// Make a call of reading `name`, which the source does from `at` on.
    fn reading(&mut self, function: &str, span: Span, at: usize, name: &str) {
        self.edits.push(Edit::open(span.start, &format!("{function}(")));
        self.edits.push(Edit::replace(at, span.end, &format!(", \"{name}\")")));
    }

    /// Whether what is in the brackets is a slice.
    fn subscript(&mut self) -> Option<bool> {
        let mut is_slice = false;
        while self.operator() != "]" {
            if !matches!(self.operator(), ":" | ",") {
                self.condition()?;
            }
            if self.skip(Kind::Operator, ":") {
                is_slice = true;
            } else if self.operator() != "]" {
                self.expect(",")?;
            }
        }
        self.expect("]")?;
        Some(is_slice)
    }

    fn arguments(&mut self) -> Option<()> {
        self.expect("(")?;
        while self.operator() != ")" {
            if matches!(self.operator(), "*" | "**") || (self.text(self.at + 1) == "=" && self.kind()? == Kind::Name) {
                self.at += if self.kind()? == Kind::Name { 2 } else { 1 };
            }
            self.condition()?;
            if !self.skip(Kind::Operator, ",") {
                break;
            }
        }
        self.expect(")")
    }

    fn filters(&mut self, span: &mut Span) -> Option<()> {
        loop {
            if self.operator() == "|" {
                let name = self.text(self.at + 1);
                if ITERATING.contains(&name) {
                    self.edits.push(Edit::close(span.end, &format!(" | {ITERABLE}")));
                }
                self.at += 1;
                self.dotted_name()?;
                if self.operator() == "(" {
                    self.arguments()?;
                }
            } else if self.skip(Kind::Name, "is") {
                self.skip(Kind::Name, "not");
                self.dotted_name()?;
                let is_word =
                    matches!(self.text(self.at), "else" | "or" | "and" | "is" | "if" | "not" | "in" | "recursive");
                if self.operator() == "(" {
                    self.arguments()?;
                } else if (self.kind().is_some_and(|kind| kind != Kind::Operator) && !is_word)
                    || matches!(self.operator(), "[" | "{")
                {
                    let mut argument = self.primary()?;
                    self.postfix(&mut argument)?;
                }
            } else if self.operator() == "(" {
                self.arguments()?;
            } else {
                return Some(());
            }
            span.end = self.end();
        }
    }

    fn dotted_name(&mut self) -> Option<()> {
        loop {
            (self.take()?.kind == Kind::Name).then_some(())?;
            if !self.skip(Kind::Operator, ".") {
                return Some(());
            }
        }
    }
}
