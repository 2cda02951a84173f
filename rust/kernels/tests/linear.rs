//! Laws of the f32 linear layer, on every level that this CPU has.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

use proptest::prelude::*;
use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use tokenwire_kernels::linear4bit::Error;
use tokenwire_kernels::{LengthError, Level, Linear, ThreadPool};

static POOL: LazyLock<Arc<ThreadPool>> = LazyLock::new(|| Arc::new(ThreadPool::new(NonZero::new(3).unwrap())));

/// Numbers in [-1, 1) that differ with `seed`.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn forward(layer: &Linear, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / layer.in_features() * layer.out_features()];
    layer.forward(x, &mut out).unwrap();
    out
}

proptest! {
    #[test]
    fn a_product_is_that_of_the_weights_and_a_row_alone_has_its_bits(
        (blocks, columns, rows) in (1usize..5, 1usize..80, 0usize..20),
        has_bias: bool,
        seed: u32,
    ) {
        let width = blocks * 64;
        let (weight, x) = (numbers(seed, columns * width), numbers(seed ^ 1, rows * width));
        let bias = has_bias.then(|| numbers(seed ^ 2, columns));
        for level in Level::available() {
            let layer = Linear::new(&weight, width, bias.as_deref(), level, POOL.clone()).unwrap();
            let out = forward(&layer, &x);
            prop_assert_eq!(out.len(), rows * columns);
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(columns)) {
                for (column, weight) in weight.chunks_exact(width).enumerate() {
                    let products = x.iter().zip(weight).map(|(&x, &weight)| f64::from(x) * f64::from(weight));
                    let expected = products.sum::<f64>() + bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                    prop_assert!((f64::from(out[column]) - expected).abs() < 1e-5 * (width as f64).sqrt());
                }
                prop_assert_eq!(&forward(&layer, x), out);
            }
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let weight = numbers(0, 3 * 64);
    let made = |weight: &[f32], width, bias: Option<&[f32]>| {
        Linear::new(weight, width, bias, Level::Portable, POOL.clone()).err()
    };
    assert_eq!(made(&weight, 64, None), None);
    assert_eq!(made(&weight, 96, None), Some(Error::InFeatures(96)));
    assert_eq!(made(&weight, 0, None), Some(Error::InFeatures(0)));
    assert_eq!(made(&[], 64, None), Some(Error::OutFeatures));
    assert_eq!(made(&weight[1..], 64, None), Some(Error::Length { name: "weight", expected: 128, got: 191 }));
    assert_eq!(made(&weight, 64, Some(&[0.0])), Some(Error::Length { name: "bias", expected: 3, got: 1 }));
    let layer = Linear::new(&weight, 64, None, Level::Portable, POOL.clone()).unwrap();
    let lengths = LengthError { x: 65, out: 3, in_features: 64, out_features: 3 };
    assert_eq!(layer.forward(&[0.0; 65], &mut [0.0; 3]), Err(lengths));
}
