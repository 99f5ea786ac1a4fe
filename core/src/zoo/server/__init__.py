"""`zoo serve`: an OpenAI-compatible API over one model."""
