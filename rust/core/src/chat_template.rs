//! Chat templates: minijinja, equal to transformers' `apply_chat_template`.

use std::ops::Range;

/// What a chat template produced, with the places of the caller's text marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    protected: Vec<Range<usize>>,
}

impl RenderedChat {
    /// The prompt.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte ranges of the text that the caller wrote: sorted, not overlapping. No control token may touch them.
    #[must_use]
    pub fn protected(&self) -> &[Range<usize>] {
        &self.protected
    }
}
