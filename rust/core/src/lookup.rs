//! Prompt lookup: guesses of a sequence's next tokens, from what followed the same n-gram earlier in it.
//!
//! Equal to transformers' `PromptLookupCandidateGenerator` except that it does not ask the logits processors whether a
//! guess is allowed: one that is not is refused when it is verified, so the answer is the same.

use std::collections::HashMap;

/// Tokens of one sequence with an index of all their n-grams up to a length.
///
/// The index is a trie: a node per distinct n-gram, reached from that of its first n - 1 tokens. A token costs one step
/// down for each length, and a guess looks at one node for each length, however long the sequence is.
#[derive(Debug, Clone)]
pub struct PromptLookup {
    tokens: Vec<u32>,
    children: HashMap<(u32, u32), u32>,
    /// Where the first occurrence of each node's n-gram ends: the number of tokens up to there.
    first_ends: Vec<usize>,
    /// Nodes of the n-grams that end the sequence, by length from 0; fewer than asked for while it is shorter.
    suffixes: Vec<u32>,
    max_ngram: usize,
}

impl PromptLookup {
    /// Starts behind `tokens`. `max_ngram`: longest n-gram that is looked for, at least 1.
    #[must_use]
    pub fn new(tokens: &[u32], max_ngram: usize) -> Self {
        let mut lookup = Self {
            tokens: Vec::with_capacity(tokens.len()),
            children: HashMap::new(),
            first_ends: vec![0],
            suffixes: vec![0],
            max_ngram: max_ngram.max(1),
        };
        lookup.extend(tokens);
        lookup
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends tokens.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.push(token);
        }
    }

    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let parents = self.suffixes.len().min(self.max_ngram);
        // From the longest down: each becomes the suffix that is one longer, before it is replaced itself.
        if self.suffixes.len() <= self.max_ngram {
            self.suffixes.push(0);
        }
        for length in (0..parents).rev() {
            let parent = self.suffixes[length];
            let next = u32::try_from(self.first_ends.len()).unwrap_or(u32::MAX);
            let node = *self.children.entry((parent, token)).or_insert(next);
            if node == next {
                self.first_ends.push(self.tokens.len());
            }
            self.suffixes[length + 1] = node;
        }
    }

    /// The `count` tokens at most that followed the first occurrence of the longest n-gram that ends the sequence and
    /// occurred before; those from the first of `ends` on are left out. Empty where nothing matches.
    #[must_use]
    pub fn guess(&self, count: usize, ends: &[u32]) -> &[u32] {
        for &node in self.suffixes.iter().skip(1).rev() {
            let start = self.first_ends[node as usize];
            if start < self.tokens.len() {
                let found = &self.tokens[start..self.tokens.len().min(start + count)];
                let stop = found.iter().position(|token| ends.contains(token)).unwrap_or(found.len());
                return &found[..stop];
            }
        }
        &[]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::PromptLookup;
    use proptest::prelude::*;

    /// What transformers does: for each length from the longest, the first window that matches and has a continuation.
    fn plain(tokens: &[u32], max_ngram: usize, count: usize, ends: &[u32]) -> Vec<u32> {
        for length in (1..=max_ngram.min(tokens.len().saturating_sub(1))).rev() {
            let suffix = &tokens[tokens.len() - length..];
            let starts = (0..=tokens.len() - length).filter(|&start| &tokens[start..start + length] == suffix);
            if let Some(start) = starts.map(|start| start + length).find(|&start| start < tokens.len()) {
                let found = &tokens[start..tokens.len().min(start + count)];
                return found.iter().copied().take_while(|token| !ends.contains(token)).collect();
            }
        }
        Vec::new()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn guesses_are_those_of_a_search(
            tokens in prop::collection::vec(0_u32..4, 0..60),
            max_ngram in 1_usize..6,
            count in 1_usize..9,
            split in any::<prop::sample::Index>(),
            ends in prop::collection::vec(0_u32..6, 0..2),
        ) {
            let first = split.index(tokens.len() + 1);
            let mut lookup = PromptLookup::new(&tokens[..first], max_ngram);
            lookup.extend(&tokens[first..]);
            prop_assert_eq!(lookup.len(), tokens.len());
            prop_assert_eq!(lookup.guess(count, &ends).to_vec(), plain(&tokens, max_ngram, count, &ends));
        }
    }
}
