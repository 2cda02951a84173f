//! Bytes that arrive in pieces, as text.

/// Incremental `String::from_utf8_lossy`: for any split of the bytes the output joined is the same.
#[derive(Debug, Clone, Default)]
pub(super) struct LossyUtf8 {
    /// Start of a character that may still be completed, at most three bytes.
    pending: Vec<u8>,
}

impl LossyUtf8 {
    /// Hands on every character that is complete and U+FFFD for bytes that can no longer become one.
    pub(super) fn push(&mut self, bytes: &[u8], emit: &mut dyn FnMut(&str)) {
        if self.pending.is_empty() {
            let rest = decode(bytes, emit);
            self.pending.extend_from_slice(rest);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            let rest = decode(&joined, emit);
            self.pending.extend_from_slice(rest);
        }
    }

    /// An unfinished character at the end is one U+FFFD.
    pub(super) fn finish(&mut self, emit: &mut dyn FnMut(&str)) {
        if !self.pending.is_empty() {
            self.pending.clear();
            emit("\u{FFFD}");
        }
    }
}

/// Emits what is certain and returns the start of an unfinished character at the end.
fn decode<'a>(mut bytes: &'a [u8], emit: &mut dyn FnMut(&str)) -> &'a [u8] {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                emit_some(text, emit);
                return &[];
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        if let Ok(text) = std::str::from_utf8(valid) {
            emit_some(text, emit);
        }
        let Some(length) = error.error_len() else { return rest };
        emit("\u{FFFD}");
        bytes = &rest[length..];
    }
}

fn emit_some(text: &str, emit: &mut dyn FnMut(&str)) {
    if !text.is_empty() {
        emit(text);
    }
}

#[cfg(test)]
mod tests {
    use super::LossyUtf8;
    use proptest::prelude::*;

    /// Bytes that are often the start, the middle or a broken part of a character.
    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![any::<u8>(), 0x80u8..=0xBF, 0xC2u8..=0xF4, Just(b'a')]
    }

    proptest! {
        #[test]
        fn any_split_equals_from_utf8_lossy(chunks in prop::collection::vec(prop::collection::vec(byte(), 0..6), 0..12)) {
            let mut lossy = LossyUtf8::default();
            let mut out = String::new();
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(chunk);
                lossy.push(chunk, &mut |text| out.push_str(text));
                // What is held back is a prefix of one character, so the stream never lags by more.
                prop_assert!(lossy.pending.len() <= 3);
            }
            lossy.finish(&mut |text| out.push_str(text));
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
