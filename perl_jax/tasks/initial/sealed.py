"""SHA-256 of the small files that a stage leaves for others to read.

A digit that has changed in model.json, or a letter in a tokenizer, gives
another model and no error. `sha256.txt` in a workdir lists them, as the one in
each checkpoint lists its files; a workdir without the list is taken as it is.
"""

from pathlib import Path

from perl_jax import checksums, metrics

SUMMARY = metrics.SUMMARY
_FILES = ("config.json", "model.json", SUMMARY)
TOKENIZER = "tokenizer"


def write(workdir: Path) -> None:
  """Lists the files as they are; to be called after they have been written."""
  paths = [workdir / name for name in _FILES]
  paths += sorted((workdir / TOKENIZER).rglob("*"))
  checksums.write_of(workdir, [path for path in paths if path.is_file()])


def require(workdir: str | Path, *names: str) -> None:
  """Checks files of a workdir against the list.

  Args:
    workdir: Workdir of a stage.
    *names: Names of files, or of a folder for all files that are listed in it.

  Raises:
    ValueError: A file is not as it was written, or is missing; names it.
  """
  for name in names:
    fault = checksums.fault(Path(workdir), only=name)
    if fault:
      raise ValueError(
        f"{fault}. Restore it from a copy; or remove it (of a tokenizer, the"
        f" whole folder) and {Path(workdir) / SUMMARY}, and run the"
        " stage's command again, which writes them anew and trains nothing that"
        " is trained already."
      )
