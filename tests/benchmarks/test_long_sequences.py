"""The configs of long sequences, and their table."""

from benchmarks import long_sequences

GIB = 2**30


def planned(gib, fits=True):
  """The plan of a program with so much of everything."""
  program = {"peak_bytes": 2 * gib * GIB}
  if fits:
    program["cost"] = {"temporary_bytes": gib * GIB}
  else:
    program["refused"] = "Used 9G of 1G hbm"
  return {
    "programs": {name: program for name in ("learn", "sample", "score")},
    "peak_bytes": 2 * gib * GIB,
    "cache_bytes": 0.5 * GIB,
    "fits": fits,
    "seconds": gib if fits else None,
  }


def test_both_stages_have_the_length_and_rl_the_group():
  config = long_sequences.config_of("llama_8b", "v5e:4x4", 4096, 512, 4)
  for stage in (config.reward, config.rl):
    assert stage.data.prompt_len == 4096 and stage.data.response_len == 512
    assert stage.data.max_len == 4608
  assert config.rl.samples_per_prompt == 4 and config.rl.estimator == "rloo"
  alone = long_sequences.config_of("llama_8b", "v5e:4x4", 4096, 512)
  assert alone.rl.samples_per_prompt == 1


def test_a_line_has_the_largest_program_of_a_stage_and_the_sum_of_its_time():
  names = long_sequences.PROGRAMS
  fits = dict(zip(names, map(planned, (1, 2, 3, 4)), strict=True))
  refused = fits | {"rl: sample": planned(9, fits=False)}
  *_, first, second = long_sequences.table({1024: fits, 8192: refused})
  assert first == (
    "| 1,024 | 1.00 | 2.00 | 3.00 | 4.00 | 0.50 | 2.00 | 8.00 | 1.0 | 9.0 |"
  )
  assert second == (
    "| 8,192 | 1.00 | refused: 18.00 | 3.00 | 4.00 | 0.50 | 2.00 | 18.00 | 1.0"
    " | does not fit |"
  )
