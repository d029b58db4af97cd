"""A run says what is wrong with its policy when it begins, and once."""

from perl_jax import files
from perl_jax.tasks.evaluation import warnings


def test_a_warning_is_logged_when_it_begins_to_hold(tmp_path, caplog):
  kls = {0: 0.0, 10: 12.0, 20: 13.0, 30: 4.0, 40: 15.0}
  rows = []

  def evaluate(state, step):
    assert state == "state"
    return {"validation/kl": kls[step], "validation/kl_per_token": 0.5}

  warned = warnings.warned(evaluate, tmp_path, 8)
  for step in kls:
    files.write_jsonl(tmp_path / "metrics.jsonl", rows)
    found = warned("state", step)
    assert found == evaluate("state", step)
    rows.append({"step": step} | found)
  said = [record.getMessage() for record in caplog.records]
  assert [text.split(": ")[0] for text in said] == ["Step 10", "Step 40"]
  assert "12.0 nats" in said[0] and "15.0 nats" in said[1]
