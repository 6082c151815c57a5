"""PolicyLong: on-policy long-context data, in JAX."""

import pathlib

from setuptools import find_packages, setup

# lm-eval, chat templates, and what RULER's generators import; their package is unpacked, see policylong/material.py.
EVALUATION = ["jinja2==3.1.6", "lm_eval==0.4.13", "nltk==3.10.4", "tenacity==9.2.1", "wonderwords==3.0.1"]

setup(
    name="policylong",
    version="0.1.0",
    description="A language model chooses its own long training data, round after round (arXiv 2604.07809)",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["policylong", "policylong.*"]),
    python_requires=">=3.12,<3.14",
    install_requires=[
        "absl-py==2.5.1",
        "array_record==0.8.6",
        "etils==1.15.0",
        "flax==0.12.12",
        "gguf==0.19.0",
        "grain==0.2.18",
        "jax==0.12.0.1",
        "jaxtyping==0.3.11",
        "jinja2==3.1.6",
        "ml_collections==1.1.0",
        "numpy==2.5.5",
        "optax==0.2.8",
        "orbax-checkpoint==0.12.8",
        "pyarrow==26.0.1",
        "safetensors==0.8.0",
        "scipy==1.18.1",
        "scann==1.4.2",
        "tensorboardX==2.6.5",
        "tensorflow-datasets==4.9.10",
        "tokenizers==0.23.3",
        "tqdm==4.70.1",
        "transformers==5.23.0",
    ],
    extras_require={
        "cuda": ["jax[cuda12]==0.12.0.1"],
        "evaluation": EVALUATION,
        "test": ["pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.6", *EVALUATION],
        "tpu": ["jax[tpu]==0.12.0.1"],
    },
)
