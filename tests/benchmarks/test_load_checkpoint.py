"""The checkpoint that the benchmark of reading makes can be read."""

from benchmarks import load_checkpoint
from tests.interop import tiny


def test_what_is_made_is_read(tmp_path, monkeypatch):
  small = dict(vocab_size=64, width=32, mlp_width=64, num_heads=4)
  small |= dict(num_kv_heads=4, head_dim=8)
  monkeypatch.setattr(load_checkpoint, "SHAPE", load_checkpoint.SHAPE | small)
  load_checkpoint.make(tmp_path / "made", 2, 10_000)
  assert len(list((tmp_path / "made").glob("*.safetensors"))) > 1
  found = tiny.load(tmp_path / "made", "bfloat16")
  assert found.config.num_layers == 2 and found.config.width == 32
