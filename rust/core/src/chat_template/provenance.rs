//! Which characters of a rendered chat came from the caller.
//!
//! The template is rendered once as it is, and once with the caller's text in disguise: each character that a control
//! token contains is exchanged for a stand-in character, one for one, so lengths and slices stay the same. Where
//! undoing the exchange gives the first text, the stand-ins show exactly what the caller wrote, through every slice,
//! split and join of the template.
//!
//! A template that looks into the text (`'</think>' in content`) would see the disguise, so the string literals of its
//! source stay readable in the caller's text; and names (`user`, `function`) stay as they are, since templates compare
//! them and build markers from them (`'<|' + role + '|>'`). Whatever stays readable, the first character of every whole
//! control token in the caller's text is exchanged.

use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::LazyLock;

/// Stand-ins: CJK Extension B, letters without case that `repr` prints as they are. Those that the input or the template
/// contain are left out.
const STAND_INS: Range<u32> = 0x2_0000..0x2_A6E0;

/// What a template's source and a tokenizer's control tokens say about text: built once per template.
pub(super) struct Watch {
    /// The control tokens' names.
    tokens: Option<AhoCorasick>,
    /// String literals of the template without a control token in them.
    literals: Option<AhoCorasick>,
    /// Characters of the control tokens, without spaces: templates strip and split at those.
    alphabet: BTreeSet<char>,
    /// A control token is looked for in normalized text: any character may become part of it.
    any_character: bool,
    /// Stand-ins that the template itself contains.
    taken: BTreeSet<u32>,
}

/// How much is exchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Every character of the alphabet outside names and the template's literals.
    Characters,
    /// The first character of every whole control token.
    Tokens,
}

impl Watch {
    pub(super) fn new(source: &str, special_tokens: &[(String, bool)]) -> Self {
        let names: Vec<&str> = special_tokens.iter().map(|(name, _)| name.as_str()).collect();
        let tokens = automaton(&names);
        let alphabet: BTreeSet<char> =
            names.iter().flat_map(|name| name.chars()).filter(|c| !c.is_whitespace()).collect();
        let literals: Vec<String> = literals(source)
            .into_iter()
            .filter(|literal| literal.chars().any(|c| alphabet.contains(&c)))
            .filter(|literal| !tokens.as_ref().is_some_and(|tokens| tokens.is_match(literal)))
            .collect();
        Self {
            literals: automaton(&literals.iter().map(String::as_str).collect::<Vec<_>>()),
            alphabet,
            any_character: special_tokens.iter().any(|(_, normalized)| *normalized),
            taken: source.chars().map(u32::from).filter(|code| STAND_INS.contains(code)).collect(),
            tokens,
        }
    }

    /// Whether a rendered text holds any control token, so that it matters who wrote it.
    pub(super) fn matters(&self, rendered: &str) -> bool {
        self.any_character || self.tokens.as_ref().is_some_and(|tokens| tokens.is_match(rendered))
    }

    /// Places of the control tokens that occur in one of the caller's strings, whoever wrote them: what remains when a
    /// template's result depends on the control tokens in its input.
    pub(super) fn all_that_occur(&self, rendered: &str, inputs: &[&Json]) -> Vec<Range<usize>> {
        let Some(tokens) = &self.tokens else { return vec![] };
        let mut seen = BTreeSet::new();
        for input in inputs {
            visit(input, &mut |text| seen.extend(tokens.find_overlapping_iter(text).map(|found| found.pattern())));
        }
        let places = tokens.find_overlapping_iter(rendered).filter(|found| seen.contains(&found.pattern()));
        merged(places.map(|found| found.range()).collect())
    }
}

fn automaton(patterns: &[&str]) -> Option<AhoCorasick> {
    let patterns = patterns.iter().filter(|pattern| !pattern.is_empty());
    // Standard matches: every occurrence counts, also of a token inside another.
    let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(patterns).ok()?;
    (automaton.patterns_len() > 0).then_some(automaton)
}

static TAG: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?s)\{[{%].*?[%}]\}").ok());
static LITERAL: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?s)'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)""#).ok());

