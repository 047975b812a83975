"""Adds to pyproject.toml what it cannot say: packages that are found, and two data folders that live elsewhere.

``templates/`` and ``csrc_headers/`` stay at the root of the repository, and are installed inside the package.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jitmk", "jitmk.*"]), "jitmk._templates", "jitmk._csrc_headers"],
    package_dir={"jitmk._templates": "templates", "jitmk._csrc_headers": "csrc_headers"},
)
