//! Padding rows to a rectangle.
