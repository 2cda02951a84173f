//! Laws of the logits pipeline, each against a plain implementation that sorts.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

use proptest::prelude::*;
use tokenwire_core::logits::candidates::{Buffers, Candidates, RowError};
use tokenwire_core::logits::kernels;
use tokenwire_core::logits::logprobs;
use tokenwire_core::rng;

/// Rows of 1 to 3,000 logits: any scale, many ties, some forbidden; one at least is finite.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => -10.0_f32..10.0,
        4 => (-8_i8..8).prop_map(|step| f32::from(step) / 4.0),
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(1e30_f32), Just(-1e30), Just(1e-40), Just(-0.0), Just(f32::MAX), Just(f32::MIN)],
    ];
    let length = prop_oneof![1_usize..40, 200_usize..3000];
    (length.prop_flat_map(move |length| prop::collection::vec(logit.clone(), length)), any::<prop::sample::Index>())
        .prop_map(|(mut row, index)| {
            let place = index.index(row.len());
            row[place] = 1.5;
            row
        })
}

fn processed(row: &[f32], warp: impl FnOnce(&mut Candidates<'_>)) -> Vec<f32> {
    let mut buffers = Buffers::default();
    let mut candidates = Candidates::new(row, &mut buffers).unwrap();
    warp(&mut candidates);
    let mut logits = vec![0.0; row.len()];
    candidates.write_to(&mut logits);
    logits
}

/// Keeps what is at least the k-th largest, the sorting way.
fn plain_top_k(row: &[f32], k: usize) -> Vec<f32> {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
    let kth = sorted[k.min(row.len()) - 1];
    row.iter().map(|&logit| if logit >= kth { logit } else { f32::NEG_INFINITY }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scanning_with_a_copy_is_scanning(row in rows(), times in 1_usize..12, nan in any::<Option<prop::sample::Index>>()) {
        let mut row = row.repeat(times);
        if let Some(index) = nan {
            let place = index.index(row.len());
            row[place] = f32::NAN;
        }
        let (mut maxima, mut others, mut copy) = (Vec::new(), Vec::new(), vec![7.0; 5000]);
        prop_assert_eq!(kernels::scan_copying(&row, &mut others, &mut copy), kernels::scan(&row, &mut maxima));
        prop_assert_eq!(others, maxima);
        prop_assert!(copy.iter().map(|value| value.to_bits()).eq(row.iter().map(|value| value.to_bits())));
    }

    #[test]
    fn scan_finds_maximum_and_nan(mut row in rows(), nan in any::<Option<prop::sample::Index>>()) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut maxima = Vec::new();
        let scan = kernels::scan(&row, &mut maxima);
        prop_assert_eq!(scan, kernels::Scan { max, has_nan: false });
        let first = row.iter().position(|&logit| logit == max);
        prop_assert_eq!(kernels::position(&row, &maxima, max), first);
        if let Some(index) = nan {
            let place = index.index(row.len());
            row[place] = f32::NAN;
            prop_assert!(kernels::scan(&row, &mut maxima).has_nan);
        }
    }

    #[test]
    fn exponentials_are_close_and_never_above_one(row in prop::collection::vec(-120.0_f32..=0.0, 1..1500), rate in 0.1_f32..3.0) {
        let mut weights = Vec::new();
        let total = kernels::exps(&row, 0.0, rate, &mut weights);
        for (&value, &weight) in row.iter().zip(&weights) {
            let exact = f64::from(value * rate).exp();
            prop_assert!((f64::from(weight) - exact).abs() <= exact * 2e-7 + 2e-38, "{} {} {}", value, weight, exact);
            prop_assert!(weight <= 1.0);
        }
        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        prop_assert!((total - sum).abs() <= sum * 1e-6);
        prop_assert_eq!(total, kernels::exp_sum(&row, 0.0, rate));
    }

    #[test]
    fn top_k_keeps_all_ties_of_the_kth(row in rows(), k in 1_usize..400) {
        prop_assert_eq!(processed(&row, |candidates| candidates.keep_top(k)), plain_top_k(&row, k));
    }

    #[test]
    fn top_k_compares_after_the_temperature(row in rows(), k in 1_usize..400, temperature in prop_oneof![0.01_f32..30.0, Just(1e30_f32), Just(1e38), Just(1e-30)]) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shift = if (max / temperature).is_finite() { 0.0 } else { max };
        let divided: Vec<f32> = row.iter().map(|&logit| (logit - shift) / temperature).collect();
        let got = processed(&row, |candidates| {
            candidates.divide(temperature);
            candidates.keep_top(k);
        });
        prop_assert_eq!(got, plain_top_k(&divided, k));
    }

    #[test]
    fn a_cut_keeps_the_top_of_the_order(row in rows(), at in any::<prop::sample::Index>(), k in 1_usize..3000) {
        let place = at.index(row.len());
        let value = row[place];
        prop_assume!(value.is_finite());
        let expected: Vec<f32> = row.iter().enumerate()
            .map(|(other, &logit)| if logit > value || (logit == value && other >= place) { logit } else { f32::NEG_INFINITY })
            .collect();
        prop_assert_eq!(&processed(&row, |candidates| candidates.cut(value, place as u32)), &expected);
        // The same from a list, and twice over.
        let both = |candidates: &mut Candidates<'_>| {
            candidates.cut(value, place as u32);
            candidates.list();
            candidates.keep_top(k);
        };
        prop_assert_eq!(processed(&row, both), plain_top_k(&expected, k));
    }

    #[test]
    fn a_draw_inverts_the_cumulative_distribution(row in rows(), u in 0.0_f64..1.0, k in prop::option::of(1_usize..50)) {
        let warp = |candidates: &mut Candidates<'_>| if let Some(k) = k { candidates.keep_top(k) };
        let logits = processed(&row, warp);
        let mut buffers = Buffers::default();
        let mut candidates = Candidates::new(&row, &mut buffers).unwrap();
        warp(&mut candidates);
        let drawn = candidates.draw(u) as usize;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let before: f64 = weights[..drawn].iter().sum::<f64>() / total;
        let after = before + weights[drawn] / total;
        prop_assert!(weights[drawn] > 0.0);
        prop_assert!(before - 1e-6 <= u && u <= after + 1e-6, "{} not in {}..{}", u, before, after);
    }

    #[test]
    fn the_top_is_sorted_with_lower_ids_first(row in rows(), count in 0_usize..30) {
        let mut order: Vec<usize> = (0..row.len()).filter(|&id| row[id].is_finite()).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
        order.truncate(count);
        let found = logprobs::of_row(&row, order.first().map_or(0, |&id| id as u32), count, &mut Buffers::default()).unwrap();
        prop_assert_eq!(found.top.iter().map(|&(id, _)| id as usize).collect::<Vec<_>>(), order);
        prop_assert!(found.top.first().is_none_or(|&(_, logprob)| logprob == found.chosen));
        prop_assert!(found.top.iter().all(|&(_, logprob)| logprob <= 0.0));
    }

    #[test]
    fn numbers_are_uniform_in_range_and_depend_on_every_part(seed in any::<i64>(), index in any::<u64>(), step in 0_u64..1 << 40) {
        let number = rng::uniform(seed, index, step);
        prop_assert!((0.0..1.0).contains(&number));
        prop_assert_eq!(number, rng::uniform(seed, index, step));
        prop_assert_ne!(number, rng::uniform(seed, index, step + 1));
        prop_assert_ne!(number, rng::uniform(seed, index.wrapping_add(1), step));
        prop_assert_ne!(number, rng::uniform(seed.wrapping_add(1), index, step));
    }
}

