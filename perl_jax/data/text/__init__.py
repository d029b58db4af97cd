"""Tokenizers, chat templates, and prompts shortened to a limit."""
