//! The errors of this crate.

/// Why a call of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tokenizer file cannot be read, or an id lies outside its vocabulary.
    #[error("{0}")]
    Tokenizer(String),
    /// A chat template refuses its input, fails, or exceeds a limit.
    #[error("{0}")]
    Template(String),
    /// Parameters outside their range, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    InvalidParameters(Vec<Violation>),
}

/// One parameter that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}, got {value}")]
pub struct Violation {
    /// Name of the field, as in `GenerationConfig`.
    pub field: String,
    /// What must hold.
    pub rule: String,
    /// The value given, shortened.
    pub value: String,
}

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
