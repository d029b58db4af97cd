"""Flags of the benchmarks that read the rows of a data set for a model."""

import argparse


def of_rows(doc: str) -> argparse.ArgumentParser:
  """A parser with --base, --data, --data_dir and --max_len.

  Args:
    doc: Docstring of the benchmark, shown by --help.
  """
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--base", required=True)
  parser.add_argument("--data", default="hh_rlhf")
  parser.add_argument("--data_dir", default="")
  parser.add_argument("--max_len", type=int, default=256)
  return parser
