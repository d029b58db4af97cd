"""The command line: what it hands over, and how it says what is wrong."""

import json
import logging as standard_logging
import os
import pathlib
import queue
import subprocess
import sys
import threading

import pytest
from absl import flags, logging
from absl.testing import flagsaver

from perl_jax import files, main, tasks
from tests.tasks import tiny

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch, tmp_path):
  """Returns `parse(*arguments)`, for a command line with a --workdir."""
  monkeypatch.chdir(ROOT)
  saved = flagsaver.save_flag_values(flags.FLAGS)

  def parse(*arguments):
    argv = ["main", *arguments, f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there
    return main.parse(argv)

  yield parse
  flagsaver.restore_flag_values(saved)
  flags.FLAGS.unparse_flags()


def refused(command, capsys, *arguments):
  with pytest.raises(SystemExit) as caught:
    command(*arguments)
  message = str(caught.value)
  assert message.startswith("error: ") and "\n" not in message, message
  assert "Traceback" not in message + capsys.readouterr().err
  return message


def test_overrides_reach_the_config(command, tmp_path):
  rest = command(
    "--config=configs/rl.py:taskmaster_coffee",
    "--config.lora.rank=4",
    "--config.policy.init=runs/sft",
    "--config.beta=0.25",
  )
  config = main._CONFIG.value
  assert rest == ["main"]
  assert main._WORKDIR.value == str(tmp_path / "run")
  assert config.task == "rl" and config.data.name == "taskmaster_coffee"
  assert (config.lora.rank, config.policy.init) == (4, "runs/sft")
  assert config.beta == 0.25
  assert config.is_locked


def test_unknown_data_set(command, capsys):
  message = refused(command, capsys, "--config=configs/rl.py:coffe_bar")
  assert "'coffe_bar'" in message
  assert "Did you mean 'coffee_bar'?" in message


def test_argument_that_a_config_does_not_take(command, capsys):
  message = refused(command, capsys, "--config=configs/quickstart.py:hh_rlhf")
  assert "configs/pipeline.py:hh_rlhf" in message


def test_missing_config_file(command, capsys):
  message = refused(command, capsys, "--config=configs/rll.py")
  assert "configs/rll.py" in message and "No such file" in message


@pytest.mark.parametrize(
  "argument, nearest",
  [
    ("--config.lora.rnk=4", "lora.rank"),
    ("--config.optimizer.learning_rat=1", "optimizer.learning_rate"),
    ("--config.btea=0.1", "beta"),
    ("--config.lorra.rank=4", "lora.rank"),
    ("--config.Lora.rank=4", "lora.rank"),
    ("--config.polcy.init=x", "policy.init"),
    ("--config.optimzer.learning_rte=0.1", "optimizer.learning_rate"),
    ("--config.data.optons.size=4", "data.options.size"),
    ("--config.batch-size=4", "batch_size"),
    ("--config.optimizer.learning-rate=0.1", "optimizer.learning_rate"),
    ("--config.lora['rank']=4", "lora.rank"),
    ("--config.rank=4", "lora.rank"),
  ],
)
def test_mistyped_field(command, capsys, argument, nearest):
  message = refused(command, capsys, "--config=configs/rl.py", argument)
  wrong = argument.removeprefix("--config.").partition("=")[0]
  assert f"no such config field: {wrong} is not in configs/rl.py" in message
  assert f"'{nearest}'" in message


@pytest.mark.parametrize(
  "config, path, texts",
  [
    ("reward.py", "policy.init", ("It has reward.init", "configs/dpo.py")),
    ("sft.py", "reward.init", ("It has policy.init", "configs/reward.py")),
    ("sft.py:coffee_bar", "kl.target", ("It is a field of configs/rl.py.",)),
    ("export.py", "lora.rank", ("configs/reward.py",)),
    ("report.py", "steps", ("configs/dpo.py",)),
    ("quickstart.py", "lora.rank", ("--config.sft.lora.rank", "stages")),
    ("quickstart.py", "steps", ("--config.rl.steps",)),
    ("rl.py", "steps.x", ("config.steps is a field, and nothing is below",)),
    ("rl.py", "data.buckets.x", ("config.data.buckets is a field",)),
    ("rl.py", "kl", ("section", "--config.kl.estimator")),
    ("pipeline.py", "rl.lora", ("section", "--config.rl.lora.rank")),
    ("rl.py:hh_rlhf", "data.options", ("section", "it has none")),
    ("sft.py", "task", ("--config=FILE",)),
    ("pipeline.py", "sft.task", ("--config=FILE",)),
    ("sft.py", "", ("no such config field",)),
    ("sft.py", "lock", ("no such config field",)),
    ("sft.py", "optimizer.items", ("no such config field",)),
    ("sft.py", "a b", ("no such config field: a b",)),
    ("sft.py", "..", ("no such config field: ..",)),
  ],
)
def test_field_of_another_place(command, capsys, config, path, texts):
  for value in ("=x", "", "={'a': 1}"):
    message = refused(
      command, capsys, f"--config=configs/{config}", f"--config.{path}{value}"
    )
    for text in texts:
      assert text in message, message


def test_flag_without_its_config(command, capsys):
  message = refused(
    command, capsys, "--config=configs/sft.py", "--batch_size=4"
  )
  assert "--config.batch_size" in message


@pytest.mark.parametrize(
  "text, said",
  [
    ("def get_config():\n  return undefined\n", "NameError: name 'undefined'"),
    ("def get_config(:\n", "SyntaxError"),
  ],
)
def test_config_file_with_a_fault(command, capsys, tmp_path, text, said):
  path = tmp_path / "mine.py"
  path.write_text(text)
  message = refused(command, capsys, f"--config={path}", "--config.a=1")
  assert said in message, message


def test_home_in_the_path_of_a_config(command, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "mine.py").write_text(
    "from configs import report\nget_config = report.get_config\n"
  )
  command("--config=~/mine.py")
  assert main._CONFIG.value.task == "report"


@pytest.mark.parametrize(
  "argument",
  [
    "--config.lora.rank=four",
    "--config.lora.rank=4.5",
    "--config.optimizer.learning_rate=fast",
    "--config.lora.rslora=perhaps",
  ],
)
def test_wrong_type(command, capsys, argument):
  message = refused(command, capsys, "--config=configs/rl.py", argument)
  field, value = argument.removeprefix("--").split("=")
  assert field in message and value in message


def test_unknown_flag(command, capsys):
  message = refused(command, capsys, "--confg=configs/rl.py")
  assert "confg" in message


@pytest.mark.parametrize(
  "given, missing",
  [("--config=configs/rl.py", "workdir"), ("--workdir=run", "config")],
)
def test_workdir_and_config_are_required(monkeypatch, command, given, missing):
  called = []
  monkeypatch.setattr(
    main.app, "run", lambda fn, flags_parser: called.append(flags_parser)
  )
  main.run()
  assert called == [main.parse]
  monkeypatch.setattr(sys, "argv", ["main", given])
  with pytest.raises(SystemExit, match=f"error: flag --{missing}="):
    main.parse(["main", given])


@pytest.fixture
def quiet(monkeypatch):
  """Keeps what `main` does to logging inside the test."""
  monkeypatch.setattr(main, "quiet_libraries", lambda: None)


def test_task_gets_config_and_workdir(monkeypatch, command, quiet, tmp_path):
  seen = []
  monkeypatch.setattr(tasks, "run", lambda *args: seen.append(args))
  main.main(command("--config=configs/sft.py", "--config.steps=7"))
  ((config, workdir),) = seen
  assert config.steps == 7 and workdir == str(tmp_path / "run")
  with pytest.raises(main.app.UsageError, match="stray"):
    main.main(["main", "stray"])


@pytest.mark.parametrize("error", main.USER_ERRORS)
def test_errors_of_the_user_are_one_line(monkeypatch, command, quiet, error):
  def fail(config, workdir):
    raise error("lora.rank=-1 must be at least 0.")

  monkeypatch.setattr(tasks, "run", fail)
  argv = command("--config=configs/sft.py")
  with pytest.raises(SystemExit, match=r"^error: lora.rank=-1 must"):
    main.main(argv)
  flags.FLAGS.traceback = True
  with pytest.raises(error):
    main.main(argv)


def test_bugs_keep_their_traceback(monkeypatch, command, quiet):
  def fail(config, workdir):
    raise TypeError("a bug")

  monkeypatch.setattr(tasks, "run", fail)
  with pytest.raises(TypeError):
    main.main(command("--config=configs/sft.py"))


def test_other_libraries_are_quiet_but_for_warnings():
  handler = logging.get_absl_handler().python_handler
  before, verbosity = list(handler.filters), logging.get_verbosity()
  try:
    main.quiet_libraries()
    (added,) = handler.filters[len(before) :]

    def shown(path, level):
      record = standard_logging.LogRecord("", level, path, 1, "", (), None)
      return bool(added(record))

    ours = str(ROOT / "perl_jax" / "tasks" / "sft.py")
    assert shown(ours, standard_logging.INFO)
    assert not shown("/lib/orbax/manager.py", standard_logging.INFO)
    assert shown("/lib/orbax/manager.py", standard_logging.WARNING)
  finally:
    handler.filters[:] = before
    logging.set_verbosity(verbosity)


def test_a_thread_that_never_ends_is_not_waited_for(monkeypatch, capsys):
  """Of a reward function: Python would wait for it at the end of a run."""
  left, end = queue.Queue(), threading.Event()
  monkeypatch.setattr(main.os, "_exit", left.put)
  main.wait_for_no_thread(3, 0.01)
  thread = threading.Thread(target=end.wait, name="of the user")
  thread.start()
  main.wait_for_no_thread(4, 0.01)
  assert left.get(timeout=20) == 4
  end.set()
  thread.join()
  (line,) = capsys.readouterr().err.splitlines()
  assert "threads that somebody has started" in line and "(of the user)" in line


def start(*arguments, interrupted=False, **options):
  """Starts `python -m perl_jax.main` as a user would; warnings are errors.

  If it will be interrupted, that may be in the middle of Python's `open`, which
  then leaves a file that nobody closes.
  """
  return subprocess.Popen(
    [
      sys.executable,
      "-Werror",
      *(["-Wignore::ResourceWarning"] if interrupted else []),
      *("-m", "perl_jax.main"),
      *arguments,
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    **options,
  )


@pytest.mark.slow
def test_a_trace_where_libtpu_is_installed(tmp_path, monkeypatch):
  """Without a choice of platforms, as a user starts it."""
  monkeypatch.setenv("JAX_PLATFORMS", "")
  values = tiny.fields("sft") | {"steps": 2, "eval_every": 2, "eval.rows": 0}
  done = subprocess.run(
    [
      *(sys.executable, "-m", "perl_jax.main", "--config=configs/sft.py"),
      *(f"--config.{name}={value}" for name, value in values.items()),
      "--config.profile.steps=(2,2)",
      f"--workdir={tmp_path / 'run'}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert list((tmp_path / "run/profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_command_trains_and_another_is_refused(tmp_path):
  """The tiny model for a few steps; warnings are errors there as here."""
  values = tiny.fields("sft") | {"steps": 2, "eval_every": 1, "eval.rows": 0}
  arguments = [
    "--config=configs/sft.py",
    *(f"--config.{name}={value}" for name, value in values.items()),
    f"--workdir={tmp_path / 'run'}",
  ]
  done = start(*arguments)
  out, err = done.communicate(timeout=500)
  assert done.returncode == 0, err
  assert "data: " in err and "orbax" not in err.lower()
  assert "sft" in out
  rows = files.read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]
  command = (tmp_path / "run" / "command.txt").read_text()
  assert "--config.model.preset=tiny" in command
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["steps"] == 2

  other = start(*arguments, "--config.steps=3")
  _, err = other.communicate(timeout=500)
  assert other.returncode == 1 and "Traceback" not in err
  assert "config.steps: 2 -> 3" in err.splitlines()[-2], err
