"""What slimformer is made of, and what it needs. The packages are listed by hand: the tests are never installed."""

from setuptools import setup

setup(
    name="slimformer",
    version="0.1.0",
    description="Vision transformers slimmed to a latency budget, on the machine you measured.",
    author="slimformer contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "supernet",
        "supernet.zoo",
        "search",
        "search.runtimes",
        "train",
        "experiments",
        "experiments.benchmarks",
        "analysis",
    ],
    package_data={
        "supernet": ["py.typed", "published.yaml"],
        "supernet.zoo": ["*.yaml"],
        "search": ["py.typed"],
        "train": ["py.typed"],
        "experiments": ["py.typed", "*.yaml", "studies/*.yaml"],
        "analysis": ["py.typed", "templates/*"],
    },
    include_package_data=False,
    entry_points={"console_scripts": ["slimformer = experiments.cli:main"]},
    install_requires=[
        # The default build of torch: its CPU-only wheel cannot load torchvision's.
        "torch>=2.8",
        "torchvision>=0.23",
        "timm>=1.0.31",
        "einops>=0.8",
        "numpy>=1.26",
        "scipy>=1.13",
        "optuna>=5.0",  # whose trials have constraints
        "sqlalchemy>=2.0",  # what optuna stores with: its errors are caught
        "pydantic>=2.11",
        "pyyaml>=6.0.1",
        "typing_extensions>=4.9",  # assert_never, on Python 3.10
        "safetensors>=0.5",
        "pillow>=10.3",
        "typer>=0.15",
        "rich>=13.7",
        "tensorboard>=2.18",
        "onnx>=1.18",
        "onnxscript>=0.4",  # torch.onnx.export needs it, and does not declare it
        "onnxruntime>=1.22",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "scikit-learn>=1.5",
    ],
    extras_require={
        "openvino": ["openvino>=2025.0"],
        # Wheels for Python 3.10 to 3.14 on Linux (x86-64, arm64), macOS (arm64) and Windows, all with XNNPACK.
        "executorch": ["executorch>=1.5"],
        "mnn": ["mnn>=3.4"],  # wheels for Python 3.8 to 3.14 on Linux, macOS and Windows
        # It has no wheel for Python 3.14 yet, none for Windows, and on Linux it converts alone.
        "coreml": ["coremltools>=9.0"],
        "postgresql": ["psycopg[binary]>=3.2"],  # evolution's storage on a server
        "test": [
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "mypy>=1.18",
            "types-PyYAML",
            "openvino>=2025.0",
            "mnn>=3.4",
            "psycopg[binary]>=3.2",
        ],
    },
)
