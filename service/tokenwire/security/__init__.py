"""Who calls, and what that caller may do: TLS, API keys, tokens, roles and limits per caller. Knows no servicer."""
