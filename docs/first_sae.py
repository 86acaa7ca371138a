"""A first sparse autoencoder, cell by cell, on the model and text that come with saepipe.

Open it in an editor that knows `# %%` cells, or run it: `python docs/first_sae.py`. It writes into
the folder `first_sae`, and takes about a minute on two cores.
"""

# %% [markdown]
# # What does the third MLP of a small language model write?

# %%
import saepipe as sp
import torch

STORE, RUN, SITE = "first_sae/acts.actstore", "first_sae/topk", "mlp_out.2"

# %% Run the model over its text once, and keep what the MLP wrote for 20,000 tokens.
sp.harvest(sites=SITE, tokens="20k", out=STORE)
store = sp.ActStore.open(STORE)
store

# %% Find 640 directions, of which 32 add up to each of those vectors.
run = sp.train(store, arch="topk", k=32, expansion=4, lr=1e-3, batch_size=512, out=RUN)
run

# %% How much of a vector is that? Of its variance:
sae = run.sae
x = torch.from_numpy(store[SITE][:2000])
with torch.no_grad():
    left = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
1 - left.item()

# %% And of what it does for the model? 1 would be all of it, 0 as little as writing nothing.
report = sp.evaluate(run, tokens="2k", n_bootstrap=100)
report.loss_recovered

# %% What do the directions stand for? The contexts that the most frequent one is most active in.
features = sp.features(run)
frequent = int(features.frequency.argmax())
features.top(frequent)

# %% Let the model write with the SAE in place of its MLP, and with that one feature turned off.
model = sp.LanguageModel.from_pretrained("builtin", device="cpu")


def without_it(x: torch.Tensor) -> torch.Tensor:
    """What the SAE makes of `x`, less the one feature."""
    z = sae.encode(x)
    z[..., frequent] = 0
    return sae.decode(z)


prompt = "def read(path):"
with model.spliced({SITE: sae}):
    with_it = model.generate(prompt, max_new_tokens=20)
with model.spliced({SITE: without_it}):
    less = model.generate(prompt, max_new_tokens=20)
with_it, less
