# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Which alignment lasts?
# Ji et al. 2025 ([arXiv:2406.06144](https://arxiv.org/abs/2406.06144)) call a model *elastic* that falls back to its
# behaviour before alignment under little reverse training. Here one base model is aligned by eight methods, each
# stopped where it refuses as much as the others; all then learn the same empty affirmative *stubs*, and are aligned
# again. A small model and a handful of examples: this shows the comparison, not a ranking of methods. In brackets are
# 95% intervals.

# %%
import interp

SOURCE = "stored"  # "computed": an hour and a half on one core
run = interp.run("method-elasticity", source=SOURCE)
figures = run.figures()
run.table()

# %% [markdown]
# ## What is left under the same stubs
# The curves are of test prompts, which had no part in stopping a method; that is why they do not start at one height.
# The grey lines are controls: an arm that was not aligned, and one aligned on preferences whose sides were drawn by a
# coin.

# %%
figures["declines"]

# %% [markdown]
# The half-life is the number of stubs until half of the way back to the start's refusal rate is gone; the time
# constant does not depend on where a curve starts.

# %%
figures["half_lives"]

# %% [markdown]
# ## Where the model goes
# Back at the base would mean a KL near zero. A refusal rate may return while the model does not.

# %%
figures["kl"]

# %% [markdown]
# Activations of harmful prompts along the refusal direction that was fitted before alignment, in lengths of it.

# %%
figures["inside"]

# %% [markdown]
# ## Code length
# The *code length* of refusals to harmful prompts, in bits per byte, is a smooth measure of what is lost: lower is
# nearer to refusing. Where it grows under the stubs, `figures["exponents"]` has the power of training time with which
# it does; a published theory ([arXiv:2602.15799](https://arxiv.org/abs/2602.15799)) predicts the fourth.

# %%
figures["refusals"]

# %% [markdown]
# ## Aligned again
# *Rehearsal priming* ([arXiv:2605.18309](https://arxiv.org/abs/2605.18309)) predicts that the second alignment takes
# fewer examples than the first.

# %%
figures["both_times"]

# %% [markdown]
# ## What was found, in words
# Seen, not seen or not testable, as the intervals allow.

# %%
print("\n".join(run.verdicts()))

# %% [markdown]
# From a shell: `interp run method-elasticity --set seeds=3`; a killed run goes on at the leg that it was in.
#
# Next: [14, judges](14_judges.ipynb).
