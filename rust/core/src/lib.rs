//! Text, padding, logits, sampling, detokenization and stop checks of tokenwire.
//!
//! The crate knows neither Python nor gRPC. Token ids are `u32`, logits `f32` or bfloat16.
#![forbid(unsafe_code)]

pub mod beam;
pub mod chat_template;
pub mod detokenizer;
pub mod error;
pub mod generation;
pub mod logits;
pub mod lookup;
pub mod padding;
pub mod params;
pub mod rng;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
