"""Text and tokens: tokenizers, chat templates, shortening."""
