"""Linen modules: layers, LoRA, the decoder-only transformer, heads, presets."""
