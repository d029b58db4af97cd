"""What a run shows to people: terminal lines, tables, figures, one page.

Everything here turns numbers that somebody else has read into text, SVG or
HTML; files are the business of `metrics` and `tasks.report`.
"""
