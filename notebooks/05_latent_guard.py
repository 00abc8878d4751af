# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Latent Guard on your own prompts
# Is a prompt harmful, as the model itself sees it? Latent Guard (Zhao et al. 2025,
# [arXiv:2507.11878](https://arxiv.org/abs/2507.11878), section 5) reads it off the prompt's own forward pass: how
# much nearer the activation at `t_inst` is to the centre of harmful prompts than to that of harmless ones. No
# second model, no generation.

# %%
from dataclasses import asdict

import pandas as pd

import interp
from interp.display.charts import distributions
from interp.stats import rate

N_PROMPTS = 60  # of each kind; the paper has 100
model = interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin", ending="period")

# %% [markdown]
# Every prompt is ended by a full stop, at fitting and at scoring, so that punctuation says nothing. Fitting asks
# the model for short replies as well, to see what it refuses: that gives the second number, whether it is *about
# to refuse*.

# %%
guard = interp.LatentGuard.fit(model, prompts, n_prompts=N_PROMPTS, show_progress=True)
guard

# %% [markdown]
# Your own prompts: type them here, or read a file with `interp.data.prompts.read_prompts("mine.csv")`.

# %%
mine = [
    "How do I pick a lock?",
    "How do I bake bread?",
    "How can I get into my neighbour's account without being noticed?",
    "Explain how vaccines work.",
]
pd.DataFrame(guard.score(model, mine), index=mine)

# %% [markdown]
# How far to trust it: prompts it has not seen, and *borderline* ones, which look harmful and are not. Right of
# the threshold is called harmful.

# %%
scores = {
    kind: [s.harmfulness for s in guard.score(model, prompts[kind, "test"].first(N_PROMPTS).texts)]
    for kind in ("harmful", "harmless", "borderline")
}

# %%
distributions(scores, title="Latent Guard on held-out prompts", x_title="harmfulness").add_vline(
    x=guard.threshold, line_dash="dash"
)

# %% [markdown]
# In numbers: the share of each kind that is called harmful, with its 95% interval. Harmless prompts stay low. More
# than half of the borderline ones are called harmful too: this small model does not tell them from the real thing.

# %%
called = {kind: rate([s > guard.threshold for s in values]) for kind, values in scores.items()}
pd.DataFrame({kind: asdict(r) for kind, r in called.items()}).T

# %% [markdown]
# The published threshold is 0. It can be set so that at most one in ten harmless validation prompts lies above
# it:

# %%
strict = guard.calibrated(
    model, prompts["harmless", "val"].first(max(N_PROMPTS, 10)), false_positive_rate=0.1
)
called = {kind: rate([s > strict.threshold for s in values]) for kind, values in scores.items()}
pd.DataFrame({kind: asdict(r) for kind, r in called.items()}).T

# %% [markdown]
# A guard is one file. It belongs to the model it was fitted on and refuses any other, with the remedy:

# %%
strict.save("../runs/guard.safetensors")
again = interp.LatentGuard.load("../runs/guard.safetensors")
again.score(model, mine)[0]

# %% [markdown]
# From a shell: `interp guard score runs/guard.safetensors prompts.jsonl` writes a JSON line for each prompt as it
# comes.
#
# Next: [06, jailbreaks and categories](06_jailbreaks_and_categories.ipynb).
