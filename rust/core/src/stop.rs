//! Stop strings.
//!
//! Contract with `generation`: `StopStrings::new(&[String], include: bool)` is shared and immutable;
//! `StopMatcher::new(Arc<StopStrings>)`; `push(&mut self, text: &str, out: &mut String) -> Option<usize>` appends the
//! text that can no longer become part of a match and returns the index of the stop string that matched, with the
//! text trimmed; `finish(&mut self, out: &mut String)` appends what is held back.
