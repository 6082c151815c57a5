"""PolicyLong: on-policy long-context data, in JAX.

Ranges, not versions: tests/test_dependencies.py installs both ends of them, and there is an upper bound only where
something newer is known to break. What `make` and CI install is requirements.lock, to the byte.
"""

import pathlib

from setuptools import find_packages, setup

TFDS = ["tensorflow-datasets>=4.9.10"]  # 4.9.7 imports TensorFlow, 4.9.8 cannot read with protobuf 7
TENSORBOARD = ["tensorboardX>=2.6.1"]
WANDB = ["wandb>=0.26"]
HUB = ["datasets>=5.2"]  # the release that sources of kind hub were tried with
# 2.75 wants PyArrow below 24. 2.77 wants NumPy below 2.5, PyArrow below 26 and protobuf below 7: not in `test`, whose
# packages are locked to newer ones, but in an environment of its own, requirements-prepare.lock.
PREPARE = ["apache-beam>=2.76"]
EVALUATION = [
    "lm_eval>=0.4.10",  # 0.4.8 imports a class that transformers 5 has not
    # what RULER's generators import; their package is unpacked, see policylong/material.py
    "nltk>=3.9",
    "tenacity>=8",
    "wonderwords>=2.2",
]
# What the tests, `make lint` and the commit hooks need. With setuptools the project is installed without the network.
TEST = [*TFDS, *TENSORBOARD, *WANDB, *HUB, *EVALUATION,
        "mypy>=2.4", "pre-commit>=4", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.17", "setuptools>=77.0.3"]

setup(
    name="policylong",
    version="0.1.0",
    description="A language model chooses its own long training data, round after round (arXiv 2604.07809)",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["policylong", "policylong.*"]),
    python_requires=">=3.12,<3.14",  # ScaNN has no wheels for 3.14
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        "etils>=1.14",  # 1.13 gives a path no `absolute`
        "flax>=0.12.10",  # older ones import what JAX 0.12 has no more
        "gguf>=0.17",  # 0.16 does not know Qwen3
        "grain>=0.2.12",
        "huggingface_hub>=1.31",  # as datasets 5.2 wants it
        "jax>=0.12",  # the CPU compiler of 0.11.2 aborts in the attention tests; errors.py says so where it is found
        "jaxtyping>=0.2.36",
        "jinja2>=3.1",
        "ml_collections>=1.1",  # 1.0 warns on standard error with Python 3.12
        "numpy>=2.2",  # JAX's own bound, as SciPy's
        "optax>=0.2.5",  # 0.2.4 has no `optax.tree`
        "orbax-checkpoint>=0.12",  # 0.11.0 takes a class from JAX that 0.12 has no more
        "pyarrow>=24",  # as datasets 5.2 wants it
        "pyyaml>=6.0.1",
        "safetensors>=0.4.3",
        "scipy>=1.15",
        "scann>=1.4",  # every config's index; 44 MB
        "tokenizers>=0.22.1",
        "tqdm>=4.66.3",
        "transformers>=5",
        "zstandard>=0.23",  # Arrow's decoder refuses windows above 128 MB
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "evaluation": EVALUATION,
        "hub": HUB,
        "prepare": PREPARE,
        "tensorboard": TENSORBOARD,
        "test": TEST,
        "tfds": TFDS,
        "tpu": ["jax[tpu]"],
        "wandb": WANDB,
    },
)
