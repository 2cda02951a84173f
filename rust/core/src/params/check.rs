//! What the constructors of parameters check with.

use crate::error::{Error, Result, Violation};
use std::collections::HashSet;
use std::fmt::Display;

/// Collects violations.
#[derive(Default)]
pub struct Check(Vec<Violation>);

impl Check {
    pub fn holds_at(&mut self, field: impl FnOnce() -> String, holds: bool, rule: &str, value: impl Display) {
        if !holds {
            self.0.push(Violation { field: field(), rule: rule.to_owned(), value: value.to_string() });
        }
    }

    pub fn holds(&mut self, field: &str, holds: bool, rule: &str, value: impl Display) {
        self.holds_at(|| field.to_owned(), holds, rule, value);
    }

    pub fn range(&mut self, field: &str, value: i64, low: i64, high: i64) {
        if !(low..=high).contains(&value) {
            self.holds(field, false, &format!("must be from {low} to {high}"), value);
        }
    }

    /// A number of tokens; what the context has room for is not known here.
    pub fn count(&mut self, field: &str, value: i64, least: i64) {
        self.holds(field, value >= least, &format!("must be at least {least}"), value);
    }

    pub fn proportion(&mut self, field: &str, value: f64) {
        self.holds(field, value > 0.0 && value <= 1.0, "must be above 0 and at most 1", value);
    }

    pub fn cutoff(&mut self, field: &str, value: f64) {
        self.holds(field, (0.0..1.0).contains(&value), "must be from 0 to below 1", value);
    }

    pub fn above_zero(&mut self, field: &str, value: f64) {
        self.holds(field, value > 0.0 && value.is_finite(), "must be above 0 and finite", value);
    }

    pub fn amount(&mut self, field: impl FnOnce() -> String, value: f64, most: f64) {
        self.holds_at(field, value.abs() <= most, &format!("must be from -{most} to {most}"), value);
    }

    /// The vocabulary size, at least 1 so that the checks after it still say something sensible.
    pub fn vocab_size(&mut self, value: i64) -> u32 {
        let size = u32::try_from(value).ok().filter(|&size| size > 0);
        self.holds("vocab_size", size.is_some(), "must be from 1 to 4294967295", value);
        size.unwrap_or(1)
    }

    pub fn id(&mut self, field: impl FnOnce() -> String, id: i64, vocab_size: u32) -> Option<u32> {
        let checked = u32::try_from(id).ok().filter(|&id| id < vocab_size);
        if checked.is_none() {
            self.holds_at(field, false, &format!("must be a token id from 0 to {}", vocab_size - 1), id);
        }
        checked
    }

    pub fn ids(&mut self, field: &str, ids: &[i64], vocab_size: u32) -> Vec<u32> {
        let numbered = ids.iter().enumerate();
        numbered.filter_map(|(index, &id)| self.id(|| format!("{field}[{index}]"), id, vocab_size)).collect()
    }

    /// Sequences of ids, none empty.
    pub fn sequences(&mut self, field: &str, sequences: &[Vec<i64>], vocab_size: u32) -> Vec<Vec<u32>> {
        let numbered = sequences.iter().enumerate();
        let checked = numbered.map(|(index, ids)| {
            self.holds_at(|| format!("{field}[{index}]"), !ids.is_empty(), "must not be empty", "[]");
            self.ids(&format!("{field}[{index}]"), ids, vocab_size)
        });
        checked.collect()
    }

    /// No sequence may occur twice.
    pub fn distinct<'a>(&mut self, field: &str, sequences: impl Iterator<Item = &'a Vec<i64>>) {
        let mut seen = HashSet::new();
        for (index, ids) in sequences.enumerate() {
            self.holds_at(|| format!("{field}[{index}]"), seen.insert(ids), "must not repeat", format!("{ids:?}"));
        }
    }

    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::InvalidParameters(self.0)) }
    }
}
