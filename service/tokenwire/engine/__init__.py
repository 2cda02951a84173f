"""The engine: scheduler, step, and the process that runs them. Knows neither gRPC nor protobuf."""
