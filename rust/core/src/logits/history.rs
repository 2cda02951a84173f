//! What a sequence has seen so far: the context of every processor.

use std::collections::HashMap;

/// Prompt and generated tokens of one sequence, with what the penalties ask of them kept up to date.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Prompt, then answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    distinct: Vec<u32>,
    /// How many of `distinct` the prompt gave.
    prompt_distinct: usize,
    is_seen: Vec<u64>,
    counts: Vec<(u32, u32)>,
    count_index: HashMap<u32, usize>,
}

impl History {
    /// Starts behind a prompt. Padding is not part of it.
    #[must_use]
    pub fn new(prompt: Vec<u32>) -> Self {
        let mut history = Self::default();
        for &id in &prompt {
            history.see(id);
        }
        history.prompt_len = prompt.len();
        history.prompt_distinct = history.distinct.len();
        history.tokens = prompt;
        history
    }

    /// Appends a token to the prompt, before the first one is generated.
    pub fn push_prompt(&mut self, id: u32) {
        self.see(id);
        self.tokens.push(id);
        self.prompt_len = self.tokens.len();
        self.prompt_distinct = self.distinct.len();
    }

    /// Appends a generated token.
    pub fn push(&mut self, id: u32) {
        self.see(id);
        let entry = *self.count_index.entry(id).or_insert(self.counts.len());
        match self.counts.get_mut(entry) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((id, 1)),
        }
        self.tokens.push(id);
    }

    fn see(&mut self, id: u32) {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if word >= self.is_seen.len() {
            self.is_seen.resize(word + 1, 0);
        }
        if self.is_seen[word] & bit == 0 {
            self.is_seen[word] |= bit;
            self.distinct.push(id);
        }
    }

    /// Tokens of the prompt.
    #[must_use]
    pub fn prompt(&self) -> &[u32] {
        self.tokens.get(..self.prompt_len).unwrap_or_default()
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn generated(&self) -> &[u32] {
        self.tokens.get(self.prompt_len..).unwrap_or_default()
    }

    /// Prompt and answer: what transformers' processors get as `input_ids`.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Every token of prompt and answer once, by first occurrence.
    #[must_use]
    pub fn distinct(&self) -> &[u32] {
        &self.distinct
    }

    /// Every token of the prompt once, by first occurrence.
    #[must_use]
    pub fn distinct_prompt(&self) -> &[u32] {
        self.distinct.get(..self.prompt_distinct).unwrap_or_default()
    }

    /// Every generated token once, with how often it was generated.
    #[must_use]
    pub fn counts(&self) -> &[(u32, u32)] {
        &self.counts
    }
}
