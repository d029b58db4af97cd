"""Where records come from: one file or folder for each source."""
