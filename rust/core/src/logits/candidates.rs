//! The tokens that the draw may choose, and their logits.

mod narrowing;
mod outcome;
mod rewriting;

pub use narrowing::Ties;

use super::kernels::{self, BLOCK, Scan};
use super::select::{self, Scratch};

/// A row stays whole while at least one in this many of its logits is left: cutting in place is cheaper than a list.
const WHOLE_FROM: usize = 8;

/// Why a row has no next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The model is broken for this input.
    #[error("the logits hold NaN")]
    Nan,
    /// Every token is at -infinity.
    #[error("no token is allowed: all logits are -infinity")]
    NoTokenAllowed,
}

/// Memory that is reused from row to row.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Maxima of each `CHUNK` of the row.
    maxima: Vec<f32>,
    /// A changed copy of the row.
    copy: Vec<f32>,
    /// What the copy turns into when it is cut.
    spare: Vec<f32>,
    ids: Vec<u32>,
    positions: Vec<u32>,
    values: Vec<f32>,
    sums: Vec<f64>,
    scratch: Scratch,
}

impl Buffers {
    fn stored<'a>(&'a self, form: Form, row: &'a [f32]) -> &'a [f32] {
        match form {
            Form::Row => row,
            Form::Copy => &self.copy,
            Form::List => &self.values,
        }
    }

    /// The largest logit of `row`, and whether it holds NaN; the maxima of its chunks stay here for
    /// [`Candidates::scanned`].
    pub fn scan(&mut self, row: &[f32]) -> Scan {
        kernels::scan(row, &mut self.maxima)
    }

    /// [`Buffers::scan`] of a row that is about to be changed, with a copy of it in `copy`.
    pub fn scan_copying(&mut self, row: &[f32], copy: &mut Vec<f32>) -> Scan {
        kernels::scan_copying(row, &mut self.maxima, copy)
    }

    /// Maxima of the chunks of the row that was scanned last.
    #[must_use]
    pub fn maxima(&self) -> &[f32] {
        &self.maxima
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// The whole row as given.
    Row,
    /// The whole row, in the copy.
    Copy,
    /// The tokens in `ids`, ascending, with `values`.
    List,
}

/// The tokens that are left, from the whole row down to a short list, with their logits.
///
/// Starts as a view of the row and becomes a list at the first narrowing. A temperature stays pending while the row is
/// whole, because top-k needs it only for the few that it keeps. No value is NaN or +infinity, one is finite.
#[derive(Debug)]
pub struct Candidates<'a> {
    row: &'a [f32],
    buffers: &'a mut Buffers,
    form: Form,
    max: f32,
    /// What the values of a whole row are still to be divided by.
    temperature: f32,
    /// Value and position below which a whole row is still to be cut. Never pending together with a temperature.
    floor: Option<(f32, u32)>,
    /// What tokens that are not in the list show as.
    removed: f32,
}

impl<'a> Candidates<'a> {
    /// All tokens of `row` `[V]`.
    ///
    /// # Errors
    /// When the row holds NaN or nothing above -infinity.
    pub fn new(row: &'a [f32], buffers: &'a mut Buffers) -> Result<Self, RowError> {
        let scan = buffers.scan(row);
        Self::scanned(row, scan, buffers)
    }

    /// All tokens of `row` `[V]`, whose [`Buffers::scan`] is at hand: the last one of these buffers.
    ///
    /// # Errors
    /// When the row holds NaN or nothing above -infinity.
    pub fn scanned(row: &'a [f32], scan: Scan, buffers: &'a mut Buffers) -> Result<Self, RowError> {
        if scan.has_nan {
            return Err(RowError::Nan);
        }
        if scan.max == f32::NEG_INFINITY {
            return Err(RowError::NoTokenAllowed);
        }
        let mut candidates = Self {
            row,
            buffers,
            form: Form::Row,
            max: scan.max,
            temperature: 1.0,
            floor: None,
            removed: f32::NEG_INFINITY,
        };
        if scan.max == f32::INFINITY {
            candidates.keep_infinite();
        }
        Ok(candidates)
    }

    /// Leaves the tokens at +infinity, all equal.
    fn keep_infinite(&mut self) {
        let finite = |&value: &f32| if value == f32::INFINITY { 0.0 } else { f32::NEG_INFINITY };
        self.buffers.copy.clear();
        self.buffers.copy.extend(self.row.iter().map(finite));
        self.form = Form::Copy;
        self.max = kernels::scan(&self.buffers.copy, &mut self.buffers.maxima).max;
    }

