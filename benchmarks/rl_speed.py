"""How fast an RL iteration and a reward step are, beside other libraries.

  python -m benchmarks.rl_speed --only="rloo;reward"
  python -m benchmarks.rl_speed --peers=DIR --model=DIR --json=runs/speed.json

Ours are the arms of `speed_arms.py`; with `--peers` the scripts in that folder
measure TRL and Tunix on a model of the same shape, each in the environment that
lies beside it. Nothing of them is needed or kept here. Configurations take
turns, one process each, so that a peak of memory is one configuration's.

Seconds are of the processor (user and system, all threads) and by the clock,
without compilation; medians over the iterations in which other processes had
less than 4 % of the machine, or over all if there are none. A peer's `sample`
is its generation, `score` its passes without gradient and its reward model,
`learn` the rest. Results: README.md.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perl_jax import files

PHASES = ("sample", "score", "learn")

# Buffers in large pages, where Linux lets a process ask for them: XLA makes its
# buffers anew at each call. Ours alone; torch and Tunix did not gain by them.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Peer:
  """A command that prints one line of JSON.

  Attributes:
    python: Environment in the folder of the peers.
    script: In that folder.
    flags: Of the script; MODEL and COUNT are filled in.
    path: Folder of a package to find first, or "".
  """

  python: str
  script: str
  flags: str
  path: str = ""


_QUIET = " --passive --max-seconds=0 --warmup=2"
_RL = "--model=MODEL --iters=COUNT --trainer="
_STEP = "--model=MODEL --steps=COUNT --impl="
PEERS = {
  "TRL RLOO": Peer("env", "trl_rl.py", _RL + "rloo" + _QUIET),
  "torch RLOO": Peer("env", "trl_rl.py", _RL + "loop" + _QUIET),
  "torch RLOO, full": Peer(
    "env", "trl_rl.py", _RL + "loop --mode=full" + _QUIET
  ),
  "TRL PPO": Peer("env", "trl_rl.py", _RL + "ppo" + _QUIET, "trl112"),
  "Tunix GRPO, no reward model": Peer(
    "tunixenv", "tunix_rl.py", "--algo=grpo --iters=COUNT --max-seconds=0"
  ),
  "Tunix PPO": Peer(
    "tunixenv",
    "tunix_rl.py",
    "--algo=ppo --reward=model --critic-from=base --iters=COUNT"
    " --max-seconds=0",
    "tunixsrc",
  ),
  "torch reward": Peer("env", "trl_rm.py", _STEP + "loop" + _QUIET),
  "torch reward, full": Peer(
    "env", "trl_rm.py", _STEP + "loop --mode=full" + _QUIET
  ),
}

# Arms of ours, and who does the same work.
GROUPS: dict[str, tuple[str, ...]] = {
  "rloo": ("TRL RLOO", "torch RLOO", "Tunix GRPO, no reward model"),
  "rloo, full": ("torch RLOO, full",),
  "reinforce": ("TRL PPO", "Tunix PPO"),
  "reinforce 32 x 1": ("TRL PPO", "Tunix PPO"),
  "reinforce, full": (),
  "reward": ("torch reward",),
  "reward, full": ("torch reward, full",),
}


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one process found.

  Attributes:
    wall: Seconds of an iteration or step by the clock.
    cpu: The same of the processor.
    phases: The same of the processor by phase; {} if it did not say.
    peak_bytes: Resident, the most there was.
  """

  wall: float
  cpu: float
  phases: Mapping[str, float]
  peak_bytes: float


def of_ours(found: Mapping[str, Any]) -> Measured:
  """From the JSON of `speed_arms`."""
  names = [phase for phase in PHASES if phase in found["steps"][0]["spent"]]
  return Measured(
    wall=median_of(found, "all", 0),
    cpu=median_of(found, "all", 1),
    phases={phase: median_of(found, phase, 1) for phase in names},
    peak_bytes=found["peak_bytes"],
  )


def median_of(found: Mapping[str, Any], phase: str, which: int) -> float:
  """Seconds of a phase over clean steps: 0 is by the clock, 1 of the CPU."""
  rows = [row for row in found["steps"] if row["clean"]] or found["steps"]
  return statistics.median(row["spent"][phase][which] for row in rows)


