"""GGUF files, tokenizers, chat templates and architectures."""