    fn stored(&self) -> &[f32] {
        self.buffers.stored(self.form, self.row)
    }

    /// Divides all logits by `temperature`, above 0.
    pub fn divide(&mut self, temperature: f32) {
        self.settle();
        self.temperature = temperature;
        if self.form == Form::List {
            let scaled = self.scaler();
            self.buffers.values.iter_mut().for_each(|value| *value = scaled(*value));
            self.max = scaled(self.max);
            self.temperature = 1.0;
        }
    }

    /// What division by the pending temperature does to a value.
    ///
    /// Where a tiny temperature would take the largest logit to infinity, all are shifted so that it comes to 0: the
    /// distribution is the same, and ordinary logits stay bit for bit what transformers computes.
    fn scaler(&self) -> impl Fn(f32) -> f32 + use<> {
        let (shift, temperature) = (self.shift(), self.temperature);
        move |value| (value - shift) / temperature
    }

    fn shift(&self) -> f32 {
        if (self.max / self.temperature).is_finite() { 0.0 } else { self.max }
    }

    /// Carries out what is pending.
    fn settle(&mut self) {
        self.settle_floor();
        if self.temperature == 1.0 {
            return;
        }
        let (shift, temperature, scaled) = (self.shift(), self.temperature, self.scaler());
        if self.form == Form::Row {
            kernels::scale(self.row, shift, temperature, &mut self.buffers.copy);
            self.form = Form::Copy;
        } else {
            self.buffers.copy.iter_mut().for_each(|value| *value = scaled(*value));
        }
        // Division keeps the order, so the maxima stay maxima.
        self.buffers.maxima.iter_mut().for_each(|value| *value = scaled(*value));
        self.max = scaled(self.max);
        self.temperature = 1.0;
    }

    /// Logits of the candidates, by ascending token id, and room to work in.
    pub fn values(&mut self) -> (&[f32], &mut Scratch) {
        self.settle();
        let Buffers { copy, values, scratch, .. } = &mut *self.buffers;
        match self.form {
            Form::Row => (self.row, scratch),
            Form::Copy => (copy, scratch),
            Form::List => (values, scratch),
        }
    }

    /// The largest logit.
    pub fn max(&mut self) -> f32 {
        self.settle();
        self.max
    }

