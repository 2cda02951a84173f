//! Why a token was chosen.

use super::{Rows, Worker};
use crate::generation::Generation;
use crate::logits::explanation::{Explanation, Trace};
use crate::logits::guidance;

impl Worker {
    /// Goes the way of a row once more, with the token that was chosen from it in view. The generation must not have
    /// taken that token yet.
    pub(super) fn explain(&mut self, rows: Rows<'_>, generation: &Generation, token: u32) -> Explanation {
        let Self { widened, unconditional, edited, buffers, traces } = self;
        let row = rows.own.widened(widened);
        let mut trace = Trace::new(token, row, traces);
        let scan = buffers.scan(row);
        if rows.guide((row, scan), generation, (unconditional, buffers), edited) {
            trace.note(guidance::NAME, edited);
        } else {
            edited.clear();
            edited.extend_from_slice(row);
        }
        generation.pipeline().explain(generation.history(), edited, buffers, &mut trace);
        trace.finish()
    }
}
