//! Sampling and stopping parameters, validated.
