"""What a run shows to people: terminal lines, tables, figures, one page.

Everything here turns numbers into text, SVG or HTML. `vocabulary` has the
label, unit and format of every metric. Files are read and written by `metrics`
and `tasks.report`; only `events` writes its own, for TensorBoard.
"""
