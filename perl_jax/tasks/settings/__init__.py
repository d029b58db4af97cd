"""From fields of a config to checked objects."""
