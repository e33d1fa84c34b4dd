"""What runtimes take and give: arrays of numbers of any kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
