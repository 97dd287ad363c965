"""Libraries that some tests need and that need not be there."""

from importlib.util import find_spec

# Test files, and what they cannot do without.
NEEDED = {
    "fronts/test_torch*.py": ["torch"],
    "fronts/test_torch*opinfo.py": ["torch", "expecttest"],
    "linear/test_linear_torch.py": ["torch"],
    "fronts/test_transformers*.py": ["torch", "transformers", "accelerate", "peft"],
    "fronts/test_jax*.py": ["jax", "optax"],
    "fronts/test_boosting_training.py": ["xgboost", "lightgbm", "sklearn"],
    "fronts/test_boosting_defaults.py": ["xgboost", "lightgbm", "sklearn"],
    "fronts/test_boosting_catboost.py": ["catboost"],
    "fronts/test_boosting_selection.py": ["xgboost", "lightgbm", "sklearn"],
    "fronts/test_boosting_guide.py": ["xgboost", "lightgbm", "catboost"],
    "files/test_safetensors_package.py": ["safetensors"],
    "fronts/test_dask*.py": ["dask"],
    "fronts/test_dask_cluster.py": ["dask", "distributed"],
    "bench/test_bench.py": ["rich"],
    "bench/test_fronts.py": ["rich"],
    "bench/test_plots.py": ["matplotlib"],
    "bench/test_fine_tuning.py": ["torch", "transformers"],
    "bench/test_thin_products.py": ["torch", "scipy"],
    "bench/test_distillation_study.py": ["torch"],
    "bench/test_log_probs_study.py": ["torch"],
    "docs/test_site.py": ["myst_parser", "numpydoc", "pydata_sphinx_theme", "matplotlib"],
}


# Libraries that share a process with this one, in process/test_processes.py.
NEIGHBOURS = ["torch", "sklearn", "jax"]


def missing(libraries):
    return [name for name in libraries if find_spec(name) is None]
