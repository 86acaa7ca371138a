"""sparsify's SparseCoder and its Adam on rows of a file, in an environment that has it.

    PYTHON peer_train_sparsify.py ROWS.npy topk F BATCH STEPS [--k 32]

Its trainer runs a language model at every step, so the step is done here as that trainer does it:
dictionary rows renormalised, fraction of variance unexplained as the loss, what is parallel to a
row taken out of the gradient, optimiser, firing counts. No AuxK: its coefficient is 0 by default.
The optimiser is its `adam`, with a linear warm-up, and a decay to 0 over the run.
"""

import os

import torch
from peer_train_common import Feed, Weights, agrees, arguments, report, swept

os.environ.update(HF_HUB_OFFLINE="1", SPARSIFY_DISABLE_TRITON="1")


def train(args, feed: Feed, k: int):
    """One coder."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(args.seed)
    coder = SparseCoder(feed.width, SparseCoderConfig(num_latents=args.d_sae, k=k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=args.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, args.warmup, args.steps)
    since_fired = torch.zeros(args.d_sae, dtype=torch.long)
    for step, x in zip(range(args.steps), feed, strict=False):
        if step == 0:
            coder.b_dec.data = x.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        since_fired += len(x)
        since_fired[out.latent_indices.flatten()] = 0
    return coder, feed.rate(args.steps)


def weights_of(coder) -> Weights:
    """In our names: its encoder is a linear layer."""
    weights = {
        "W_enc": coder.encoder.weight.T,
        "b_enc": coder.encoder.bias,
        "W_dec": coder.W_dec,
        "b_dec": coder.b_dec,
    }
    return {name: tensor.detach() for name, tensor in weights.items()}


def main() -> None:
    args = arguments(__doc__, ("topk",)).parse_args()
    torch.set_num_threads(args.threads)
    feed = Feed(args)
    for k in swept(args):
        coder, rate = train(args, feed, k)
        report(feed, args, k, weights_of(coder), rate)
        x = next(iter(feed))
        with torch.no_grad():
            agrees(weights_of(coder), coder(x).sae_out, x, "topk", k)


if __name__ == "__main__":
    main()
