"""sparsify's SparseCoder and its optimiser on rows of a file, in an environment that has it.

    PYTHON peer_train_sparsify.py ROWS.npy topk F BATCH STEPS [--k 32] [--optimizer signum]

Its trainer runs a language model at every step, so the step is done here as that trainer does it:
dictionary rows renormalised, fraction of variance unexplained as the loss, what is parallel to a
row taken out of the gradient, optimiser, firing counts. No AuxK: its coefficient is 0 by default.
`adam` has its linear warm-up and decay to 0 over the run; `signum`, its default, is schedule-free
and takes the learning rate 5e-3 / sqrt(F / 16384) unless told.
"""

import os

import torch
from peer_train_common import Feed, Weights, arguments, each, report, swept

os.environ.update(HF_HUB_OFFLINE="1", SPARSIFY_DISABLE_TRITON="1")


def make_optimizer(args, coder):
    """Its optimiser, and a schedule or None."""
    from transformers import get_linear_schedule_with_warmup

    if args.optimizer == "adam":
        adam = torch.optim.Adam(coder.parameters(), lr=args.lr)
        return adam, get_linear_schedule_with_warmup(adam, args.warmup, args.steps)
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    lr = args.signum_lr or 5e-3 / (args.d_sae / 2**14) ** 0.5
    signum = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=lr), momentum=0.95)
    signum.train()
    return signum, None


def train(args, feed: Feed, k: int):
    """One coder; it and its optimiser's averaging are left as they are for use."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    torch.manual_seed(args.seed)
    coder = SparseCoder(feed.width, SparseCoderConfig(num_latents=args.d_sae, k=k))
    optimizer, schedule = make_optimizer(args, coder)
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
        if schedule:
            schedule.step()
        since_fired += len(x)
        since_fired[out.latent_indices.flatten()] = 0
    rate = feed.rate(args.steps)
    if args.optimizer == "signum":
        optimizer.eval()
    return coder, rate


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
    parser = arguments(__doc__, ("topk",))
    parser.add_argument("--optimizer", choices=("adam", "signum"), default="adam")
    parser.add_argument("--signum-lr", type=float, help="Of signum; --lr is adam's.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    feed = Feed(args)
    for one in each(args):
        for k in swept(one):
            coder, rate = train(one, feed, k)
            report(feed, one, k, weights_of(coder), rate, lambda x, coder=coder: coder(x).sae_out)


if __name__ == "__main__":
    main()
