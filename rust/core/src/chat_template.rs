//! Chat templates: minijinja, equal to transformers' `apply_chat_template`.
