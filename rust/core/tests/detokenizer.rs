//! Streaming equals decoding at once, and text comes as soon as it is certain.
#![allow(missing_docs, clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use tokenwire_core::detokenizer::{AlignedToken, Aligner, Detokenizer};
use tokenwire_core::tokenizer::Tokenizer;

/// A word-level tokenizer with the given vocabulary and decoder; ids count from 0, `<s>` comes last and is special.
fn tokenizer(words: &[&str], decoder: &Value) -> Arc<Tokenizer> {
    let vocab: serde_json::Map<String, Value> =
        words.iter().chain(&["<s>"]).enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = json!({"id": words.len(), "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": words[0]}});
    Arc::new(Tokenizer::from_json(&file.to_string()).unwrap())
}

fn byte_level() -> Arc<Tokenizer> {
    // A word, a space before a word, the bytes of 'é' and '😀' apart, a byte that no character has, a stray tail.
    let words = ["ab", "Ġcd", "Ã", "©", "ð", "Ł", "ĺ", "Ģ", "ÿ", "Ã©", "日"];
    tokenizer(&words, &json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}))
}

fn llama(strip_stop: usize) -> Arc<Tokenizer> {
    let words = [
        "▁ab", "cd", "▁", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xFF>", "<0x41>", "<0x20>", ".",
    ];
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": strip_stop},
    ]});
    tokenizer(&words, &decoder)
}

static ALL: LazyLock<Vec<Arc<Tokenizer>>> = LazyLock::new(all);

fn all() -> Vec<Arc<Tokenizer>> {
    let fused = json!({"type": "Sequence", "decoders": [
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "aba"}, "content": "<>"},
    ]});
    vec![
        byte_level(),
        llama(0),
        tokenizer(&["a", "ba", "ab", "b", "c"], &fused),
        tokenizer(
            &["▁a", "b▁", "▁▁", "c"],
            &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
        ),
        tokenizer(&["un", "##able", ".", "n't", "do"], &json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        tokenizer(&["lo", "w</w>", "er</w>", "</w>"], &json!({"type": "BPEDecoder", "suffix": "</w>"})),
        tokenizer(
            &["a", "|", "b", "<pad>"],
            &json!({"type": "CTC", "pad_token": "<pad>",
            "word_delimiter_token": "|", "cleanup": true}),
        ),
        tokenizer(&["a", "bc"], &Value::Null),
    ]
}

/// What each token releases; the last entry is what the end releases.
fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), skip_special_tokens);
    let mut released: Vec<String> = ids
        .iter()
        .map(|&id| {
            let mut out = String::new();
            detokenizer.push(id, &mut out);
            out
        })
        .collect();
    let mut end = String::new();
    detokenizer.finish(&mut end);
    released.push(end);
    released
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn joined_equals_decode(kind in 0usize..8, ids in prop::collection::vec(0u32..14, 0..24), skip: bool) {
        let tokenizer = &ALL[kind];
        let ids: Vec<u32> = ids.into_iter().filter(|&id| (id as usize) < tokenizer.vocab_size()).collect();
        let joined = stream(tokenizer, &ids, skip).concat();
        prop_assert_eq!(joined, tokenizer.decode(&ids, skip).unwrap());
    }
}

#[test]
fn what_each_token_releases() {
    // (tokenizer, ids, released by each token and by the end)
    let table: Vec<(Arc<Tokenizer>, &[u32], &[&str])> = vec![
        (byte_level(), &[0, 1, 10], &["ab", " cd", "日", ""]),
        (byte_level(), &[0, 2, 3, 0], &["ab", "", "é", "ab", ""]),
        (byte_level(), &[4, 5, 6, 7], &["", "", "", "😀", ""]),
        // An invalid byte is released at once, with what it broke.
        (byte_level(), &[8, 8, 0], &["\u{FFFD}", "\u{FFFD}", "ab", ""]),
        (byte_level(), &[4, 5, 0], &["", "", "\u{FFFD}ab", ""]),
        (byte_level(), &[2, 11, 3], &["", "", "é", ""]),
        (byte_level(), &[2], &["", "\u{FFFD}"]),
        // The first space is the tokenizer's own; later ones are text.
        (llama(0), &[0, 0, 2, 1], &["ab", " ab", " ", "cd", ""]),
        // A run of bytes is certain when it ends, or when it breaks.
        (llama(0), &[3, 4, 10, 1], &["", "", "", "éAcd", ""]),
        (llama(0), &[3, 4, 9, 10, 1], &["", "", "\u{FFFD}\u{FFFD}\u{FFFD}", "\u{FFFD}", "cd", ""]),
        (llama(0), &[3], &["", "\u{FFFD}"]),
        (llama(0), &[11, 1], &["", "cd", ""]),
    ];
    for (tokenizer, ids, released) in table {
        assert_eq!(stream(&tokenizer, ids, true), released, "{ids:?}");
    }
}

