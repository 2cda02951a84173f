//! The output matrix, written by several threads at places of their own.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A borrowed matrix that takes pieces of rows from several threads.
pub struct Output<'a> {
    start: *mut f32,
    length: usize,
    columns: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the matrix is borrowed for as long as this lives, so nobody else touches it, and all that can be done here is
// to write, which callers do at disjoint places.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// `matrix` is `[rows, columns]`.
    pub fn new(matrix: &'a mut [f32], columns: usize) -> Self {
        Self { start: matrix.as_mut_ptr(), length: matrix.len(), columns, borrow: PhantomData }
    }

    /// Writes `values` to `row` from `column` on. No two calls of one product write the same place: each task has its
    /// own rows and columns.
    pub fn write(&self, row: usize, column: usize, values: &[f32]) {
        let offset = row * self.columns + column;
        assert!(column + values.len() <= self.columns && offset + values.len() <= self.length);
        // SAFETY: the range lies in the matrix, as just checked; no other call writes it, and `values` is not part of
        // the matrix, which is borrowed mutably.
        unsafe { self.start.add(offset).copy_from_nonoverlapping(values.as_ptr(), values.len()) }
    }
}
