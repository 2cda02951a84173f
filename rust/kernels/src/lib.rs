//! Arithmetic of the forward pass on the CPU: products with 4-bit and f32 weights, and the threads that share them.
//!
//! This is the one crate of the workspace with `unsafe` code: vector instructions chosen at run time, and threads that
//! borrow from their caller. Each such block says why it is sound, and each function that the outside sees is safe.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod level;
pub mod linear;
pub mod linear4bit;
mod output;
mod pool;
mod product;
mod simd;

pub use level::{Level, UnknownLevel};
pub use linear::Linear;
pub use linear4bit::Linear4Bit;
pub use pool::ThreadPool;
pub use product::LengthError;
