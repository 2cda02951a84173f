//! Processors that look for the beginnings of given sequences.

use super::history::History;
use super::penalties::narrow;
use super::{Processor, Settings};

/// A token, what must stand before it, and what its logit then gets.
#[derive(Debug)]
struct Entry {
    prefix: Vec<u32>,
    last: u32,
    bias: f32,
}

/// transformers' `SequenceBiasLogitsProcessor`, and with a bias of -infinity its `NoBadWordsLogitsProcessor`.
#[derive(Debug)]
struct SequenceBias {
    entries: Vec<Entry>,
}

impl SequenceBias {
    fn make<'a>(sequences: impl Iterator<Item = (&'a [u32], f32)>) -> Option<Box<dyn Processor>> {
        let split = |(ids, bias): (&'a [u32], f32)| {
            ids.split_last().map(|(&last, prefix)| Entry { prefix: prefix.to_vec(), last, bias })
        };
        let mut entries: Vec<_> = sequences.filter_map(split).collect();
        // Those with the same last token next to each other: their biases are added up before the logit gets them.
        entries.sort_by_key(|entry| entry.last);
        (!entries.is_empty()).then(|| Box::new(Self { entries }) as _)
    }

    fn matching<'a>(&'a self, history: &'a History) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(|entry| history.tokens().ends_with(&entry.prefix))
    }
}

pub fn sequence_bias(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    SequenceBias::make(settings.sampling.sequence_bias.iter().map(|(ids, bias)| (ids.as_slice(), narrow(*bias))))
}

/// Single tokens that are EOS tokens are dropped: the way to end stays open.
pub fn bad_words(settings: &Settings<'_>) -> Option<Box<dyn Processor>> {
    let is_eos = |ids: &[u32]| matches!(ids, [id] if settings.stopping.eos_token_ids.contains(id));
    let words = settings.sampling.bad_words_ids.iter().map(Vec::as_slice).filter(|ids| !is_eos(ids));
    SequenceBias::make(words.map(|ids| (ids, f32::NEG_INFINITY)))
}

impl Processor for SequenceBias {
    fn is_active(&self, history: &History) -> bool {
        self.matching(history).next().is_some()
    }

    fn process(&self, history: &History, logits: &mut [f32]) {
        let mut matching = self.matching(history).peekable();
        while let Some(entry) = matching.next() {
            let mut bias = entry.bias;
            while let Some(same) = matching.next_if(|next| next.last == entry.last) {
                bias += same.bias;
            }
            if let Some(logit) = logits.get_mut(entry.last as usize) {
                *logit += bias;
            }
        }
    }
}
