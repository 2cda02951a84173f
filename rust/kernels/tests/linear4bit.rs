//! Laws of the 4-bit linear layer, on every level that this CPU has.
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]

use proptest::prelude::*;
use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use tokenwire_kernels::linear4bit::{Error, Weights};
use tokenwire_kernels::{LengthError, Level, Linear4Bit, ThreadPool};

static POOL: LazyLock<Arc<ThreadPool>> = LazyLock::new(|| Arc::new(ThreadPool::new(NonZero::new(3).unwrap())));

/// A layer as bitsandbytes would store it, and some rows of input.
#[derive(Debug, Clone)]
struct Case {
    packed: Vec<u8>,
    absmax: Vec<f32>,
    block_size: usize,
    code: [f32; 16],
    in_features: usize,
    out_features: usize,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
}

impl Case {
    fn weights(&self) -> Weights<'_> {
        Weights {
            packed: &self.packed,
            absmax: &self.absmax,
            block_size: self.block_size,
            code: &self.code,
            in_features: self.in_features,
            out_features: self.out_features,
            bias: self.bias.as_deref(),
        }
    }

    fn layer(&self, level: Level) -> Linear4Bit {
        Linear4Bit::new(self.weights(), level, POOL.clone()).unwrap()
    }

    fn weight(&self, column: usize, feature: usize) -> f64 {
        let index = column * self.in_features + feature;
        let byte = self.packed[index / 2];
        let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        f64::from(self.code[usize::from(code)]) * f64::from(self.absmax[index / self.block_size])
    }

    /// The product in f64, and for each element the sum of the magnitudes in it.
    fn reference(&self) -> Vec<(f64, f64)> {
        let mut results = Vec::new();
        for x in self.x.chunks_exact(self.in_features) {
            for column in 0..self.out_features {
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                let products = x.iter().enumerate().map(|(feature, &x)| f64::from(x) * self.weight(column, feature));
                let (sum, size) = products.fold((bias, bias.abs()), |(sum, size), p| (sum + p, size + p.abs()));
                results.push((sum, size));
            }
        }
        results
    }
}

fn forward(layer: &Linear4Bit, x: &[f32]) -> Vec<f32> {
    // What is in the output before must not matter.
    let mut out = vec![f32::NAN; x.len() / layer.in_features() * layer.out_features()];
    layer.forward(x, &mut out).unwrap();
    out
}

fn values(count: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-2.0f32..2.0, count)
}

fn cases(max_rows: usize) -> impl Strategy<Value = Case> {
    (1usize..5, 1usize..80, 1usize..4, 1..=max_rows).prop_flat_map(|(blocks, out_features, factor, rows)| {
        let (in_features, block_size) = (blocks * 64, factor * 64);
        let size = in_features * out_features;
        let scale = prop_oneof![4 => 0.0f32..3.0, 1 => Just(0.0)];
        (
            prop::collection::vec(any::<u8>(), size / 2),
            prop::collection::vec(scale, size.div_ceil(block_size)),
            prop::array::uniform16(-1.0f32..1.0),
            prop::option::of(values(out_features)),
            values(rows * in_features),
        )
            .prop_map(move |(packed, absmax, code, bias, x)| Case {
                packed,
                absmax,
                block_size,
                code,
                in_features,
                out_features,
                bias,
                x,
            })
    })
}

/// A case of the given size without proptest: large ones are costly to generate piece by piece.
fn large_case(in_features: usize, out_features: usize, rows: usize) -> Case {
    let mut state = 1u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let size = in_features * out_features;
    let mut number = |scale: f32| (next() % 2001) as f32 / 1000.0 * scale - scale;
    let code = std::array::from_fn(|_| number(1.0));
    let absmax = (0..size / 64).map(|_| number(1.0).abs()).collect();
    let bias = Some((0..out_features).map(|_| number(1.0)).collect());
    let x = (0..rows * in_features).map(|_| number(2.0)).collect();
    let packed = (0..size / 2).map(|index| (index * 167 % 251) as u8).collect();
    Case { packed, absmax, block_size: 64, code, in_features, out_features, bias, x }
}

fn check_against_reference(case: &Case) {
    let reference = case.reference();
    for level in Level::available() {
        let out = forward(&case.layer(level), &case.x);
        assert_eq!(out.len(), reference.len());
        for (index, (&got, &(expected, size))) in out.iter().zip(&reference).enumerate() {
            let bound = 1e-5 * size + 1e-30;
            assert!((f64::from(got) - expected).abs() <= bound, "{level}, {index}: {got} for {expected}");
        }
    }
}

