//! Token id to the text or bytes that the decoder chain takes.

use super::stage::bytes_of;

/// Every token of a tokenizer in one block of memory.
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    length: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id.
    Unused,
    Plain,
    Special,
}

impl Vocabulary {
    /// `tokens` yields, for each id from 0, the token as stored and whether it is special.
    pub(crate) fn new(tokens: impl Iterator<Item = Option<(String, bool)>>, byte_level: bool) -> Self {
        let mut bytes = Vec::new();
        let entries = tokens
            .map(|token| {
                let start = bytes.len();
                let kind = match token {
                    None => Kind::Unused,
                    Some((token, is_special)) => {
                        if byte_level {
                            bytes.extend(bytes_of(&token));
                        } else {
                            bytes.extend(token.into_bytes());
                        }
                        if is_special { Kind::Special } else { Kind::Plain }
                    }
                };
                // A token of 4 GiB cannot come out of a tokenizer.json that fits in memory.
                let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
                Entry { start, length, kind }
            })
            .collect();
        Self { bytes, entries }
    }

    /// One more than the highest id.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a token has this id.
    pub(crate) fn contains(&self, id: u32) -> bool {
        self.entry(id).is_some_and(|entry| entry.kind != Kind::Unused)
    }

    /// Whether a token has this id and is special.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.entry(id).is_some_and(|entry| entry.kind == Kind::Special)
    }

    /// What the decoder chain takes for a token; none for unknown ids and for special ones that are skipped.
    pub(crate) fn piece(&self, id: u32, skip_special_tokens: bool) -> Option<&[u8]> {
        let entry = self.entry(id)?;
        match entry.kind {
            Kind::Unused => None,
            Kind::Special if skip_special_tokens => None,
            Kind::Plain | Kind::Special => self.bytes.get(entry.start..entry.start + entry.length as usize),
        }
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(usize::try_from(id).ok()?)
    }
}
