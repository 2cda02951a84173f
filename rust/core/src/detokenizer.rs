//! Streaming detokenization: text as soon as it is certain.
//!
//! Contract with `generation`: `Detokenizer::new(Arc<Tokenizer>, skip_special_tokens: bool)`,
//! `push(&mut self, id: u32, out: &mut String)` appends the text that became certain,
//! `finish(&mut self, out: &mut String)` appends what is held back. All output joined equals
//! `Tokenizer::decode(all ids, skip_special_tokens)`.
