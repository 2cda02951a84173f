"""Loads the model and runs its forward pass. Knows nothing of requests, text or gRPC."""