def of_peer(found: Mapping[str, Any]) -> Measured:
  """From the JSON of a peer's script."""
  names = (
    ("median_s_per_iteration", "cpu_s_per_iteration"),
    ("median_s_per_step", "cpu_s_per_step"),
    ("iteration_s", "iteration_cpu_s"),
  )
  wall, cpu = next(pair for pair in names if pair[0] in found)
  phases = {}
  if "phases_cpu_s" in found:
    said = found["phases_cpu_s"]
    scored = [said[k] for k in ("logps_nograd", "reward") if k in said]
    phases = {"sample": said["generate"], "learn": said["rest"]}
    if scored:
      phases["score"] = sum(scored)
  elif "sampler_cpu_s" in found:
    phases = {"sample": found["sampler_cpu_s"]}
  return Measured(found[wall], found[cpu], phases, found["peak_rss_mb"] * 2**20)


def pooled(rounds: Sequence[Measured]) -> Measured:
  """Medians over the rounds; of the peaks the largest."""
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
  """Markdown: ours, and below each the peers that do the same work.

  A ratio is ours / peer, of processor seconds and of memory.
  """
  lines = [
    "| | CPU s | sample | score | learn | wall s | peak MB | ours / it: CPU"
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
  """Markdown: LoRA against full tuning, as ratios."""
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
  """(name, what was found with LoRA, with full tuning) where both were run."""
  for name, lora in found.items():
    full = found.get(f"{name}, full")
    if full is not None:
      yield name, lora, full


def last_json(
  command: Sequence[str],
  *,
  cwd: Path | None = None,
  env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """What a command printed in its last line.

  Raises:
    ValueError: It failed or printed something else.
  """
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    env=os.environ | (env or {}),
    cwd=cwd,
  )
  last = (done.stdout.strip().splitlines() or [""])[-1]
  if done.returncode or not last.startswith("{"):
    raise ValueError(
      f"{' '.join(map(str, command))} gave no result (exit"
      f" {done.returncode}):\n{done.stderr[-2000:]}"
    )
  return json.loads(last)


def run_arm(
  arm: str,
  count: int,
  changes: str,
  *flags: str,
  env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """The JSON of one process of `speed_arms`; `changes` is its --set."""
  command = [sys.executable, "-m", "benchmarks.speed_arms", arm]
  command += [f"--steps={count}", f"--set={changes}", *flags]
  return last_json(command, cwd=Path(__file__).parent.parent, env=env)


def run_ours(arm: str, count: int, changes: str) -> Measured:
  """One process of ours."""
  return of_ours(run_arm(arm, count, changes, env=LARGE_PAGES))


def run_peer(peer: Peer, count: int, folder: Path, model: Path) -> Measured:
  """One process of a peer."""
  flags = peer.flags.replace("MODEL", str(model)).replace("COUNT", str(count))
  python = folder / peer.python / "bin" / "python"
  env = {"PYTHONPATH": str(folder / peer.path)} if peer.path else {}
  command = [str(python), str(folder / peer.script), *flags.split()]
  return of_peer(last_json(command, env=env))


def run(given: argparse.Namespace) -> dict[str, list[Measured]]:
  """Everything, in turns: `{name: one for each round}`."""
  found: dict[str, list[Measured]] = {}
  wanted = given.only.split(";") if given.only else list(GROUPS)
  unknown = sorted(set(wanted) - set(GROUPS))
  if unknown:
    raise ValueError(f"--only={unknown}: choose from {sorted(GROUPS)}.")
  for _ in range(given.rounds):
    seen = set()
    for arm in wanted:
      ours = run_ours(arm, given.steps, given.set)
      found.setdefault(arm, []).append(ours)
      print(f"{arm}: {ours}", file=sys.stderr)
      for name in GROUPS[arm] if given.peers else ():
        if name in seen:
          continue
        seen.add(name)
        theirs = run_peer(PEERS[name], given.steps, given.peers, given.model)
        found.setdefault(name, []).append(theirs)
        print(f"{name}: {theirs}", file=sys.stderr)
  return found


def flags() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--peers", type=Path, help="folder of scripts that peer")
  parser.add_argument("--model", type=Path, help="that the peers' script made")
  parser.add_argument("--only", default="", help="arms, with ; between them")
  parser.add_argument("--steps", type=int, default=4, help="in each process")
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--set", default="{}", help="JSON: fields of our arms")
  parser.add_argument("--json", type=Path, help="a file to add to")
  given = parser.parse_args()
  if given.peers and not given.model:
    parser.error("--peers needs --model, the folder that make_model.py wrote.")
  return given


def main() -> None:
  """Measures and prints; with --json, what that file has is shown as well."""
  given = flags()
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
