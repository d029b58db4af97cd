"""Which runs the tables of the paper need, in which order, and what they show.

Runs are not made: what starts them writes a summary instead.
"""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import paper, paper_cells, paper_show, paper_tables
from benchmarks.paper_tables import Group
from perl_jax import files

ANCHOR = Group("sft", "coffee_bar", "small", fields={"model.preset": "small"})
REWARD = Group(
  "reward",
  "coffee_bar",
  "small",
  "full",
  rates=(0.1, 0.2),
  best=("log_loss", -1),
  init={"reward": ANCHOR},
  seeds=(0, 1),
)
POLICY = Group(
  "rl",
  "coffee_bar",
  "small",
  "full",
  rates=(0.3, 0.4),
  best=("reward_after", 1),
  kl_weight=0.5,
  init={"policy": ANCHOR, "reward": REWARD},
  seeds=(0, 1),
  of_seed=("reward",),
)
# Of 0.3 the reward is higher, and of 0.4 what is left of it after the KL.
SUMMARIES = {
  "reward": {0.1: {"log_loss": 0.5}, 0.2: {"log_loss": 0.4, "accuracy": 0.75}},
  "rl": {
    0.3: {"reward_after": 1.0, "kl": 2.0},
    0.4: {"reward_after": 0.9, "kl": 0.2},
  },
  "sft": {None: {"loss": 1.0}},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A directory for lines and runs, and a table of three groups."""
  monkeypatch.setattr(paper, "LINES", tmp_path / "lines")
  table = {"toy": lambda: [ANCHOR, REWARD, POLICY]}
  monkeypatch.setattr(paper_tables, "TABLES", table)
  return tmp_path


class Starts:
  """Runs nothing, and notes what it was given."""

  def __init__(self, status=0):
    self.given, self.status = [], status

  def __call__(self, arguments, seconds):
    flags = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    self.given.append(flags)
    if self.status:
      return self.status
    stage = Path(flags["config"].partition(":")[0]).stem
    rate = flags.get("config.optimizer.learning_rate")
    found = SUMMARIES[stage][float(rate) if rate else None]
    workdir = Path(flags["workdir"])
    workdir.mkdir(parents=True)
    files.write_json(workdir / "summary.json", found | {"seconds": 3.0})
    return 0


def run(place, start):
  return paper.run("toy", place / "runs", minutes=1, start=start)


def names(start, place):
  return [
    str(Path(flags["workdir"]).relative_to(place / "runs"))
    for flags in start.given
  ]


def test_trials_come_first_and_seeds_take_the_best_rate(place):
  start = Starts()
  assert run(place, start) == 0
  assert names(start, place) == [
    "coffee_bar/small/sft/seed_0",
    "coffee_bar/small/reward/full/rate_0.1_seed_0",
    "coffee_bar/small/reward/full/rate_0.2_seed_0",
    "coffee_bar/small/reward/full/rate_0.2_seed_1",
    "coffee_bar/small/rl/full/rate_0.3_seed_0",
    "coffee_bar/small/rl/full/rate_0.4_seed_0",
    "coffee_bar/small/rl/full/rate_0.4_seed_1",
  ]
  last = start.given[-1]
  assert last["config.reward.init"].endswith("reward/full/rate_0.2_seed_1")
  assert last["config.policy.init"].endswith("sft/seed_0")
  assert last["config.seed"] == "1"


def test_two_processes_share_a_table(place, monkeypatch):
  """Each runs one backbone, and both keep the lines of both."""
  medium = dataclasses.replace(ANCHOR, backbone="medium", seeds=(0, 1))
  monkeypatch.setitem(paper_tables.TABLES, "toy", lambda: [ANCHOR, medium])
  other, start = Starts(), Starts()

  def at_once(arguments, seconds):
    if not start.given:
      paper.run("toy", place / "runs", backbone="small", start=other)
    return start(arguments, seconds)

  assert not paper.run("toy", place / "runs", backbone="medium", start=at_once)
  assert names(other, place) == ["coffee_bar/small/sft/seed_0"]
  own = [f"coffee_bar/medium/sft/seed_{seed}" for seed in (0, 1)]
  assert names(start, place) == own
  lines = paper.read(place / "lines" / "toy.jsonl")
  assert list(lines) == [*names(other, place), *own]


def test_two_processes_share_a_backbone(place, monkeypatch, capsys):
  """Each runs one kind of tuning, not before the runs that it stands on."""
  lora, table = dataclasses.replace(POLICY, tuning="LoRA"), [ANCHOR, REWARD]
  start = Starts()
  monkeypatch.setitem(paper_tables.TABLES, "toy", lambda: [*table, lora])
  assert paper.run("toy", place / "runs", tuning="LoRA", start=start) == 1
  waits = "rl/LoRA/rate_0.3_seed_0 waits for the runs of"
  assert f"{waits} coffee_bar/small/reward/full." in capsys.readouterr().err
  assert paper.run("toy", place / "runs", tuning="full", start=start) == 1
  assert "for the runs of coffee_bar/small/sft." in capsys.readouterr().err
  monkeypatch.setitem(paper_tables.TABLES, "toy", lambda: table)
  assert start.given == [] and run(place, Starts()) == 0
  monkeypatch.setitem(paper_tables.TABLES, "toy", lambda: [*table, lora])
  assert paper.run("toy", place / "runs", tuning="LoRA", start=start) == 0
  assert {name.split("/")[3] for name in names(start, place)} == {"LoRA"}


def test_all_starts_of_a_run_count(place, monkeypatch, capsys):
  """Its seconds are those of both, and so is the longest time."""
  clock, cpu = [0.0], [0.0]
  monkeypatch.setattr(paper.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(paper, "_cpu_seconds", lambda: cpu[0])
  start, left = Starts(75), []

  def spend(arguments, seconds):
    left.append(seconds)
    clock[0] += 40.0
    cpu[0] += 70.0
    return start(arguments, seconds)

  assert run(place, spend) == 75
  start.status = 0
  clock[0] += 1000.0  # between two starts
  assert run(place, spend) == 0
  assert left[:2] == [60.0, 20.0] and left[2] == 60.0
  lines = [*paper.read(place / "lines" / "toy.jsonl").values()]
  assert [line["summary"]["cpu_seconds"] for line in lines[:2]] == [140.0, 70.0]


def test_a_run_that_has_had_its_time(place, capsys):
  name = place / "runs/coffee_bar/small/sft/seed_0.seconds.json"
  name.parent.mkdir(parents=True)
  files.write_json(name, {"wall": 60.0, "cpu": 1.0})
  start = Starts()
  assert run(place, start) == 1 and start.given == []
  assert "--minutes" in capsys.readouterr().err


def test_what_has_a_line_is_not_run_again(place):
  run(place, Starts())
  again = Starts()
  assert run(place, again) == 0 and again.given == []
  lines = files.read_jsonl(place / "lines" / "toy.jsonl")
  assert len(lines) == 7
  # Neither a path of this machine nor one of the code.
  assert lines[0]["command"] == (
    "python -m perl_jax.main --config=configs/sft.py:coffee_bar"
    " --config.model.preset=small --config.seed=0"
    " --workdir=runs/paper/coffee_bar/small/sft/seed_0"
  )
  # What a lost line starts from is made anew, and nothing else.
  files.write_jsonl(place / "lines" / "toy.jsonl", lines[:-1])
  (place / "runs").rename(place / "elsewhere")
  assert run(place, again) == 0
  assert names(again, place) == [
    "coffee_bar/small/sft/seed_0",
    "coffee_bar/small/reward/full/rate_0.2_seed_1",
    "coffee_bar/small/rl/full/rate_0.4_seed_1",
  ]
  assert files.read_jsonl(place / "lines" / "toy.jsonl")[:-1] == lines[:-1]


def test_what_is_made_again_has_to_come_out_as_before(
  place, monkeypatch, capsys
):
  run(place, Starts())
  path = place / "lines" / "toy.jsonl"
  lines = files.read_jsonl(path)[:-1]  # the last policy is to be made again
  files.write_jsonl(path, lines)
  (place / "runs").rename(place / "elsewhere")
  other = {0.2: {"log_loss": 0.3, "accuracy": 0.85}}
  monkeypatch.setitem(SUMMARIES, "reward", SUMMARIES["reward"] | other)
  start = Starts()
  assert run(place, start) == 1
  assert names(start, place)[-1].endswith("reward/full/rate_0.2_seed_1")
  assert files.read_jsonl(path) == lines
  told = capsys.readouterr().err
  assert "log_loss is 0.3, and 0.4 in its line" in told
  # Policies of the first seed stand on the other reward model.
  assert told.strip().endswith(
    "them anew: coffee_bar/small/reward/full/rate_0.2_seed_1."
  )


def test_an_anchor_is_another_by_its_loss(place, monkeypatch, capsys):
  """Whose tokens it gets right may be nearly the same for both."""
  sft = {"accuracy": 0.9, "loss": 1.0, "peak_bytes": 7, "name": "a"}
  monkeypatch.setitem(SUMMARIES, "sft", {None: sft})
  run(place, Starts())
  path = place / "lines" / "toy.jsonl"
  for status, other in enumerate(({"peak_bytes": 8}, {"loss": 1.02})):
    files.write_jsonl(path, files.read_jsonl(path)[:-1])
    (place / "runs").rename(place / f"elsewhere_{status}")
    monkeypatch.setitem(SUMMARIES, "sft", {None: sft | other})
    assert run(place, Starts()) == status
  assert "loss is 1.02, and 1 in its line" in capsys.readouterr().err


def test_what_stands_on_a_run(place):
  run(place, Starts())
  lines = paper.read(place / "lines" / "toy.jsonl")
  groups = [ANCHOR, REWARD, POLICY]
  (anchor,) = paper_cells.seeds(ANCHOR, lines)
  assert paper_cells.standing_on(anchor, groups, lines) == [*lines][1:]
  first, last = paper_cells.seeds(REWARD, lines)
  found = paper_cells.standing_on(first, groups, lines)
  assert found == [name for name in lines if "rl" in name and "seed_0" in name]
  assert paper_cells.standing_on(last, groups, lines) == [[*lines][-1]]


def test_a_run_that_fails_ends_it_without_a_line(place):
  assert run(place, Starts(status=75)) == 75
  assert not (place / "lines").exists()


def test_the_table_has_mean_and_deviation_over_seeds(place):
  run(place, Starts())
  path = place / "lines" / "toy.jsonl"
  lines = paper.read(path)
  name = "coffee_bar/small/reward/full/rate_0.2_seed_1"
  lines[name]["summary"]["accuracy"] = 0.85
  rows = paper_show.markdown([ANCHOR, REWARD, POLICY], lines).splitlines()
  (row,) = (row for row in rows if "full | 0.2 |" in row)
  assert "| 2 | 80 ± 7.1 % | 0.4 ± 0 |" in row
  del lines["coffee_bar/small/reward/full/rate_0.1_seed_0"]
  assert "full | 0.2 |" not in paper_show.markdown([ANCHOR, REWARD], lines)


def test_a_single_run_has_its_interval(place):
  run(place, Starts())
  lines = paper.read(place / "lines" / "toy.jsonl")
  del lines["coffee_bar/small/reward/full/rate_0.2_seed_1"]
  name = "coffee_bar/small/reward/full/rate_0.2_seed_0"
  lines[name]["summary"] |= {"accuracy_low": 0.701, "accuracy_high": 0.8}
  assert "| 1 | 75 % (70.1 to 80) | 0.4 |" in paper_show.markdown(
    [REWARD], lines
  )


def test_what_lora_takes_of_full_tuning(place, monkeypatch):
  """By hand: means over seeds, of those that have the number."""
  summaries = {
    0.1: {"log_loss": 0.5, "peak_bytes": 9, "cpu_seconds": 9},
    0.2: {"log_loss": 0.4, "peak_bytes": 200, "cpu_seconds": 50.0},
  }
  monkeypatch.setitem(SUMMARIES, "reward", summaries)
  lora = dataclasses.replace(REWARD, tuning="LoRA r8, attention")
  groups = [ANCHOR, REWARD, lora]
  monkeypatch.setattr(paper_tables, "TABLES", {"toy": lambda: groups})
  run(place, Starts())
  lines = paper.read(place / "lines" / "toy.jsonl")
  for seed, peak, seconds in ((0, 90, 30.0), (1, 110, None)):
    name = f"{lora.name}/rate_0.2_seed_{seed}"
    lines[name]["summary"] |= {"peak_bytes": peak, "cpu_seconds": seconds}
    if seconds is None:
      del lines[name]["summary"]["cpu_seconds"]
  for seed in (0, 1):
    name = f"{REWARD.name}/rate_0.2_seed_{seed}"
    lines[name]["summary"] |= {"cpu_seconds": 60.0}
  row = "| reward | coffee_bar | small | LoRA r8, attention | 50 % | 2.00× | "
  assert row in paper_show.markdown(groups, lines)
  hh = [dataclasses.replace(group, data="hh_rlhf") for group in groups]
  named = {k.replace("coffee_bar", "hh_rlhf"): v for k, v in lines.items()}
  assert "| 50 % | 2.00× | 43 % | 1.6× |" in paper_show.markdown(hh, named)
  assert "against full" not in paper_show.markdown(groups[:2], lines)


JUDGE = Group(
  "judge", "coffee_bar", "small", "full",
  init={"policy": POLICY, "judges": REWARD},
)  # fmt: skip


def test_a_judge_has_its_numbers_and_refusals(place, monkeypatch):
  """Of a reward model that judges, under a name that all tables have."""
  monkeypatch.setattr(
    paper_tables, "TABLES", {"toy": lambda: [ANCHOR, REWARD, POLICY, JUDGE]}
  )
  monkeypatch.setitem(
    SUMMARIES, "judge", {None: {"by.rate_0_2_seed_0.win_rate_ties_half": 0.5}}
  )

  class WithVerdicts(Starts):
    def __call__(self, arguments, seconds):
      status = super().__call__(arguments, seconds)
      workdir = Path(self.given[-1]["workdir"])
      rows = [{"policy": "I'm sorry.", "against": "Yes."}]
      if "judge" in workdir.parts:
        files.write_jsonl(workdir / "verdicts.jsonl", rows)
      return status

  start = WithVerdicts()
  assert run(place, start) == 0
  judges = start.given[-1]["config.judges"]
  assert judges.startswith("reward:/")
  assert judges.endswith("small/reward/full/rate_0.2_seed_0")
  found = files.read_jsonl(place / "lines" / "toy.jsonl")[-1]["summary"]
  assert found["judge.win_rate_ties_half"] == 0.5
  assert found["policy.refusal_rate"] == 1 and "cpu_seconds" in found
  assert found["against.refusal_rate"] == 0
  # A rate that is tried later and is better is judged as well.
  better = dataclasses.replace(POLICY, rates=(*POLICY.rates, 0.6))
  monkeypatch.setitem(SUMMARIES["rl"], 0.6, {"reward_after": 2.0, "kl": 0.0})
  judged = dataclasses.replace(JUDGE, init=JUDGE.init | {"policy": better})
  table = {"toy": lambda: [ANCHOR, REWARD, better, judged]}
  monkeypatch.setattr(paper_tables, "TABLES", table)
  assert run(place, start) == 0
  rows = files.read_jsonl(place / "lines" / "toy.jsonl")
  assert [row["cell"] for row in rows if "/judge/" in row["cell"]] == [
    f"coffee_bar/small/judge/full/policy_rate_{rate}_seed_0"
    for rate in (0.4, 0.6)
  ]
