//! One step for a whole batch.