    /// How many logits there are, those at -infinity included while the row is whole.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stored().len()
    }

    /// Never: one token always stays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stored().is_empty()
    }

    /// Keeps logits above `value`, and those equal to it from `position` (in [`Candidates::values`]) on.
    ///
    /// The largest logit must stay.
    pub fn cut(&mut self, value: f32, position: u32) {
        self.settle();
        // Rank and position hold in the list as well once `position` is turned into a token.
        let first_id = self.id_at(position as usize);
        if self.form != Form::List && kernels::count_from(self.stored(), value) * WHOLE_FROM < self.len() {
            self.gather(value);
        }
        if self.form == Form::List {
            self.filter(|id, other, _| other > value || (other == value && id >= first_id));
        } else {
            self.floor = Some((value, position));
        }
    }

    /// Carries out the pending cut.
    fn settle_floor(&mut self) {
        let Some((value, position)) = self.floor.take() else { return };
        let Buffers { copy, spare, .. } = &mut *self.buffers;
        if self.form == Form::Copy {
            kernels::cut(copy, value, position, spare);
            std::mem::swap(copy, spare);
        } else {
            kernels::cut(self.row, value, position, copy);
            self.form = Form::Copy;
        }
    }

    /// Makes a list of all tokens above -infinity.
    pub fn list(&mut self) {
        self.settle();
        if self.form != Form::List {
            self.gather(f32::MIN);
        }
    }

    /// Makes a list of the stored logits of at least `threshold`, those at -infinity never.
    fn gather(&mut self, threshold: f32) {
        let Buffers { maxima, copy, ids, values, .. } = &mut *self.buffers;
        let row: &[f32] = if self.form == Form::Copy { copy } else { self.row };
        ids.clear();
        kernels::positions_from(row, maxima, threshold.max(f32::MIN), ids);
        values.clear();
        values.extend(ids.iter().filter_map(|&id| row.get(id as usize)));
        self.form = Form::List;
    }

    /// Keeps list entries for which `keep(id, logit, position)` holds.
    fn filter(&mut self, keep: impl Fn(u32, f32, usize) -> bool) {
        let Buffers { ids, values, .. } = &mut *self.buffers;
        let mut kept = 0;
        for position in 0..values.len().min(ids.len()) {
            let (id, value) = (ids[position], values[position]);
            ids[kept] = id;
            values[kept] = value;
            // Without a branch: the next entry overwrites this one unless the place moves on.
            kept += usize::from(keep(id, value, position));
        }
        ids.truncate(kept);
        values.truncate(kept);
    }

    /// Keeps the `k` largest logits (`k >= 1`) and all that tie with the k-th after the division by temperature.
    pub fn keep_top(&mut self, k: usize) {
        self.settle_floor();
        if k >= self.len() {
            return;
        }
        if self.form != Form::List {
            let Buffers { maxima, copy, scratch, .. } = &mut *self.buffers;
            let row: &[f32] = if self.form == Form::Copy { copy } else { self.row };
            let bound = select::bound_of_top(row, maxima, k, &mut scratch.keys);
            let Some(bound) = self.lowest_tie(bound) else {
                // Division makes too many values equal: divide first, then compare.
                self.settle();
                return self.keep_top(k);
            };
            self.gather(bound);
            let temperature = std::mem::replace(&mut self.temperature, 1.0);
            if temperature != 1.0 {
                self.divide(temperature);
            }
        }
        let keys = &mut self.buffers.scratch.keys;
        keys.clear();
        keys.extend_from_slice(&self.buffers.values);
        // Tokens at -infinity are no candidates, so fewer than k may be left.
        if keys.len() > k {
            let kth = select::kth_largest(keys, k);
            self.filter(|_, value, _| value >= kth);
        }
    }

    /// The smallest value that the pending division makes equal to `value`; `None` if it is more than a few steps away.
    fn lowest_tie(&self, value: f32) -> Option<f32> {
        const STEPS: usize = 4;
        if self.temperature == 1.0 || value == f32::NEG_INFINITY {
            return Some(value);
        }
        let scaled = self.scaler();
        let mut lowest = value;
        for _ in 0..STEPS {
            let next = lowest.next_down();
            if scaled(next) != scaled(value) {
                return Some(lowest);
            }
            lowest = next;
        }
        None
    }

    /// The token with the largest logit, the lowest id where several have it.
    #[must_use]
    pub fn best(&self) -> u32 {
        let stored = self.stored();
        let position = match self.form {
            Form::List => stored.iter().position(|&value| value == self.max),
            _ => kernels::position(stored, &self.buffers.maxima, self.max),
        };
        self.id_at(position.unwrap_or_default())
    }

    fn id_at(&self, position: usize) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // A vocabulary fits u32.
        match self.form {
            Form::List => self.buffers.ids.get(position).copied().unwrap_or_default(),
            _ => position as u32,
        }
    }

    /// Draws a token by inverting the cumulative distribution, tokens in ascending order of id, at `u` in `[0, 1)`.
    pub fn draw(&mut self, u: f64) -> u32 {
        let (max, rate) = (self.max, self.temperature.recip());
        // Most cuts end here: the sums leave out what is below, and the row need not be copied.
        let (floor, first) = self.floor.unwrap_or((f32::NEG_INFINITY, 0));
        let Buffers { copy, values, sums, scratch, .. } = &mut *self.buffers;
        let values: &[f32] = match self.form {
            Form::Row => self.row,
            Form::Copy => copy,
            Form::List => values,
        };
        kernels::exp_block_sums(values, max, rate, (floor, first), sums);
        let mut left = u * sums.iter().sum::<f64>();
        let mut chosen = None;
        for (block, (values, &sum)) in values.chunks(BLOCK).zip(sums.iter()).enumerate() {
            if left >= sum && block + 1 < sums.len() {
                left -= sum;
                continue;
            }
            kernels::exps(values, max, rate, &mut scratch.weights);
            for ((&value, &weight), position) in values.iter().zip(&scratch.weights).zip(block * BLOCK..) {
                let is_left = value > floor || (value == floor && position >= first as usize);
                if is_left && weight > 0.0 {
                    chosen = Some(position);
                    left -= f64::from(weight);
                    if left < 0.0 {
                        break;
                    }
                }
            }
            break;
        }
        // Rounding may leave a little behind the last token that has any probability.
        if chosen.is_none() {
            self.settle_floor();
        }
        chosen.map_or_else(|| self.best(), |position| self.id_at(position))
    }
}
