"""A gRPC service for Hugging Face causal language models, and its client."""

__version__ = "0.1.0"
