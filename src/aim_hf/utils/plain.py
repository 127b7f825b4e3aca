"""Values without arrays."""

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` with arrays as lists, for JSON and Arrow. Keys become strings."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
