//! Watermarks: the same as transformers' on the CPU, so that its detectors find them.

mod green_list;
mod synth_id;
mod torch;

pub use green_list::green_list;
pub use synth_id::synth_id_text;
