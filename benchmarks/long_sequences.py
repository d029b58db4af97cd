"""Memory of a device as sequences grow, from the compiler: where is the bound?

  python -m benchmarks.long_sequences --workdir=runs/long
  python -m benchmarks.long_sequences --workdir=runs/long \
      --topology=v5p:2x2x4
  python -m benchmarks.long_sequences --workdir=runs/long --group=4

Needs libtpu, and no TPU. For each length of a prompt it plans the reward step
(pairs of that length with their responses) and an RL iteration with LoRA of
rank 8, as `benchmarks.efficiency` does: four rows of a batch for each chip, one
at a time but for sampling. A program's temporaries are what it needs beyond its
arguments and results. Where they are held constant per token, twice the length
takes twice as much; four times as much is what attention scores take that a
device holds whole. With --group, RL is by RLOO with so many responses to each
prompt, which share it in a row: the splash kernel has no mask for that.

A program that was planned before is read from the workdir.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import efficiency, results
from perl_jax import files, sharding
from perl_jax.tasks import plan

LENGTHS = (1024, 2048, 4096, 8192)
PROGRAMS = ("reward: learn", "rl: sample", "rl: score", "rl: learn")


def config_of(
  model: str, topology: str, prompt: int, response: int, group: int = 1
) -> Any:
  """The config of the plan of one length.

  Args:
    model: Preset.
    topology: Slice, such as "v5e:4x4".
    prompt: Most tokens of a prompt.
    response: Most tokens of a response.
    group: Responses to a prompt of RL; with several the estimator is RLOO.
  """
  config = efficiency.config_of(model, topology, stages="reward,rl", full=False)
  config = config.copy_and_resolve_references()
  for name in ("reward", "rl"):
    data = config[name].data
    data.max_len, data.prompt_len = prompt + response, prompt
    data.response_len = response
  if group > 1:
    config.rl.estimator, config.rl.samples_per_prompt = "rloo", group
  return config.lock()


def planned(config: Any, stage: str, program: str, path: Path) -> Any:
  """The plan of one program of a stage, from its file if that is there.

  Args:
    config: From `config_of`.
    stage: Name of the stage.
    program: Name of the program.
    path: File of the plan.
  """
  if not path.exists():
    devices = plan.devices_of(config.plan.topology)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    made = plan.make_stage(
      plan.stage_config(config, stage, "lora"),
      plan.model_of(config, ["reward", "rl"]),
      mesh,
    )
    programs = [each for each in made.programs() if each.name == program]
    one = dataclasses.replace(made, make_programs=lambda: programs)
    files.write_json(path, plan.plan_made(one))
  return json.loads(path.read_text())


def table(rows: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table of GiB for each device, a line for each length."""
  yield (
    f"| prompt | {' | '.join(PROGRAMS)} | cache | reward, whole | RL, whole"
    " | s a reward step | s an iteration |"
  )
  yield "|---" * (len(PROGRAMS) + 6) + "|"
  for prompt, found in rows.items():
    of_rl = [found[name] for name in PROGRAMS if name.startswith("rl")]
    stages = [found["reward: learn"]], of_rl
    cells = [temporaries(found[name], name) for name in PROGRAMS]
    cells.append(_gib(found["rl: sample"]["cache_bytes"]))
    for stage in stages:
      cells.append(_gib(max(program["peak_bytes"] for program in stage)))
    for stage in stages:
      seconds = [program["seconds"] for program in stage]
      fits = all(program["fits"] for program in stage)
      cells.append(f"{sum(seconds):.1f}" if fits else "does not fit")
    yield f"| {prompt:,} | {' | '.join(cells)} |"


def temporaries(planned_: Mapping[str, Any], name: str) -> str:
  """GiB of the temporaries of a program, or all that a refused one needs."""
  program = planned_["programs"][name.split(": ")[1]]
  if "refused" in program:
    return f"refused: {_gib(program['peak_bytes'])}"
  return _gib(program["cost"]["temporary_bytes"])


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def main() -> None:
  """Plans and prints; writes long_sequences.json."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--model", default="llama_8b")
  parser.add_argument("--topology", default="v5e:4x4")
  parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
  parser.add_argument("--response", type=int, default=1024)
  parser.add_argument("--group", type=int, default=1)
  given = parser.parse_args()
  rows = {}
  given.workdir.mkdir(parents=True, exist_ok=True)
  slice_ = given.topology.replace(":", "_")
  for prompt in given.lengths:
    config = config_of(
      given.model, given.topology, prompt, given.response, given.group
    )
    rows[prompt] = {}
    for name in PROGRAMS:
      stage, program = name.split(": ")
      size = f"{prompt}_{given.response}"
      if stage == "rl" and given.group > 1:
        size += f"x{given.group}"
      path = f"{given.model}_{slice_}_{size}_{stage}_{program}.json"
      rows[prompt][name] = planned(config, stage, program, given.workdir / path)
    print(f"{prompt}: planned", flush=True)
  print("\n".join(table(rows)))
  files.write_json(
    given.workdir / "long_sequences.json",
    {"machine": results.machine(), "rows": rows},
  )


if __name__ == "__main__":
  main()
