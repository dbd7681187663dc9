# What setup.py writes to _build_info.py.
TORCH: str
TORCH_CUDA: str | None
CUDA: str | None
CUDA_REASON: str
CUDA_ARCHS: tuple[str, ...]
ISAS: tuple[str, ...]
PYTHON: str
