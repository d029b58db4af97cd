"""The comparison of LoRA with full tuning: turns, ratios, bytes."""

import dataclasses
import json

import jax
import pytest

from benchmarks import arms, lora_vs_full, results
from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import files, roles, sharding
from perl_jax import params as params_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.planning import estimate
from perl_jax.tasks import plan
from tests.marks import by_night

SETTINGS = arms.Settings(
  preset="tiny",
  vocab=50,
  batch=2,
  prompt_len=5,
  response_len=3,
  rank=2,
  steps=2,
  warmup=1,
  scan_unroll=1,
)


class FakeArm:
  """An arm whose seconds are known."""

  def __init__(self, tuning, ran=None):
    self.tuning, self.calls, self._ran = tuning, 0, ran

  def run(self, number):
    if self._ran is not None:
      self._ran.append((number, self.tuning))
    self.calls += 1
    # The first call is slow; a median must not see it.
    slow = 100.0 if self.calls == 1 else 0.0
    return {"step": slow + (1.0 if self.tuning == "lora" else 1.5) * self.calls}

  def costs(self):
    size = 25 if self.tuning == "lora" else 100
    return {
      "trainable_share": 0.01,
      "optimizer_bytes": size,
      "held_bytes": size,
      "peak_bytes": size,
      "compiler_peak_bytes": {"step": size},
      "phase_bytes": {"step": size},
    }


def test_warm_up_is_not_counted():
  settings = dataclasses.replace(SETTINGS, steps=3, warmup=1)
  found = lora_vs_full.measure(FakeArm, settings)
  assert found["lora"]["all_seconds"]["step"] == [2.0, 3.0, 4.0]
  assert found["lora"]["seconds"]["step"] == 3.0
  ratio = lora_vs_full.ratios(found)
  assert ratio["speed_up"] == {"step": 1.5}
  assert ratio["peak_percent"] == 25.0
  assert ratio["compiler_peak_percent"] == {"step": 25.0}
  text = lora_vs_full.table("reward step", found | {"ratio": ratio})
  assert "speed-up 1.50x" in text and "| 25.0 % |" in text


def test_each_tuning_is_first_in_half_of_the_turns():
  ran, settings = [], dataclasses.replace(SETTINGS, steps=3, warmup=1)
  lora_vs_full.measure(lambda tuning: FakeArm(tuning, ran), settings)
  turns = [{*ran[i : i + 2]} for i in range(0, 8, 2)]
  assert turns == [{(n, t) for t in lora_vs_full.TUNINGS} for n in range(1, 5)]
  firsts = [tuning for _, tuning in ran[::2]]
  assert firsts.count("lora") == firsts.count("full") == 2


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"steps": 0}, "--steps=0"),
    ({"rank": 0}, "--rank=0"),
    ({"warmup": 0}, "--warmup=0 must be at least 1: the first step compiles"),
  ],
)
def test_settings_that_measure_nothing_are_refused(fields, expected):
  with pytest.raises(ValueError, match=expected):
    arms.Settings(**fields)


def test_an_unknown_preset_is_refused():
  with pytest.raises(ValueError, match=r"model\.preset='tinny'"):
    arms.make_start(dataclasses.replace(SETTINGS, preset="tinny"))


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1)


def bytes_of(start, lora):
  """(base, adapter, head) in bytes, from shapes alone."""
  key = jax.random.key(0)
  base = jax.eval_shape(lambda: roles.init_base(key, start.config))
  adapter = jax.eval_shape(lambda: roles.init_adapter(key, start.config, lora))
  head = jax.eval_shape(lambda: roles.init_head(start.config))
  return [params_lib.nbytes(tree) for tree in (base, adapter, head)]