#[test]
fn rows_without_a_choice_are_refused() {
    let mut buffers = Buffers::default();
    assert_eq!(Candidates::new(&[0.0, f32::NAN], &mut buffers).err(), Some(RowError::Nan));
    assert_eq!(Candidates::new(&[f32::NEG_INFINITY; 300], &mut buffers).err(), Some(RowError::NoTokenAllowed));
    assert_eq!(Candidates::new(&[], &mut buffers).err(), Some(RowError::NoTokenAllowed));
}

#[test]
fn buffers_carry_nothing_from_one_row_to_the_next() {
    let mut buffers = Buffers::default();
    let long: Vec<f32> = (0..2000_u16).map(|at| f32::from(at % 71)).collect();
    for row in [&long[..], &long[..3], &long[..700], &[5.0]] {
        let mut candidates = Candidates::new(row, &mut buffers).unwrap();
        candidates.keep_top(2);
        let mut reused = vec![0.0; row.len()];
        candidates.write_to(&mut reused);
        assert_eq!(reused, processed(row, |candidates| candidates.keep_top(2)));
    }
}

/// Draws of a stored request must come out the same after an upgrade.
#[test]
fn the_numbers_of_a_seed_never_change() {
    let numbers: Vec<f64> = (0..3).map(|step| rng::uniform(42, 0, step)).collect();
    assert_eq!(numbers, [0.348_254_468_548_076_3, 0.466_710_679_520_391_47, 0.404_996_753_604_907_06]);
}
