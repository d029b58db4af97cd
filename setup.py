"""Which folders are packages; all else about the project is in pyproject.toml.

`configs/`, which lies beside the package, is installed as `perl_jax/configs`.
"""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["perl_jax*"]), "perl_jax.configs"],
  package_dir={"perl_jax.configs": "configs"},
)
