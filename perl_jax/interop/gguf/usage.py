"""How the files of a GGUF export are used: commands, and Ollama's Modelfile."""

import shlex

ADAPTER = "adapter.gguf"
CONVERTED = "base-f16.gguf"
MODELFILE = "Modelfile"


def model_file(kind: str) -> str:
  """Name of the file with the whole model, its matrices in a type."""
  return f"model-{kind}.gguf"


def modelfile(model: str) -> str:
  """What `ollama create` reads."""
  return f"FROM ./{model}\n"


def commands(
  *,
  base: str = "",
  convert: str = "",
  hub: str = "",
  model: str = "",
  window: int | None = None,
) -> str:
  """Markdown: how to serve the files with llama.cpp and Ollama.

  It is read by others, so that it has no path of this machine.

  Args:
    base: Name of the file that the adapter goes on, "" if there is no adapter.
    convert: Name of the directory with the checkpoint of `transformers` that
      `base` is first made from, "" if `base` is there.
    hub: Name of the base on the Hugging Face hub, or "".
    model: File with the whole model, "" if there is none.
    window: Sliding window that llama.cpp does without, or None.
  """
  needed = convert or base
  lines = ["Start the commands in this directory."]
  if needed:
    lines = [
      "Start the commands in this directory, with what it was trained on beside"
      f" these files, or a link to it: `{needed}`."
    ]
  if needed and hub:
    words = ["--local-dir", convert] if convert else [base, "--local-dir", "."]
    lines += ["", "From the hub:"]
    lines += _shell(shlex.join(["hf", "download", hub, *words]))
  if convert:
    lines += [
      "",
      "The base as a GGUF file, made once with llama.cpp's converter:",
      *_shell(
        "git clone https://github.com/ggml-org/llama.cpp",
        "python -m pip install -r"
        " llama.cpp/requirements/requirements-convert_hf_to_gguf.txt",
        f"python llama.cpp/convert_hf_to_gguf.py {shlex.quote(convert)}"
        f" --outtype f16 --outfile {base}",
      ),
    ]
  if base:
    lines += [
      "",
      "llama.cpp, the adapter on its base:",
      *_shell(f"llama-server -m {shlex.quote(base)} --lora {ADAPTER}"),
    ]
  if model:
    lines += [
      "",
      "llama.cpp, the whole model:",
      *_shell(f"llama-server -m {model}"),
      "",
      "Ollama, the whole model:",
      *_shell(f"ollama create perl -f {MODELFILE}", "ollama run perl"),
    ]
  else:
    lines += ["", "Ollama takes whole models only: since 0.34 no adapters."]
  if window is not None:
    lines += [
      "",
      "llama.cpp attends to all tokens where this model attends to the last"
      f" {window}: keep conversations shorter than that.",
    ]
  return "\n".join(lines)


def _shell(*commands: str) -> list[str]:
  return ["", "```bash", *commands, "```"]
