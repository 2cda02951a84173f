//! The logits pipeline: processors, warpers, log probabilities.
