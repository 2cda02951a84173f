//! Why a token was chosen.

use super::{Rows, Worker};
use crate::generation::Generation;
use crate::logits::explanation::{Explanation, Trace};
use crate::logits::guidance;

impl Worker {
    /// Goes the way of a row once more, with the token that was chosen from it in view. The generation must not have
    /// taken that token yet.
    pub(super) fn explain(&mut self, rows: Rows<'_>, generation: &Generation, token: u32) -> Explanation {
        let Self { widened, unconditional, edited, buffers } = self;
        let row = rows.own.widened(widened);
        let mut trace = Trace::new(token, row);
        if let Some(other) = rows.guiding(generation) {
            let other = other.widened(unconditional);
            let (own, scale) = (buffers.scan(row), generation.sampling().guidance_scale);
            guidance::guide((row, own), (other, buffers.scan(other)), scale, edited);
            trace.note(guidance::NAME, edited);
        } else {
            edited.clear();
            edited.extend_from_slice(row);
        }
        generation.pipeline().explain(generation.history(), edited, buffers, &mut trace);
        trace.finish()
    }
}