#[test]
fn what_both_ends_lose() {
    // The crate itself panics on some of these, so they are written out.
    let words = ["▁", "a", "▁a▁"];
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Fuse"},
        {"type": "Strip", "content": "▁", "start": 1, "stop": 2},
    ]});
    let tokenizer = tokenizer(&words, &decoder);
    let table: [(&[u32], &[&str]); 4] = [
        (&[1, 0, 0, 0, 1], &["a", "", "", "▁", "▁▁a", ""]),
        (&[1, 0, 0, 0], &["a", "", "", "▁", ""]),
        (&[2, 2], &["a", "▁▁a", ""]),
        (&[1], &["a", ""]),
    ];
    for (ids, released) in table {
        assert_eq!(stream(&tokenizer, ids, true), released, "{ids:?}");
    }
}

#[test]
fn ids_outside_the_vocabulary_give_no_text() {
    assert_eq!(stream(&byte_level(), &[0, 4_000_000, 1], true), ["ab", "", " cd", ""]);
}

/// All tokens of a sequence, aligned.
fn align(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special_tokens: bool) -> Vec<AlignedToken> {
    let mut aligner = Aligner::new(Arc::clone(tokenizer), skip_special_tokens);
    let mut tokens: Vec<AlignedToken> = ids.iter().flat_map(|&id| aligner.push(id)).collect();
    tokens.extend(aligner.finish());
    tokens
}

proptest! {
    #[test]
    fn ranges_tile_the_text(
        which in 0..ALL.len(), ids in prop::collection::vec(0u32..14, 0..14), skip_special_tokens: bool
    ) {
        let tokenizer = &ALL[which];
        let text = stream(tokenizer, &ids, skip_special_tokens).concat();
        let aligned = align(tokenizer, &ids, skip_special_tokens);
        prop_assert_eq!(aligned.iter().map(|token| token.id).collect::<Vec<_>>(), ids);
        let mut end = 0;
        for token in &aligned {
            prop_assert_eq!(token.start, end);
            prop_assert!(token.end >= token.start);
            end = token.end;
        }
        prop_assert_eq!(end, if aligned.is_empty() { 0 } else { text.len() });
    }

    #[test]
    fn bytes_joined_are_the_text_where_it_is_valid(
        characters in prop::collection::vec(0usize..8, 0..14), fallback: bool
    ) {
        let byte_level_characters: &[&[u32]] = &[&[0], &[1], &[2, 3], &[4, 5, 6, 7], &[9], &[10], &[11], &[2, 11, 3]];
        let fallback_characters: &[&[u32]] = &[&[0], &[1], &[2], &[3, 4], &[5, 6, 7, 8], &[10], &[11], &[12]];
        let (tokenizer, known) =
            if fallback { (llama(0), fallback_characters) } else { (byte_level(), byte_level_characters) };
        let ids: Vec<u32> = characters.iter().flat_map(|&character| known[character]).copied().collect();
        let text = stream(&tokenizer, &ids, true).concat();
        let bytes: Vec<u8> = align(&tokenizer, &ids, true).into_iter().flat_map(|token| token.bytes).collect();
        prop_assert_eq!(bytes, text.into_bytes());
    }
}

#[test]
fn tokens_of_one_character_divide_it_by_their_bytes() {
    let ranges = |tokenizer: &Arc<Tokenizer>, ids: &[u32]| -> Vec<(usize, usize)> {
        align(tokenizer, ids, true).iter().map(|token| (token.start, token.end)).collect()
    };
    // "ab", then the four bytes of '😀', then "ab".
    assert_eq!(ranges(&byte_level(), &[0, 4, 5, 6, 7, 0]), [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8)]);
    assert_eq!(ranges(&llama(0), &[0, 5, 6, 7, 8, 1]), [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8)]);
    // The first two bytes of '😀' that "ab" cuts off are one U+FFFD; byte fallback gives one for each.
    assert_eq!(ranges(&byte_level(), &[4, 5, 0]), [(0, 3), (3, 3), (3, 5)]);
    assert_eq!(ranges(&llama(0), &[5, 6, 1]), [(0, 3), (3, 6), (6, 8)]);
    // A skipped special token between the bytes of a character.
    assert_eq!(ranges(&byte_level(), &[2, 11, 3]), [(0, 1), (1, 1), (1, 2)]);
}

#[test]
fn a_token_is_certain_when_nothing_of_it_is_held_back() {
    let mut aligner = Aligner::new(byte_level(), true);
    assert_eq!(aligner.push(0), [AlignedToken { id: 0, bytes: b"ab".to_vec(), start: 0, end: 2 }]);
    assert_eq!(aligner.push(2), []);
    assert_eq!(aligner.push(3).iter().map(|token| (token.start, token.end)).collect::<Vec<_>>(), [(2, 3), (3, 4)]);
    assert_eq!(aligner.finish(), []);
}
