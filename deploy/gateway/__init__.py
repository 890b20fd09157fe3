"""The gateway: an OpenAI-compatible reverse proxy that carries out routing weights and in-flight limits."""
