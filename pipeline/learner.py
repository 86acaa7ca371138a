"""One coder's parameters under Adam, with their moving average where one is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config import TrainConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
EMA = "ema."


class Learner:
    """Moves parameters against their gradients.

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
        config: TrainConfig,
        *,
        trained: tuple[str, ...],
        unit_norm: bool,
    ) -> None:
        self.params = dict(params)
        self.unit_norm = unit_norm
        self.trained = trained
        device = params["W_dec"].device
        learned = [params[name] for name in trained]
        for name in trained:
            params[name].grad = grads[name]
        self._optimizer = torch.optim.Adam(
            learned,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=device.type in {"cpu", "cuda"},
        )
        self._decay = config.ema
        self._average = {} if config.ema is None else {n: params[n].clone() for n in trained}

    def step(self, lr: float) -> None:
        """One step of Adam."""
        (group,) = self._optimizer.param_groups
        group["lr"] = lr
        self._optimizer.step()

    def track(self) -> None:
        """Take the parameters, as the step left them, into their average."""
        if self._decay is not None:
            for name, average in self._average.items():
                average.lerp_(self.params[name], 1 - self._decay)

    @property
    def result(self) -> dict[str, Tensor]:
        """The parameters to keep: averaged ones where an average is kept."""
        return self.params | self._average

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's two moments by name, then parameter; empty before the first step."""
        state = self._optimizer.state
        return {
            key: {n: state[self.params[n]][key] for n in self.trained if self.params[n] in state}
            for key in MOMENTS[1:]
        }

    def state(self) -> dict[str, Tensor]:
        """What is needed, beside the parameters, to go on to the same bits."""
        state = {f"{EMA}{name}": average for name, average in self._average.items()}
        for name in self.trained:
            kept = self._optimizer.state.get(self.params[name], {})
            state |= {f"{name}.{key}": value for key, value in kept.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, average in self._average.items():
            average.copy_(state[f"{EMA}{name}"])
        kept = {
            i: {key: state[f"{name}.{key}"] for key in MOMENTS}
            for i, name in enumerate(self.trained)
            if f"{name}.step" in state
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