def compiled(get_config, start, tuning, mesh, **fields):
  """By program of the plan: (bytes of its arguments, its peak bytes)."""
  config = arms.configured(get_config(), SETTINGS, tuning)
  config.update_from_flattened_dict(fields)
  found = {}
  with jax.set_mesh(mesh):
    for program in plan.make_stage(config, start.config, mesh).programs():
      jitted = program.function.jitted(*program.args)
      memory = jitted.lower(*program.args).compile().memory_analysis()
      found[program.name] = (
        memory.argument_size_in_bytes,
        estimate.peak_bytes(memory),
      )
  return found


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", by_night("full")])
def test_an_iteration_counts_every_buffer_once(tuning, mesh):
  start = arms.make_start(SETTINGS)
  base, adapter, head = bytes_of(start, LoraSpec(rank=SETTINGS.rank))
  with jax.set_mesh(mesh):
    arm = arms.RLArm(SETTINGS, start, tuning, mesh)
    seconds = arm.run(1)
  phases = ("sample", "score", "learn")
  assert seconds["iteration"] == pytest.approx(sum(map(seconds.get, phases)))
  found = arm.costs()
  one = adapter if tuning == "lora" else base
  shared = base if tuning == "lora" else 0
  # Two moments of policy and value; the rest are counters.
  moments = 2 * (2 * one + head)
  assert 0 <= found["optimizer_bytes"] - moments <= 16
  assert found["trainable_bytes"] == 2 * one + head
  # Policy, value, anchor, reward; value and reward have a head.
  expected = shared + 4 * one + 2 * head + found["optimizer_bytes"]
  assert 0 <= found["held_bytes"] - expected <= 8  # the step's number, beta
  # The compiler counts these arguments, and prompts and responses.
  # There is no chat template, and so nothing to read after a response.
  turn = {"reward.score_at": "turn"}
  planned = compiled(rl_config.get_config, start, tuning, mesh, **turn)
  tokens = SETTINGS.batch * (SETTINGS.prompt_len + SETTINGS.response_len)
  arguments = {
    "sample": shared + one,
    "score": shared + 2 * one + head,  # anchor and reward
    "learn": shared + 2 * one + head + found["optimizer_bytes"],
  }
  for phase, size in arguments.items():
    counted, peak = planned[phase]
    assert 0 <= counted - size <= 16 * tokens + 256, phase
    assert found["compiler_peak_bytes"][phase] == peak
    held = found["held_bytes"]
    # To within the counters: what is no argument waits meanwhile.
    assert abs(found["phase_bytes"][phase] - (held - size + peak)) <= 8, phase
  assert found["peak_bytes"] == max(found["phase_bytes"].values())


@pytest.mark.slow
def test_a_reward_step_holds_a_head_that_it_does_not_read(mesh):
  # An untied lm_head is no argument of a step that only has a scalar head.
  start = arms.make_start(dataclasses.replace(SETTINGS, preset="llama_tiny"))
  base, adapter, head = bytes_of(start, LoraSpec(rank=SETTINGS.rank))
  with jax.set_mesh(mesh):
    arm = arms.RewardArm(SETTINGS, start, "lora", mesh)
    arm.run(1)
  found = arm.costs()
  expected = base + 3 * (adapter + head)
  assert 0 <= found["held_bytes"] - expected <= 20
  unread = start.role.frozen["lm_head"].nbytes
  counted, peak = compiled(reward_config.get_config, start, "lora", mesh)[
    "learn"
  ]
  assert 0 <= counted - (expected - unread) <= 1024
  assert found["compiler_peak_bytes"]["step"] == peak
  assert found["peak_bytes"] == peak + unread


def test_command_line(monkeypatch, tmp_path, capsys):
  path = tmp_path / "new" / "out.json"
  monkeypatch.setattr(arms, "make_start", lambda settings: None)
  for name in ("RewardArm", "RLArm"):
    monkeypatch.setattr(
      arms, name, lambda settings, start, tuning, mesh: FakeArm(tuning)
    )
  monkeypatch.setattr(
    "sys.argv",
    ["x", "--preset=tiny", "--vocab=20", "--batch=2", f"--json={path}"],
  )
  lora_vs_full.main()
  written = json.loads(path.read_text())
  assert written["settings"]["batch"] == 2
  assert written["rl"]["ratio"]["peak_percent"] == 25.0
  assert written["machine"]["jax"] == jax.__version__
  assert "| RL iteration | LoRA | full |" in capsys.readouterr().out


def test_the_processor_has_a_name(tmp_path):
  file = tmp_path / "cpuinfo"
  files.write_text(file, "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
  assert results.processor(str(file)) == "Some CPU @ 2 GHz"
  assert results.processor(str(tmp_path / "none"))
