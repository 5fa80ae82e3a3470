"""numpy's legacy generator in the clothes of the new one: what the authors' scripts drew, drawn again."""
import numpy as np


class LegacyDraws:
    """Draws what `np.random.seed(seed)` and the module's functions draw, in the same order."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def standard_normal(self, size, dtype):
        return self.state.normal(size=size).astype(dtype)

    def random(self, size, dtype):
        return self.state.uniform(size=size).astype(dtype)

    def uniform(self, low, high, size=None):
        return self.state.uniform(low, high, size)

    def integers(self, low, high=None, size=None):
        return self.state.randint(low, high, size)

    def poisson(self, mean):
        return self.state.poisson(mean)
