import io
import json

import pytest

from benchmarks import from_nothing

PAGE = """
```bash
make quickstart
```
```bash
perl_jax --config=rl \\
    --workdir=runs/rl   # a run
```
```python
# mine.py
steps = 1
```
```text
not a command
```
## Reading the results
| `rl.gold_before`, `rl.gold_after` | Share, by 15 points at least |
### More
"""
FOUND = {
  "rl.gold_before": 0.45, "rl.gold_after": 0.68, "rl.kl": 0.3,
  "rl.reward_before": 0.0, "rl.reward_after": 0.8, "rl.kl_at_step_0": 0.0,
  "evaluate.policy.gold": 0.66, "reward.accuracy": 0.89,
}  # fmt: skip


def test_steps_of_a_page():
  assert list(from_nothing.steps(PAGE)) == [
    ("run", "make quickstart"),
    ("run", "perl_jax --config=rl --workdir=runs/rl"),
    ("write", "# mine.py\nsteps = 1\n"),
  ]


def test_what_is_left_out_is_on_the_page():
  page = from_nothing.PAGE.read_text()
  assert set(from_nothing.LEFT_OUT) <= {
    text for kind, text in from_nothing.steps(page) if kind == "run"
  }


def test_a_shell_keeps_its_variables_and_says_what_failed(tmp_path):
  log = io.StringIO()
  shell = from_nothing.Shell(tmp_path, log)
  shell("mkdir a && cd a && export b=c")
  assert shell("pwd; echo $b $HOME").split() == ["DIR/a", "c", "DIR/home"]
  with pytest.raises(RuntimeError, match="status 3"):
    shell("exit 3")
  assert str(tmp_path) not in log.getvalue()
  assert "status 0" in log.getvalue() and "status 3" in log.getvalue()


@pytest.mark.parametrize(
  "change, said",
  [
    ({}, ""),
    ({"rl.gold_after": 0.55, "evaluate.policy.gold": 0.55}, "10.0 points"),
    ({"rl.kl_at_step_0": 1e-9}, "rl.kl_at_step_0"),
    ({"rl.reward_after": -1.0}, "rl.reward rises"),
    ({"evaluate.policy.gold": 0.5}, "sampled again"),
    ({"rl.gold_before": None}, "keys of the table"),
  ],
)
def test_outcomes_that_are_not_as_the_page_says(tmp_path, change, said):
  workdir = tmp_path / "clone/runs/quickstart"
  workdir.mkdir(parents=True)
  (workdir / "report.html").write_text("")
  found = {k: v for k, v in (FOUND | change).items() if v is not None}
  (workdir / "summary.json").write_text(json.dumps(found))
  shell = from_nothing.Shell(tmp_path, io.StringIO())
  if not said:
    from_nothing.check_quickstart(shell, tmp_path / "clone", PAGE)
    return
  with pytest.raises(RuntimeError, match=said):
    from_nothing.check_quickstart(shell, tmp_path / "clone", PAGE)
