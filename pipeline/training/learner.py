"""One coder's parameters under Adam, with their moving average where one is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from pipeline.train_config import LoopConfig

EMA = "ema."
FIRST, SECOND, COUNT = "exp_avg", "exp_avg_sq", "step"


class Learner:
    """Moves parameters against their gradients.

    The step is torch's, by its function: the optimiser class first loads the compiler, which takes
    as long as half of a short run.

    Args:
        params: One member's share of a stack, by name; changed in place.
        grads: The same of its gradients.
        config: For Adam's settings and the average's decay.
        trained: Which parameters are learned.
        unit_norm: Whether dictionary rows are held at unit norm, by whoever owns the stack.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        config: LoopConfig,
        *,
        trained: tuple[str, ...],
        unit_norm: bool = False,
    ) -> None:
        self.params = dict(params)
        self.unit_norm = unit_norm
        self._betas = config.beta1, config.beta2
        self._trained = trained
        self._grads = [grads[name] for name in trained]
        device = next(iter(params.values())).device
        self._fused = device.type in {"cpu", "cuda"}
        self._state = {
            FIRST: {name: torch.zeros_like(params[name]) for name in trained},
            SECOND: {name: torch.zeros_like(params[name]) for name in trained},
            COUNT: {name: torch.zeros((), device=device) for name in trained},
        }
        self.n_steps = 0
        self._decay = config.ema
        self._average = {} if config.ema is None else {n: params[n].clone() for n in trained}

    def step(self, lr: float) -> None:
        """One step of Adam."""
        beta1, beta2 = self._betas
        self.n_steps += 1
        adam(
            [self.params[name] for name in self._trained],
            self._grads,
            [*self._state[FIRST].values()],
            [*self._state[SECOND].values()],
            [],
            [*self._state[COUNT].values()],
            foreach=not self._fused,
            fused=self._fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def track(self) -> None:
        """Take the parameters, as the step left them, into their average."""
        if self._decay is not None:
            for name, average in self._average.items():
                average.lerp_(self.params[name], 1 - self._decay)

    @property
    def result(self) -> dict[str, Tensor]:
        """The parameters to keep: averaged ones where an average is kept."""
        return self.params | self._average

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's two moments by name, then parameter."""
        return {name: self._state[name] for name in (FIRST, SECOND)}

    def state(self) -> dict[str, Tensor]:
        """What is needed, beside the parameters, to go on to the same bits."""
        averages = {f"{EMA}{name}": average for name, average in self._average.items()}
        return averages | {
            f"{name}.{key}": value
            for key, values in self._state.items()
            for name, value in values.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.n_steps = int(state[f"{self._trained[0]}.{COUNT}"])
