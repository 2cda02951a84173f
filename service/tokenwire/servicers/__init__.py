"""The gRPC services: thin, one file each."""
