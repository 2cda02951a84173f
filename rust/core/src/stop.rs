//! Stop strings.
//!
//! Contract with `generation`: `StopStrings::new(&[String], include: bool)` is shared and immutable;
//! `StopMatcher::new(Arc<StopStrings>)`; `push(&mut self, text: &str, out: &mut String) -> Option<usize>` appends the
//! text that can no longer become part of a match and returns the index of the stop string that matched, with the
//! text trimmed; `finish(&mut self, out: &mut String)` appends what is held back.
//!
//! The match that ends first wins, as a reader who watches character by character would stop; of several that end at
//! the same character, the one that starts first, so that the most text is trimmed. Both are independent of how the
//! text was split into tokens. Among equal stop strings the first is reported.

use std::collections::BTreeMap;
use std::sync::Arc;

const ROOT: u32 = 0;

/// A set of stop strings as an Aho-Corasick automaton over bytes: linear time in the text, linear memory in the strings.
#[derive(Debug)]
pub struct StopStrings {
    nodes: Vec<Node>,
    /// Length of each stop string in bytes.
    lengths: Vec<usize>,
    include: bool,
}

#[derive(Debug, Default)]
struct Node {
    next: BTreeMap<u8, u32>,
    /// The node of the longest proper suffix that is a prefix of a stop string.
    failure: u32,
    /// Bytes from the root.
    depth: usize,
    /// The longest stop string that ends here.
    matched: Option<usize>,
}

impl StopStrings {
    /// Builds the automaton. Empty strings never match. With `include` the matched string stays in the text.
    #[must_use]
    pub fn new(strings: &[String], include: bool) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, string) in strings.iter().enumerate().filter(|(_, string)| !string.is_empty()) {
            let mut at = ROOT;
            for &byte in string.as_bytes() {
                at = child(&mut nodes, at, byte);
            }
            nodes[at as usize].matched.get_or_insert(index);
        }
        let mut automaton = Self { nodes, lengths: strings.iter().map(String::len).collect(), include };
        automaton.link();
        automaton
    }

    /// Whether no string can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Sets the failure links, breadth first, and lets each node inherit the match of its suffix.
    fn link(&mut self) {
        let mut queue = std::collections::VecDeque::from([ROOT]);
        while let Some(at) = queue.pop_front() {
            let children: Vec<(u8, u32)> =
                self.nodes[at as usize].next.iter().map(|(&byte, &node)| (byte, node)).collect();
            for (byte, node) in children {
                let failure = if at == ROOT { ROOT } else { self.step(self.nodes[at as usize].failure, byte) };
                let inherited = self.nodes[failure as usize].matched;
                let node_mut = &mut self.nodes[node as usize];
                node_mut.failure = failure;
                node_mut.matched = node_mut.matched.or(inherited);
                queue.push_back(node);
            }
        }
    }

    /// The state after one more byte; amortised constant, since every failure link shortens the depth.
    fn step(&self, mut at: u32, byte: u8) -> u32 {
        loop {
            let node = &self.nodes[at as usize];
            if let Some(&next) = node.next.get(&byte) {
                return next;
            }
            if at == ROOT {
                return ROOT;
            }
            at = node.failure;
        }
    }
}

fn child(nodes: &mut Vec<Node>, at: u32, byte: u8) -> u32 {
    // Stop strings of 4 GiB in all are refused long before this.
    let fresh = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let depth = nodes[at as usize].depth + 1;
    let node = *nodes[at as usize].next.entry(byte).or_insert(fresh);
    if node == fresh {
        nodes.push(Node { depth, ..Node::default() });
    }
    node
}

/// Looks for stop strings in text that arrives in pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    strings: Arc<StopStrings>,
    state: u32,
    /// The end of the text that may still become part of a match.
    held: String,
    is_done: bool,
}

impl StopMatcher {
    /// Starts at the beginning of the generated text; a match never reaches into what came before.
    #[must_use]
    pub fn new(strings: Arc<StopStrings>) -> Self {
        Self { strings, state: ROOT, held: String::new(), is_done: false }
    }

    /// Takes the next text and appends to `out` what can no longer become part of a match.
    ///
    /// Returns the index of the stop string that matched; `out` then ends before it (after it with `include`), and
    /// whatever follows is dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.is_done {
            return None;
        }
        if self.strings.is_empty() {
            out.push_str(text);
            return None;
        }
        let scanned = self.held.len();
        self.held.push_str(text);
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            self.state = self.strings.step(self.state, byte);
            if let Some(index) = self.strings.nodes[self.state as usize].matched {
                let end = scanned + offset + 1;
                let keep = if self.strings.include { end } else { end - self.strings.lengths[index] };
                out.push_str(&self.held[..keep]);
                self.held.clear();
                self.is_done = true;
                return Some(index);
            }
        }
        // The state's depth is the length of the longest end that starts a stop string, so it begins at a character.
        let certain = self.held.len() - self.strings.nodes[self.state as usize].depth;
        out.extend(self.held.drain(..certain));
        None
    }

    /// Whether a stop string would match if `text`, which `get` makes, came next and were the end. Asks `get` only where
    /// there are stop strings.
    ///
    /// For text that a decoder holds back because a later token can still change it: a run of byte-fallback tokens could
    /// go on for ever, and transformers stops at the token that completes the string. An unfinished character reads as
    /// U+FFFD, which is no text yet.
    #[must_use]
    pub fn would_match(&self, get: impl FnOnce() -> String) -> bool {
        if self.is_done || self.strings.is_empty() {
            return false;
        }
        let text = get();
        let mut state = self.state;
        !text.contains(char::REPLACEMENT_CHARACTER)
            && text.bytes().any(|byte| {
                state = self.strings.step(state, byte);
                self.strings.nodes[state as usize].matched.is_some()
            })
    }

    /// Appends what is held back to `out`: the text is over and nothing matched.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.is_done = true;
    }
}
