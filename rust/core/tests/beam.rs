//! Laws of beam search: a search that is wide enough finds the best sequence there is, and its results are as a
//! sequence on its own would be told.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use std::sync::Arc;
use tokenwire_core::beam::{Answer, BeamOptions, BeamSearch, EarlyStopping, Step};
use tokenwire_core::generation::{FinishReason, StepError};
use tokenwire_core::logits::candidates::RowError;
use tokenwire_core::params::{SamplingOptions, SamplingParams, StoppingOptions, StoppingParams};
use tokenwire_core::sampler::{BatchError, Logits};
use tokenwire_core::tokenizer::Tokenizer;

const VOCAB: usize = 4;

fn options(num_beams: i64, num_return_sequences: i64) -> BeamOptions {
    BeamOptions { num_beams, num_return_sequences, length_penalty: 1.0, early_stopping: EarlyStopping::Heuristic }
}

fn search(sampling: &SamplingOptions, stopping: &StoppingOptions, options: &BeamOptions) -> BeamSearch {
    let file = r#"{"version": "1.0", "decoder": {"type": "Fuse"}, "model": {"type": "BPE",
        "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []}}"#;
    let tokenizer = Arc::new(Tokenizer::from_json(file).unwrap());
    let sampling = Arc::new(SamplingParams::new(sampling).unwrap());
    let stopping = Arc::new(StoppingParams::new(stopping).unwrap());
    BeamSearch::new(tokenizer, &[0], sampling, stopping, options, 0, true).unwrap()
}

fn greedy() -> SamplingOptions {
    SamplingOptions::new(i64::try_from(VOCAB).unwrap())
}

fn until(max_new_tokens: i64) -> StoppingOptions {
    StoppingOptions::new(i64::try_from(VOCAB).unwrap(), max_new_tokens)
}

/// Logits that depend on all tokens before, drawn from `seed`.
fn model(seed: u64, history: &[u32]) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    for &token in history {
        state = (state ^ u64::from(token + 1)).wrapping_mul(0x2545_F491_4F6C_DD1D);
        state ^= state >> 29;
    }
    let logits = (0..VOCAB as u64).map(|token| {
        let mut bits = (state ^ (token + 7)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        bits ^= bits >> 32;
        #[allow(clippy::cast_precision_loss)]
        let logit = (bits % 4096) as f32 / 1024.0;
        logit
    });
    logits.collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - total.ln()).collect()
}

/// Steps to the end.
fn run(search: &mut BeamSearch, seed: u64) -> Vec<Answer> {
    let mut histories: Vec<Vec<u32>> = vec![vec![]];
    loop {
        let logits: Vec<f32> = histories.iter().flat_map(|history| model(seed, history)).collect();
        match search.step(Logits::F32(&logits), VOCAB, false).unwrap() {
            Step::Next { parents, tokens } => {
                let next = parents.iter().zip(&tokens);
                histories = next.map(|(&parent, &token)| [&histories[parent][..], &[token]].concat()).collect();
            }
            Step::Done(answers) => return answers,
            Step::Failed(error) => panic!("{error}"),
        }
    }
}

/// Every sequence of `length` tokens with its summed log probability, best first.
fn all_sequences(seed: u64, length: usize) -> Vec<(Vec<u32>, f64)> {
    let mut sequences = vec![(vec![], 0.0)];
    for _ in 0..length {
        sequences = sequences
            .iter()
            .flat_map(|(history, score): &(Vec<u32>, f64)| {
                let logprobs = log_softmax(&model(seed, history));
                (0..).zip(logprobs).map(move |(token, logprob)| ([&history[..], &[token]].concat(), score + logprob))
            })
            .collect();
    }
    sequences.sort_by(|a, b| b.1.total_cmp(&a.1));
    sequences
}

