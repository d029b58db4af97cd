"""Says why a directory's tokenizer cannot be read, and what to do about it."""

import codecs
import pathlib

from perl_jax import json_text

_LFS = b"version https://git-lfs"
SETTINGS = "tokenizer_config.json"
_WHOLE = "tokenizer.json"
_PIECES = "tokenizer.model"
_BYTE_PAIRS = ("vocab.json", "merges.txt")
# Names of vocabularies in other formats.
_TEKKEN = "tekken.json"
_OTHERS = {_TEKKEN, "vocab.txt"}
_ENDINGS = (".model", ".tiktoken")
# What is wrong with a file with a mark.
MARKED = (
  "begins with a byte order mark, which transformers does not read. Save it as"
  " UTF-8 without one."
)


def reason(directory: pathlib.Path, error: Exception) -> str:
  """Returns what is wrong with the files, or else what `transformers` says.

  Args:
    directory: The directory without a readable tokenizer.
    error: What `transformers` raised.
  """
  for find in (_broken_file, empty_token, _code, _library):
    found = find(directory)
    if found:
      return found
  said = " ".join(str(error).split())
  if (directory / _TEKKEN).is_file() and not (directory / _WHOLE).is_file():
    return (
      f"{_TEKKEN} is damaged, or of a kind that transformers does not read"
      f" ({type(error).__name__}: {said}). Copy that file again, or add a"
      f" {_WHOLE}."
    )
  return str(error)


def missing_file(directory: pathlib.Path) -> str:
  """Returns which files a directory lacks that make a tokenizer; "" if none.

  From config.json alone `transformers` makes the tokenizer of a family without
  its vocabulary.
  """
  names = {path.name for path in directory.iterdir()}
  if _WHOLE in names or names >= set(_BYTE_PAIRS):
    return ""
  for there, missing in (_BYTE_PAIRS, _BYTE_PAIRS[::-1]):
    if there in names:
      return (
        f"it has {there} and no {missing}, which belong together. Copy"
        f" {missing} from where that is from."
      )
  if names & _OTHERS or any(name.endswith(_ENDINGS) for name in names):
    return ""
  more = sorted(name for name in names if name.startswith(f"{_PIECES}."))
  if more:
    return f"it has {more[-1]}. Rename that to {_PIECES}."
  return (
    f"it has none of {_WHOLE}, {_PIECES}, or {' with '.join(_BYTE_PAIRS)}. Copy"
    f" them, {SETTINGS} and chat_template.jinja, if there is one, from the"
    " model's repository."
  )


def _broken_file(directory: pathlib.Path) -> str:
  for path in sorted(directory.glob("*.json")):
    if path.read_bytes().startswith(_LFS):
      return _pointer(path)
    try:
      json_text.parse(path.read_bytes())
    except json_text.Fault as error:
      return f"{path.name} is no JSON ({error}). Copy that file again."
    if has_mark(path):
      return f"{path.name} {MARKED}"
  path = directory / _PIECES
  if path.is_file() and path.read_bytes().startswith(_LFS):
    return _pointer(path)
  return ""


def empty_token(directory: pathlib.Path) -> str:
  """Returns which special token is the empty text; "" if none is.

  So it is in early conversions of LLaMA. To `transformers` it is the unknown
  token, or an endless recursion.

  Raises:
    ValueError: A file with the tokens has a key twice, or is no JSON object.
  """
  for name in (SETTINGS, "special_tokens_map.json"):
    path = directory / name
    fields = json_text.read_object(path) if path.is_file() else {}
    for field in ("bos_token", "eos_token", "unk_token", "pad_token"):
      if fields.get(field) == "":
        return (
          f'{name}: {field} is "". Name the token, as in "</s>", or write null'
          " if there is none."
        )
  return ""


def _pointer(path: pathlib.Path) -> str:
  return (
    f"{path.name} is a pointer of Git LFS, not the file itself. Run `git lfs"
    " pull` in the clone that it is from, or copy the file."
  )


def _code(directory: pathlib.Path) -> str:
  path = directory / SETTINGS
  settings = json_text.read_object(path) if path.is_file() else {}
  if "AutoTokenizer" not in settings.get("auto_map", {}):
    return ""
  if (directory / _WHOLE).is_file():
    return (
      f"{SETTINGS} asks for code from the directory, which is not run. It has"
      f" a {_WHOLE}, which is enough for most models: remove auto_map from"
      f" {SETTINGS}, and compare its tokens with the model's own."
    )
  return (
    f"{SETTINGS} asks for code from the directory, which is not run, and there"
    f" is no {_WHOLE}. Look for a conversion of the model that has one."
  )


def has_mark(path: pathlib.Path) -> bool:
  """Whether a file begins with a byte order mark."""
  return path.read_bytes().startswith(codecs.BOM_UTF8)


def pieces_alone(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns tokenizer.model where there is no tokenizer.json beside it."""
  path = directory / _PIECES
  return None if (directory / _WHOLE).is_file() or not path.is_file() else path


def is_sentencepiece(path: pathlib.Path) -> bool:
  """Whether a tokenizer.model is of SentencePiece, and not of tiktoken."""
  with path.open("rb") as file:
    # A message of Protocol Buffers begins with the number of its first field.
    return file.read(1) == b"\n"


def _library(directory: pathlib.Path) -> str:
  """What a library is missing for, if the files are whole."""
  path = pieces_alone(directory)
  if path is None:
    return ""
  if is_sentencepiece(path):
    return _install("sentencepiece", "a SentencePiece model", directory)
  return _install("tiktoken", "a vocabulary of tiktoken", directory)


def _install(library: str, kind: str, directory: pathlib.Path) -> str:
  return (
    f"{_PIECES} is {kind}. `pip install {library}` so that transformers can"
    " read it; or, where that is installed, convert it once: python -c 'from"
    " transformers import AutoTokenizer as T; T.from_pretrained("
    f'"{directory}").save_pretrained("{directory}")\''
  )
