//! Laws of single processors and of what filters leave, over any history.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use proptest::prelude::*;
use tokenwire_core::logits::candidates::{Buffers, Candidates};
use tokenwire_core::logits::history::History;
use tokenwire_core::logits::{Pipeline, Settings, eos, kernels};
use tokenwire_core::params::{SamplingOptions, SamplingParams, StoppingOptions, StoppingParams};

const VOCAB: usize = 12;

fn pipeline(change: impl FnOnce(&mut SamplingOptions)) -> Pipeline {
    let mut options = SamplingOptions::new(VOCAB as i64);
    change(&mut options);
    let sampling = SamplingParams::new(&options).unwrap();
    let stopping = StoppingParams::new(&StoppingOptions::new(VOCAB as i64, 100)).unwrap();
    Pipeline::new(&Settings { sampling: &sampling, stopping: &stopping })
}

fn tokens(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB as u32 / 2, length)
}

fn history(prompt: &[u32], generated: &[u32]) -> History {
    let mut history = History::new(prompt.to_vec());
    for &id in generated {
        history.push(id);
    }
    history
}

fn processed(pipeline: &Pipeline, history: &History) -> Vec<f32> {
    let mut logits = vec![1.0; VOCAB];
    if pipeline.edits(history) {
        pipeline.process(history, &mut logits);
    }
    logits
}

/// All logits as the draw sees them.
fn warped(pipeline: &Pipeline, row: &[f32]) -> Vec<f32> {
    let mut buffers = Buffers::default();
    let mut candidates = Candidates::new(row, &mut buffers).unwrap();
    pipeline.warp(&History::new(vec![0]), &mut candidates);
    let mut logits = vec![0.0; row.len()];
    candidates.write_to(&mut logits);
    logits
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_ngram_is_forbidden_where_it_would_come_again(
        prompt in tokens(1..20),
        generated in tokens(0..20),
        size in 1_usize..5,
        of_prompt: bool,
    ) {
        let pipeline = pipeline(|options| {
            if of_prompt {
                options.encoder_no_repeat_ngram_size = size as i64;
            } else {
                options.no_repeat_ngram_size = size as i64;
            }
        });
        let history = history(&prompt, &generated);
        let all = [prompt.clone(), generated].concat();
        let seen = if of_prompt { &prompt } else { &all };
        let logits = processed(&pipeline, &history);
        for id in 0..VOCAB as u32 {
            let longer = [all.as_slice(), &[id]].concat();
            let comes_again = longer.len() >= size
                && seen.windows(size).any(|ngram| ngram == &longer[longer.len() - size..]);
            prop_assert_eq!(logits[id as usize] == f32::NEG_INFINITY, comes_again);
        }
    }

    #[test]
    fn biases_of_sequences_add_up_where_they_are_completed(
        prompt in tokens(1..8),
        generated in tokens(0..8),
        entries in prop::collection::btree_map(tokens(1..4), -9_i8..9, 0..10),
    ) {
        let given = entries.iter().map(|(ids, &bias)| (ids.iter().map(|&id| id.into()).collect(), bias.into()));
        let pipeline = pipeline(|options| options.sequence_bias = given.collect());
        let logits = processed(&pipeline, &history(&prompt, &generated));
        let all = [prompt, generated].concat();
        for id in 0..VOCAB as u32 {
            let longer = [all.as_slice(), &[id]].concat();
            let completed = entries.iter().filter(|(ids, _)| longer.ends_with(ids));
            let bias: f32 = completed.map(|(_, &bias)| f32::from(bias)).sum();
            prop_assert_eq!(logits[id as usize], 1.0 + bias);
        }
    }

    #[test]
    fn histories_know_their_parts(prompt in tokens(0..20), generated in tokens(0..20)) {
        let history = history(&prompt, &generated);
        prop_assert_eq!(history.prompt(), &prompt[..]);
        prop_assert_eq!(history.generated(), &generated[..]);
        prop_assert_eq!(history.tokens(), &[prompt.clone(), generated].concat()[..]);
        let mut seen = Vec::new();
        for id in prompt {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        prop_assert_eq!(history.distinct_prompt(), &seen[..]);
    }

    #[test]
    fn a_mended_row_is_finite(row in prop::collection::vec(any::<f32>(), VOCAB)) {
        let pipeline = pipeline(|options| options.remove_invalid_values = true);
        let mut logits = row.clone();
        pipeline.process(&History::new(vec![0]), &mut logits);
        for (before, after) in row.iter().zip(logits) {
            prop_assert!(after.is_finite());
            prop_assert!(!before.is_finite() || *before == after);
        }
    }

    #[test]
    fn filters_leave_as_many_as_asked_and_the_likeliest(
        row in prop::collection::vec(prop_oneof![-9.0_f32..9.0, Just(1.0), Just(f32::NEG_INFINITY)], VOCAB - 1),
        least in 1_usize..VOCAB + 2,
        which in 0..6,
        strength in 0.001..0.999_f64,
    ) {
        let row = [row, vec![0.5]].concat();
        let pipeline = pipeline(|options| {
            options.do_sample = true;
            options.min_tokens_to_keep = least as i64;
            match which {
                0 => options.top_k = 1,
                1 => options.top_p = strength,
                2 => options.min_p = strength,
                3 => options.typical_p = strength,
                4 => options.epsilon_cutoff = strength,
                _ => options.eta_cutoff = strength,
            }
        });
        let logits = warped(&pipeline, &row);
        let kept = logits.iter().filter(|logit| logit.is_finite()).count();
        prop_assert!(kept >= least.min(row.iter().filter(|logit| logit.is_finite()).count()));
        if which != 3 {
            let lowest = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::INFINITY, f32::min);
            prop_assert!(row.iter().zip(&logits).all(|(&before, after)| after.is_finite() || before <= lowest));
        }
        prop_assert!(row.iter().zip(&logits).all(|(before, after)| before == after || *after == f32::NEG_INFINITY));
    }

    #[test]
    fn the_probability_of_the_end_is_right_or_bounded(
        row in prop::collection::vec(-30.0_f32..5.0, 1..3000),
        ids in prop::collection::vec(0_u32..3100, 1..4),
    ) {
        let mut maxima = Vec::new();
        let scan = kernels::scan(&row, &mut maxima);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - scan.max).exp()).sum();
        let known = ids.iter().filter_map(|&id| row.get(id as usize));
        let exact = known.map(|&logit| f64::from(logit - scan.max).exp() / sum).fold(0.0, f64::max);
        let got = eos::probability(&ids, &row, scan, &maxima);
        prop_assert!(got >= exact * (1.0 - 1e-5));
        prop_assert!(got < eos::LIKELY || (got - exact).abs() <= exact * 1e-5);
    }
}
