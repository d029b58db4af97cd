"""What the commands of the pages stand on, small: data, models, earlier runs.

Everything lies where the pages say, so that their commands are run as they are
printed: `my.jsonl`, `PATH/Qwen2.5-0.5B-Instruct`, `runs/sft`, and so on.
"""

import json
import shutil
from pathlib import Path

from perl_jax import buckets
from perl_jax.data.sources.upstream import BUILDERS
from tests import documents
from tests.buckets import servers
from tests.data.sources import upstream_rows
from tests.data.text.messages import assistant, user
from tests.interop.gguf import models
from tests.tasks import bases, tiny

CLONE = (
  *("perl_jax", "configs", "launch", "benchmarks", "docs", "Makefile"),
  *("pyproject.toml", "setup.py", "README.md", "LICENSE"),
  *("requirements.txt", "requirements-parity.txt"),
)
BASE, GGUF = (
  "PATH/Qwen2.5-0.5B-Instruct",
  "PATH/Qwen2.5-0.5B-Instruct-Q8_0.gguf",
)
IN_BUCKET = f"gs://{servers.BUCKET}/here"
LENGTHS = {
  "data__max_len": 128,
  "data__prompt_len": 112,
  "data__response_len": 8,
}
# Made for comparisons: what a reader would have trained before.
COMPARED = (
  *("lora_0", "lora_1", "full_0", "full_1"),
  *("single_beta0.4_0", "single_beta0.1_0", "ensemble_beta0.4_0"),
)


def lines(path: Path, rows: list) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(place: Path) -> None:
  """Files of rows, in the shapes that the pages speak of."""
  asked = [f"{i} milk and {i + 3}" for i in range(240)]
  pairs = [
    {"prompt": text, "chosen": "hello there", "rejected": "what?"}
    for text in asked[:24]
  ]
  lines(place / "pairs.jsonl", pairs)
  lines(place / "rows.jsonl", pairs)
  lines(place / "prompts.jsonl", [{"prompt": text} for text in asked[:3]])
  # Packed, many of them make a row.
  lines(
    place / "demonstrations.jsonl",
    [{"prompt": [user(t)], "response": [assistant("hello")]} for t in asked],
  )
  bench = [
    {
      "prompt": "A fruit?",
      "chosen": ["A plum.", "It is a plum.", "It is a **plum**."],
      "rejected": ["A stone.", "It is a stone.", "It is a **stone**."],
      "domain": domain,
    }
    for domain in ("chat", "math", "code", "safety-refuse")
  ]
  path = place / "RM-Bench/data/total_dataset.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(bench))
  for page in ("your-reward", "judging", "getting-started"):
    text = documents.text(documents.DOCS / f"{page}.md")
    for block in documents.python_blocks(text):
      name = block.splitlines()[0].removeprefix("# ")
      if name.endswith(".py"):
        (place / name).write_text(block)


def write_copies(place: Path) -> None:
  """Local copies of the public data sets."""
  for name in ("taskmaster_coffee", "taskmaster_ticketing"):
    parts = BUILDERS[name].PARTS
    rated = [upstream_rows.rated(n, f"order {n}") for n in range(40)]
    for copy in ("PATH", "DIR"):
      upstream_rows.spread(place / copy, name, "reward", rated)
    if "dialogs" in parts:
      said = [upstream_rows.dialog(n, f"a latte {n}") for n in range(200)]
      upstream_rows.spread(place / "PATH", name, "dialogs", said)
  for part in BUILDERS["hh_rlhf"].PARTS:
    pairs = [upstream_rows.pair(n, part) for n in range(24)]
    upstream_rows.spread(place / "DIR", "hh_rlhf", part, pairs)


def write_models(place: Path) -> None:
  """A checkpoint of transformers, and a GGUF file."""
  (place / BASE).mkdir(parents=True)
  bases.write_base(place / BASE, "qwen2.5")
  # As Qwen's own files: an export of it is read by transformers as a Qwen.
  fields = {"tokenizer.ggml.pre": "qwen2"}
  models.write(place / GGUF, "qwen2_tiny", fields=fields)


def write_runs(place: Path) -> None:
  """Workdirs of stages that pages start from."""
  runs = place / "runs"
  tiny.run(runs / "sft", "sft")
  sft = str(runs / "sft")
  for name, seed in (("reward", 0), ("reward_other", 1)):
    tiny.run(runs / name, "reward", reward__init=sft, seed=seed)
  tiny.run(
    runs / "rl", "rl", policy__init=sft, reward__init=str(runs / "reward")
  )
  tiny.run(runs / "judge", "judge", policy__init=str(runs / "rl"))
  tiny.run(runs / "rewards", "reward", reward__init=sft, members=2)
  for name in COMPARED:
    shutil.copytree(runs / "rl", runs / name)
  coffee = {"data__dir": str(place / "PATH")}
  data_set = "taskmaster_coffee"
  tiny.run(runs / "coffee/sft", "sft", data_set, **coffee)
  coffee["reward__init"] = str(runs / "coffee/sft")
  tiny.run(runs / "coffee/weak", "reward", data_set, loss="pairwise", **coffee)
  coffee["reward__init"] = str(runs / "coffee/weak")
  tiny.run(runs / "coffee/reward_fold0", "reward", data_set, **coffee)
  # Of somebody's own: rows in a file, on a checkpoint and on a GGUF file.
  own = {"data__path": str(place / "demonstrations.jsonl")}
  tiny.run(runs / "my/sft", "sft", "jsonl", **own)
  own |= LENGTHS | {"base": str(place / BASE), "tuning": "lora"}
  tiny.run(runs / "qwen/sft", "sft", "jsonl", **own)
  own = LENGTHS | {"data__path": str(place / "pairs.jsonl")}
  for name, base in (("my", GGUF), ("qwen", BASE)):
    more = own | {"base": str(place / base)}
    tiny.run(runs / name / "reward", "reward", "jsonl", **more)
  more = own | {"base": str(place / GGUF)}
  tiny.run(
    runs / "my/rl", "rl", "jsonl",
    reward__init=str(runs / "my/reward"), **more,
  )  # fmt: skip


def write_bucket(place: Path, workdir: str) -> None:
  """What a command reads from a bucket, without what it writes itself."""
  store = buckets.Store(IN_BUCKET)
  for name, here in (
    (Path(BASE).name, BASE),
    ("rows.jsonl", "demonstrations.jsonl"),
    ("pairs.jsonl", "pairs.jsonl"),
    ("runs/sft", "runs/qwen/sft"),
  ):
    if f"{IN_BUCKET}/{name}" == workdir:
      continue
    paths = [place / here, *(place / here).rglob("*")]
    for path in filter(Path.is_file, paths):
      below = path.relative_to(place / here).as_posix()
      store.upload(path, f"{name}/{below}".removesuffix("/."))


def write_tour(place: Path) -> None:
  """What the notebook has before each of its commands."""
  for name in ("sft", "reward", "rl"):
    shutil.copytree(place / "runs" / name, place / "runs/tour" / name)
  shutil.copyfile(place / "prompts.jsonl", place / "runs/tour/orders.jsonl")


def write(place: Path) -> None:
  """Everything, in an empty directory."""
  for name in CLONE:
    (place / name).symlink_to(documents.ROOT / name)
  write_data(place)
  write_copies(place)
  write_models(place)
  write_runs(place)
  write_tour(place)
