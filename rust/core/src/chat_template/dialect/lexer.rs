//! The tags of a template and their tokens, as jinja2 splits them.

/// What a token is; its text is its place in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    Text,
    Operator,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The tokens of one `{{ … }}` or `{% … %}`.
pub(super) struct Tag {
    pub(super) tokens: Vec<Token>,
    pub(super) is_statement: bool,
}

/// Iterates over the tags of a template; comments and raw blocks are left out. Ends at a tag that never ends.
pub(super) struct Tags<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Tags<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self { source, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        loop {
            let rest = self.rest();
            // One search: a marker that does not occur would be looked for to the end again and again.
            let mut braces = rest.match_indices('{').map(|(at, _)| at);
            self.at += braces.find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))?;
            let is_statement = match self.rest().as_bytes().get(1) {
                Some(b'#') => {
                    self.at += self.rest().find("#}")? + 2;
                    continue;
                }
                second => second == Some(&b'%'),
            };
            let tokens = self.tokens(if is_statement { "%}" } else { "}}" })?;
            let first = tokens.first().and_then(|token| self.source.get(token.start..token.end));
            if is_statement && first == Some("raw") {
                let end = self.rest().find("endraw")?;
                self.at += end + self.rest()[end..].find("%}")? + 2;
                continue;
            }
            return Some(Tag { tokens, is_statement });
        }
    }
}

const OPERATORS: [&str; 6] = ["**", "//", "==", "!=", "<=", ">="];

impl Tags<'_> {
    /// Reads to the end of the tag that begins here.
    fn tokens(&mut self, end: &str) -> Option<Vec<Token>> {
        self.at += 2;
        if self.rest().starts_with(['-', '+']) {
            self.at += 1;
        }
        let mut tokens = Vec::new();
        let mut depth = 0_usize;
        loop {
            let rest = self.rest().trim_start();
            self.at = self.source.len() - rest.len();
            let marked = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if depth == 0 && (rest.starts_with(end) || marked.starts_with(end)) {
                self.at = self.source.len() - marked.len() + 2;
                return Some(tokens);
            }
            let first = rest.chars().next()?;
            let (kind, length) = match first {
                '"' | '\'' => (Kind::Text, text_length(rest, first)?),
                '0'..='9' => (Kind::Number, number_length(rest)),
                _ if is_name(first) => (Kind::Name, rest.find(|c| !is_name(c)).unwrap_or(rest.len())),
                _ => {
                    match first {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => depth = depth.checked_sub(1)?,
                        _ => {}
                    }
                    let is_long = OPERATORS.iter().any(|operator| rest.starts_with(operator));
                    (Kind::Operator, if is_long { 2 } else { first.len_utf8() })
                }
            };
            tokens.push(Token { kind, start: self.at, end: self.at + length });
            self.at += length;
        }
    }
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn text_length(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn number_length(rest: &str) -> usize {
    let run = |from: usize| from + rest[from..].find(|c| !is_name(c)).unwrap_or(rest.len() - from);
    let digit_at = |at: usize| rest[at..].starts_with(|c: char| c.is_ascii_digit());
    let mut end = run(0);
    if rest[end..].starts_with('.') && digit_at(end + 1) {
        end = run(end + 1);
    }
    let is_open_exponent = rest[..end].ends_with(['e', 'E']) && !rest.starts_with("0x");
    if is_open_exponent && rest[end..].starts_with(['-', '+']) && digit_at(end + 1) {
        end = run(end + 1);
    }
    end
}
