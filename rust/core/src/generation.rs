//! The state of one sequence.
