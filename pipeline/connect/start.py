"""Where a connector starts: at random, at the weights of the layer between, or at a regression."""

from typing import assert_never

import torch

from pipeline.connect.baselines import ridge_connector, weights_connector
from pipeline.connect.connector import Connector
from pipeline.connect.layer_between import Layer, fit_layer, read_layer
from pipeline.connect.moments import Moments
from pipeline.connect.pair import Pair
from pipeline.train_config import ConnectConfig

SCALE = 0.1
"""Of random weights, against those of `nn.Linear`. Between SAEs of the embedded model, after 400
steps of 1,024 rows at l1 1e-3 and lr 1e-3, the FVU is 0.51 with 1 and 0.45 with 0.1."""


def needs_moments(config: ConnectConfig) -> bool:
    """Whether its start is fitted to a sample of rows."""
    return config.start == "regression" or (config.start == "weights" and config.layer is None)


def start_connector(config: ConnectConfig, pair: Pair, moments: Moments | None) -> Connector:
    """The connector before its first step, on the CPU; without a bias, `b` is zero.

    Args:
        config: Which start; its seed is that of random weights.
        pair: The SAEs it lies between.
        moments: Not None where the start `needs_moments`.

    Raises:
        ConfigError: The file of the layer is no layer between the sites.
    """
    match config.start:
        case "random":
            connector = random_connector(config, pair)
        case "weights":
            layer = _layer(config, pair, moments)
            connector = weights_connector(
                pair, layer, activation=config.activation, bias=config.bias
            )
        case "regression":
            assert moments is not None
            connector = ridge_connector(moments, activation=config.activation, bias=config.bias)
        case _:
            assert_never(config.start)
    return connector.cpu()


def random_connector(config: ConnectConfig, pair: Pair) -> Connector:
    """Weights uniform within `0.1 / sqrt(n_in)` of zero; biases zero.

    That is a tenth of what `nn.Linear`, and so S2, starts with. Its outputs are small, but all of
    them are there, half above zero, where one latent in forty is active: on the embedded model they
    begin with an FVU of 3, and the steps that unlearn them are missing in the end.
    """
    n_in, n_out = pair.source.d_sae, pair.target.d_sae
    generator = torch.Generator().manual_seed(config.seed)
    bound = SCALE * n_in**-0.5
    W = torch.empty(n_in, n_out).uniform_(-bound, bound, generator=generator)
    return Connector(W, torch.zeros(n_out), activation=config.activation)


def _layer(config: ConnectConfig, pair: Pair, moments: Moments | None) -> Layer:
    if config.layer is not None:
        return read_layer(config.layer, d_1=pair.source.d_in, d_2=pair.target.d_in)
    assert moments is not None
    return fit_layer(moments.activations)