fn check_rows_alone_equal_rows_together(case: &Case) {
    for level in Level::available() {
        let layer = case.layer(level);
        let together = forward(&layer, &case.x);
        for (x, expected) in case.x.chunks_exact(case.in_features).zip(together.chunks_exact(case.out_features)) {
            let alone = forward(&layer, x);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone), bits(expected), "{level}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_product_is_that_of_the_decoded_weights(case in cases(9)) {
        check_against_reference(&case);
    }

    #[test]
    fn a_row_alone_has_the_bits_that_it_has_in_a_batch(case in cases(17)) {
        check_rows_alone_equal_rows_together(&case);
    }
}

#[test]
fn every_number_of_rows_is_computed() {
    for rows in 1..=70 {
        check_against_reference(&large_case(64, 33, rows));
    }
}

#[test]
fn many_rows_and_columns_are_shared_by_threads() {
    // More rows than one task takes, and not a multiple of it.
    check_against_reference(&large_case(192, 161, 257));
    check_rows_alone_equal_rows_together(&large_case(576, 192, 257));
}

#[test]
fn every_code_means_its_number() {
    for place in 0..64 {
        let mut case = large_case(64, 32, 1);
        case.bias = None;
        case.absmax.fill(1.0);
        // Column n has code n % 16 everywhere; the input picks one feature.
        case.packed = (0..32 * 32).map(|index| (index / 32 % 16 * 17) as u8).collect();
        case.x.fill(0.0);
        case.x[place] = 1.0;
        for level in Level::available() {
            let out = forward(&case.layer(level), &case.x);
            assert_eq!(out, [case.code, case.code].concat(), "{level}, feature {place}");
        }
    }
}

#[test]
fn the_levels_with_fused_arithmetic_give_the_same_bits() {
    let case = large_case(320, 75, 23);
    let fused = Level::available().into_iter().filter(|&level| level != Level::Portable);
    let results: Vec<_> = fused.map(|level| forward(&case.layer(level), &case.x)).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn no_rows_are_no_work() {
    for level in Level::available() {
        assert!(forward(&large_case(64, 3, 0).layer(level), &[]).is_empty());
    }
}

#[test]
fn an_overflow_stays_in_its_row() {
    let mut case = large_case(128, 40, 5);
    case.x[128..256].fill(f32::MAX);
    let clean = large_case(128, 40, 5);
    for level in Level::available() {
        let (got, expected) = (forward(&case.layer(level), &case.x), forward(&clean.layer(level), &clean.x));
        for row in [0, 2, 3, 4] {
            assert_eq!(got[row * 40..][..40], expected[row * 40..][..40], "{level}");
        }
        assert!(got[40..80].iter().any(|value| !value.is_finite()));
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let case = large_case(128, 3, 1);
    let made = |change: &dyn Fn(&mut Case)| {
        let mut changed = case.clone();
        change(&mut changed);
        Linear4Bit::new(changed.weights(), Level::Portable, POOL.clone()).err()
    };
    let length = |name, expected, got| Some(Error::Length { name, expected, got });
    assert_eq!(made(&|_| ()), None);
    assert_eq!(made(&|case| case.in_features = 96), Some(Error::InFeatures(96)));
    assert_eq!(made(&|case| case.in_features = 0), Some(Error::InFeatures(0)));
    assert_eq!(made(&|case| case.out_features = 0), Some(Error::OutFeatures));
    assert_eq!(made(&|case| case.out_features = 4), length("packed", 256, 192));
    assert_eq!(made(&|case| case.block_size = 32), Some(Error::BlockSize(32)));
    assert_eq!(made(&|case| case.block_size = 0), Some(Error::BlockSize(0)));
    assert_eq!(made(&|case| case.block_size = 128), length("absmax", 3, 6));
    assert_eq!(made(&|case| case.packed.truncate(5)), length("packed", 192, 5));
    assert_eq!(made(&|case| case.bias = Some(vec![0.0; 2])), length("bias", 3, 2));
    let lengths = |x, out| Some(LengthError { x, out, in_features: 128, out_features: 3 });
    let layer = case.layer(Level::Portable);
    assert_eq!(layer.forward(&[0.0; 127], &mut []).err(), lengths(127, 0));
    assert_eq!(layer.forward(&[0.0; 128], &mut [0.0; 4]).err(), lengths(128, 4));
}