/// String literals in the tags of a template. A missed one costs precision, never safety.
fn literals(source: &str) -> BTreeSet<String> {
    let (Some(tag), Some(literal)) = (TAG.as_ref(), LITERAL.as_ref()) else { return BTreeSet::new() };
    tag.find_iter(source)
        .flat_map(|tag| literal.captures_iter(tag.as_str()))
        .filter_map(|found| found.get(1).or(found.get(2)))
        .map(|text| {
            let text = text.as_str();
            text.replace("\\n", "\n")
                .replace("\\t", "\t")
                .replace("\\'", "'")
                .replace("\\\"", "\"")
                .replace("\\\\", "\\")
        })
        .collect()
}

fn visit(input: &Json, see: &mut impl FnMut(&str)) {
    match input {
        Json::String(text) => see(text),
        Json::Array(items) => items.iter().for_each(|item| visit(item, see)),
        Json::Object(items) => items.iter().for_each(|(key, item)| {
            see(key);
            visit(item, see);
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

/// The exchange of one rendering.
pub(super) struct Disguise<'a> {
    watch: &'a Watch,
    depth: Depth,
    free: Box<dyn Iterator<Item = char>>,
    given: HashMap<char, char>,
    back: HashMap<char, char>,
    /// Something was left readable because no stand-in was left for it.
    exhausted: bool,
}

impl<'a> Disguise<'a> {
    /// `inputs` are all the values that will be disguised: stand-ins that they contain are not used.
    pub(super) fn new(watch: &'a Watch, depth: Depth, inputs: &[&Json]) -> Self {
        let mut taken = watch.taken.clone();
        for input in inputs {
            visit(input, &mut |text| taken.extend(text.chars().map(u32::from).filter(|code| STAND_INS.contains(code))));
        }
        let free = STAND_INS.filter(move |code| !taken.contains(code)).filter_map(char::from_u32);
        Self { watch, depth, free: Box::new(free), given: HashMap::new(), back: HashMap::new(), exhausted: false }
    }

    /// A value with its strings in disguise. Keys are kept unless they hold something else than a name: templates
    /// look them up.
    pub(super) fn value(&mut self, input: &Json) -> Json {
        match input {
            Json::String(text) => Json::String(self.text(text)),
            Json::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Json::Object(items) => {
                Json::Object(items.iter().map(|(key, item)| (self.text(key), self.value(item))).collect())
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => input.clone(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        let Some(tokens) = &self.watch.tokens else { return text.to_owned() };
        let whole: BTreeSet<usize> = tokens.find_overlapping_iter(text).map(|found| found.start()).collect();
        let is_name = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        if whole.is_empty() && (self.depth == Depth::Tokens || is_name) {
            return text.to_owned();
        }
        let mut readable = vec![];
        if self.depth == Depth::Characters
            && !is_name
            && let Some(literals) = &self.watch.literals
        {
            readable = merged(literals.find_overlapping_iter(text).map(|found| found.range()).collect());
        }
        let mut readable = readable.into_iter().peekable();
        let mut out = String::with_capacity(text.len() * 2);
        for (at, character) in text.char_indices() {
            while readable.next_if(|range| range.end <= at).is_some() {}
            let is_open = readable.peek().is_some_and(|range| range.start <= at);
            let is_watched =
                (self.watch.any_character && !character.is_whitespace()) || self.watch.alphabet.contains(&character);
            let is_deep = self.depth == Depth::Characters && !is_name && !is_open && is_watched;
            out.push(if is_deep || whole.contains(&at) { self.exchange(character) } else { character });
        }
        out
    }

    fn exchange(&mut self, character: char) -> char {
        if let Some(&stand_in) = self.given.get(&character) {
            return stand_in;
        }
        let Some(stand_in) = self.free.next() else {
            self.exhausted = true;
            return character;
        };
        self.given.insert(character, stand_in);
        self.back.insert(stand_in, character);
        stand_in
    }

    /// The byte ranges of the caller's text in `expected`, if `rendered` is `expected` in disguise.
    pub(super) fn reveal(&self, rendered: &str, expected: &str) -> Option<Vec<Range<usize>>> {
        if self.exhausted {
            return None;
        }
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut rest = rendered.chars();
        for (at, character) in expected.char_indices() {
            let shown = rest.next()?;
            let original = self.back.get(&shown);
            if *original.unwrap_or(&shown) != character {
                return None;
            }
            if original.is_some() {
                let end = at + character.len_utf8();
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => ranges.push(at..end),
                }
            }
        }
        rest.next().is_none().then_some(ranges)
    }
}

/// Sorted, with those that overlap or touch joined.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
