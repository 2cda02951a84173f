//! Which tokens begin with another: for token healing.

/// Vocabulary entries in order, without special tokens.
pub(super) struct Extensions {
    sorted: Vec<(Box<str>, u32)>,
}

impl Extensions {
    pub(super) fn new(entries: impl Iterator<Item = (String, u32)>) -> Self {
        let mut sorted: Vec<(Box<str>, u32)> = entries.map(|(entry, id)| (entry.into_boxed_str(), id)).collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// Ids of the tokens whose entry begins with `prefix`.
    pub(super) fn of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = u32> + 'a {
        let first = self.sorted.partition_point(|(entry, _)| &**entry < prefix);
        let entries = self.sorted.get(first..).unwrap_or_default().iter();
        entries.take_while(move |(entry, _)| entry.starts_with(prefix)).map(|&(_, id)| id)
    }
}