proptest! {
    #[test]
    fn a_search_as_wide_as_all_prefixes_finds_the_best_sequences(seed in 0_u64..10_000, length in 1_usize..4) {
        let (beams, limit) = (16, i64::try_from(length).unwrap());
        let mut search = search(&greedy(), &until(limit), &options(beams, 4));
        let answers = run(&mut search, seed);
        #[allow(clippy::cast_precision_loss)]
        let divisor = length as f64;
        for (answer, (_, score)) in answers.iter().zip(all_sequences(seed, length)) {
            prop_assert!((f64::from(answer.score) - score / divisor).abs() < 1e-5);
            let own: f64 = (0..length)
                .map(|at| log_softmax(&model(seed, &answer.tokens[..at]))[answer.tokens[at] as usize])
                .sum();
            prop_assert!((f64::from(answer.score) - own / divisor).abs() < 1e-5);
        }
        prop_assert!(search.is_over());
    }

    #[test]
    fn answers_are_ordered_distinct_and_end_where_they_say(
        seed in 0_u64..10_000,
        num_beams in 2_i64..6,
        penalty in -2.0_f64..2.0,
        early_stopping in prop_oneof![
            Just(EarlyStopping::Heuristic), Just(EarlyStopping::Full), Just(EarlyStopping::Never)
        ],
        do_sample: bool,
    ) {
        let sampling = SamplingOptions { do_sample, seed: seed.into(), ..greedy() };
        let stopping = StoppingOptions { eos_token_ids: vec![2], stop_strings: vec!["bd".to_owned()], ..until(8) };
        let options = BeamOptions { length_penalty: penalty, early_stopping, ..options(num_beams, num_beams) };
        let answers = run(&mut search(&sampling, &stopping, &options), seed);
        prop_assert_eq!(answers.len(), usize::try_from(num_beams).unwrap());
        prop_assert!(answers.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for (place, answer) in answers.iter().enumerate() {
            prop_assert!(answers[..place].iter().all(|other| other.tokens != answer.tokens));
            let text: String = answer.tokens.iter().filter_map(|&token| "abcd".chars().nth(token as usize)).collect();
            match &answer.finish {
                Some(FinishReason::Eos(token)) => prop_assert_eq!(answer.tokens.last(), Some(token)),
                Some(FinishReason::StopString(stop)) => {
                    prop_assert_eq!(text.strip_suffix(stop.as_str()), Some(answer.text.as_str()));
                }
                other => {
                    prop_assert_eq!(other, &Some(FinishReason::Length));
                    prop_assert_eq!((answer.tokens.len(), &answer.text), (8, &text));
                }
            }
            let before = &answer.tokens[..answer.tokens.len() - 1];
            prop_assert!(!before.contains(&2) && !before.windows(2).any(|pair| pair == [1, 3]));
        }
    }

    #[test]
    fn the_last_step_ends_whatever_runs(seed in 0_u64..10_000, after in 0_usize..5) {
        let mut search = search(&greedy(), &until(20), &options(3, 3));
        let mut histories: Vec<Vec<u32>> = vec![vec![]];
        for step in 0..=after {
            let logits: Vec<f32> = histories.iter().flat_map(|history| model(seed, history)).collect();
            match search.step(Logits::F32(&logits), VOCAB, step == after).unwrap() {
                Step::Next { parents, tokens } => {
                    let next = parents.iter().zip(&tokens);
                    histories = next.map(|(&parent, &token)| [&histories[parent][..], &[token]].concat()).collect();
                }
                Step::Done(answers) => {
                    prop_assert!(step == after);
                    for answer in answers {
                        prop_assert_eq!((answer.tokens.len(), answer.finish), (after + 1, None));
                    }
                }
                Step::Failed(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_row_that_cannot_be_used_fails_the_search_and_bad_shapes_change_nothing() {
    let mut first = search(&greedy(), &until(5), &options(2, 1));
    let two = [0.0; 2 * VOCAB];
    assert!(matches!(
        first.step(Logits::F32(&two), VOCAB, false),
        Err(BatchError::Shape { count: 8, rows: 1, width: VOCAB })
    ));
    assert!(matches!(
        first.step(Logits::F32(&two), 2 * VOCAB, false),
        Err(BatchError::Width { width: 8, index: 0, vocab_size: VOCAB })
    ));
    assert!(matches!(first.step(Logits::F32(&two[..VOCAB]), VOCAB, false), Ok(Step::Next { .. })));
    let mut nan = two;
    nan[5] = f32::NAN;
    assert_eq!(first.step(Logits::F32(&nan), VOCAB, false), Ok(Step::Failed(StepError::Row(RowError::Nan))));
    assert_eq!(first.step(Logits::F32(&two), VOCAB, false), Err(BatchError::Finished(0)));

    let mending = SamplingOptions { remove_invalid_values: true, ..greedy() };
    let mut mended = search(&mending, &until(5), &options(2, 1));
    assert_eq!(
        mended.step(Logits::F32(&nan[VOCAB..]), VOCAB, false),
        Ok(Step::Next { parents: vec![0, 0], tokens: vec![0, 1] })
    );

    let nothing = [f32::NEG_INFINITY; VOCAB];
    let mut second = search(&greedy(), &until(5), &options(2, 1));
    assert_eq!(
        second.step(Logits::F32(&nothing), VOCAB, false),
        Ok(Step::Failed(StepError::Row(RowError::NoTokenAllowed)))
    );
}

#[test]
fn one_allowed_token_leaves_one_sequence() {
    for do_sample in [false, true] {
        let suppressed = SamplingOptions { do_sample, suppress_tokens: vec![0, 2, 3], ..greedy() };
        let answers = run(&mut search(&suppressed, &until(3), &options(2, 2)), 1);
        assert_eq!(answers[0].tokens, [1, 1, 1]);
    }
}
