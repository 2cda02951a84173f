//! The green list of Kirchenbauer et al. (2023), "A Watermark for Large Language Models".

use super::torch;
use crate::logits::candidates::Candidates;
use crate::logits::history::History;
use crate::logits::penalties::narrow;
use crate::logits::{Settings, Warper};
use crate::params::Watermark;
use std::sync::{Arc, Mutex, PoisonError};

/// Size of the table that the self-hash looks tokens up in, a prime.
const TABLE_SIZE: u32 = 1_000_003;
/// How many of the most likely tokens the self-hash tries.
const TRIED: usize = 40;

/// transformers' `WatermarkLogitsProcessor`: adds a bias to a part of the vocabulary that a hash of what came before
/// (`lefthash`), or of each token with what came before (`selfhash`), picks.
#[derive(Debug)]
struct GreenListWatermark {
    vocab_size: u32,
    green_count: usize,
    bias: f32,
    key: i64,
    context_width: usize,
    /// With the self-hash.
    table: Option<Arc<[u32]>>,
}

pub fn green_list(settings: &Settings<'_>) -> Option<Box<dyn Warper>> {
    let Some(Watermark::GreenList(config)) = &settings.sampling.watermark else { return None };
    let vocab_size = settings.sampling.vocab_size;
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
    let green_count = (vocab_size as f64 * config.greenlist_ratio) as usize;
    let key = i64::try_from(config.hashing_key).unwrap_or_default();
    let table = (config.seeding_scheme == "selfhash").then(|| table_of(seed_of(key.into())));
    Some(Box::new(GreenListWatermark {
        vocab_size: u32::try_from(vocab_size).unwrap_or(u32::MAX),
        green_count,
        bias: narrow(config.bias),
        key,
        context_width: usize::try_from(config.context_width).unwrap_or_default(),
        table,
    }))
}

impl Warper for GreenListWatermark {
    fn warp(&self, history: &History, candidates: &mut Candidates<'_>) {
        let tokens = history.tokens();
        let Some(&last) = tokens.last().filter(|_| tokens.len() >= self.context_width) else { return };
        let greens = if let Some(table) = &self.table {
            let mut tried = candidates.best_ids(TRIED);
            tried.retain(|&id| {
                let seed = self.self_hash(table, tokens, id);
                torch::is_in_permutation(seed, self.vocab_size, self.green_count, id)
            });
            tried
        } else {
            let seed = seed_of(i128::from(self.key) * i128::from(last));
            torch::permutation(seed, self.vocab_size, self.green_count)
        };
        let mut is_green = vec![false; self.vocab_size as usize];
        for id in greens {
            if let Some(green) = is_green.get_mut(id as usize) {
                *green = true;
            }
        }
        let is_green = |id: u32| is_green.get(id as usize).copied().unwrap_or_default();
        candidates.rewrite(|id, logit| if is_green(id) { logit + self.bias } else { logit });
    }
}

impl GreenListWatermark {
    /// The smallest product of the key with the table's entries of the candidate and of each token of the context, which
    /// the candidate ends.
    fn self_hash(&self, table: &[u32], tokens: &[u32], candidate: u32) -> u32 {
        let entry = |id: u32| table.get((id % TABLE_SIZE) as usize).map_or(0, |&entry| i64::from(entry) + 1);
        let before = tokens.len() - (self.context_width - 1).min(tokens.len());
        let context = tokens.get(before..).unwrap_or_default().iter().copied().chain([candidate]);
        let products = context.map(|id| self.key.wrapping_mul(entry(id)).wrapping_mul(entry(candidate)));
        seed_of(products.min().unwrap_or_default().into())
    }
}

/// What `Generator.manual_seed` is given, and how much of it counts.
fn seed_of(value: i128) -> u32 {
    let seed = value.rem_euclid(i128::from(u64::MAX));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The low 32 bits.
    let low = seed as u32;
    low
}

/// The table of a key. The last few stay: making one takes longer than a step.
fn table_of(seed: u32) -> Arc<[u32]> {
    const KEPT: usize = 4;
    static TABLES: Mutex<Vec<(u32, Arc<[u32]>)>> = Mutex::new(Vec::new());
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = tables.iter().position(|(other, _)| *other == seed) {
        tables[index..].rotate_left(1);
    } else {
        if tables.len() >= KEPT {
            tables.remove(0);
        }
        tables.push((seed, torch::permutation(seed, TABLE_SIZE, TABLE_SIZE as usize).into()));
    }
    tables.last().map(|(_, table)| table.clone()).unwrap_or_default()
}
