//! Stop strings: tables of what each token releases, and laws over any split.
#![allow(missing_docs)]

use proptest::prelude::*;
use std::sync::Arc;
use tokenwire_core::stop::{StopMatcher, StopStrings};

fn matcher(strings: &[&str], include: bool) -> StopMatcher {
    let strings: Vec<String> = strings.iter().map(ToString::to_string).collect();
    StopMatcher::new(Arc::new(StopStrings::new(&strings, include)))
}

/// What each token releases, what the end releases, and which string matched.
fn run(strings: &[&str], tokens: &[&str], include: bool) -> (Vec<String>, Option<usize>) {
    let mut watcher = matcher(strings, include);
    let mut matched = None;
    let mut released: Vec<String> = tokens
        .iter()
        .map(|token| {
            let mut out = String::new();
            if let Some(index) = watcher.push(token, &mut out) {
                assert_eq!(matched.replace(index), None, "a match is reported once");
            }
            out
        })
        .collect();
    let mut end = String::new();
    watcher.finish(&mut end);
    released.push(end);
    (released, matched)
}

#[test]
fn what_each_token_releases() {
    // (stop strings, tokens, released by each token and by the end, index of the match)
    type Row = (&'static [&'static str], &'static [&'static str], &'static [&'static str], Option<usize>);
    let table: &[Row] = &[
        (&[], &["a", "b"], &["a", "b", ""], None),
        (&[""], &["a", "b"], &["a", "b", ""], None),
        (&["stop"], &["no", "thing"], &["no", "thing", ""], None),
        (&["stop"], &["st", "op"], &["", "", ""], Some(0)),
        (&["stop"], &["st", "opera"], &["", "", ""], Some(0)),
        (&["stop"], &["las", "topper"], &["la", "", ""], Some(0)),
        (&["stop"], &["s", "to", "pped"], &["", "", "", ""], Some(0)),
        (&["stop"], &["a st", "ar"], &["a ", "star", ""], None),
        (&["stop"], &["a st"], &["a ", "st"], None),
        (&["stop"], &["xstopy", "z"], &["x", "", ""], Some(0)),
        // The prefix restarts inside itself.
        (&["aab"], &["aa", "a", "ab"], &["", "a", "a", ""], Some(0)),
        (&["abab"], &["aba", "c"], &["", "abac", ""], None),
        (&["abab"], &["aba", "abab"], &["", "aba", ""], Some(0)),
        // Ends first wins, whatever the order given.
        (&["abcd", "bc"], &["abcd"], &["a", ""], Some(1)),
        (&["st", "stop"], &["stop"], &["", ""], Some(0)),
        (&["stop", "st"], &["stop"], &["", ""], Some(1)),
        // Same end: the one that starts first.
        (&["op", "stop"], &["a stop"], &["a ", ""], Some(1)),
        (&["x", "x"], &["x"], &["", ""], Some(0)),
        // Characters of several bytes, and one whose first byte is that of a stop string.
        (&["é"], &["caf", "é!"], &["caf", "", ""], Some(0)),
        (&["é"], &["caf", "è!"], &["caf", "è!", ""], None),
        (&["日本"], &["日", "本", "語"], &["", "", "", ""], Some(0)),
        (&["日本"], &["日", "日"], &["", "日", "日"], None),
        (&["\n\n"], &["a\n", "b\n", "\n"], &["a", "\nb", "", ""], Some(0)),
    ];
    for (strings, tokens, released, matched) in table {
        let got = run(strings, tokens, false);
        assert_eq!((got.0.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), got.1), (*released, *matched));
    }
}

#[test]
fn include_keeps_the_stop_string_and_nothing_after_it() {
    assert_eq!(run(&["stop"], &["las", "topper"], true), (vec!["la".into(), "stop".into(), String::new()], Some(0)));
}

#[test]
fn a_long_run_of_near_misses_is_linear() {
    // 2,000 x 200,000 steps would take minutes if a near miss were compared again.
    let stop = format!("{}b", "a".repeat(2_000));
    let mut matcher = matcher(&[&stop], false);
    let mut out = String::new();
    for _ in 0..200_000 {
        assert_eq!(matcher.push("a", &mut out), None);
    }
    assert_eq!(out.len(), 198_000);
}

/// The definition, checked at every character: first end, then first start, then first given.
fn expected(strings: &[String], text: &str, include: bool) -> (String, Option<usize>) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let ending = strings.iter().enumerate().filter(|(_, s)| !s.is_empty() && text[..end].ends_with(s.as_str()));
        if let Some((index, string)) = ending.max_by_key(|(index, s)| (s.len(), std::cmp::Reverse(*index))) {
            let keep = if include { end } else { end - string.len() };
            return (text[..keep].to_owned(), Some(index));
        }
    }
    (text.to_owned(), None)
}

proptest! {
    #[test]
    fn any_split_gives_the_defined_text(
        strings in prop::collection::vec("[abé]{0,4}", 0..4),
        tokens in prop::collection::vec("[abcé]{0,5}", 0..12),
        include: bool,
    ) {
        let mut matcher = StopMatcher::new(Arc::new(StopStrings::new(&strings, include)));
        let mut out = String::new();
        let mut seen = String::new();
        let mut matched = None;
        for token in &tokens {
            seen.push_str(token);
            matched = matched.or(matcher.push(token, &mut out));
            if matched.is_none() {
                // Held back is exactly the longest end that may still become a match.
                let held = &seen[out.len()..];
                let may_match = |end: &str| strings.iter().any(|s| s.len() > end.len() && s.starts_with(end));
                let longest = seen.char_indices().map(|(at, _)| &seen[at..]).find(|end| may_match(end));
                prop_assert_eq!(held, longest.unwrap_or(""));
            }
        }
        matcher.finish(&mut out);
        prop_assert_eq!((out, matched), expected(&strings, &tokens.concat(), include));
    }
}
