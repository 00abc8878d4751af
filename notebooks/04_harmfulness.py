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
# # 04 · Harmfulness against refusal
# Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately*
# ([arXiv:2507.11878](https://arxiv.org/abs/2507.11878)): each figure of the paper that plots data, in its order
# and under its number (figure 6 is in 06). Results are read from a stored run; `SOURCE = "computed"` runs the
# experiment here instead.

# %%
import interp

SOURCE = "stored"  # "computed": about half an hour on two cores
run = interp.run("harmfulness", source=SOURCE, settings={"steer_every": 3})
figures = run.figures()
list(figures)

# %% [markdown]
# Every panel that reads or steers at `t_inst` is there for prompts as they are, stripped of closing punctuation,
# and ended by a full stop (see 02). The bundled model is small: where the paper's separation is not there, the
# verdicts say so.

# %%
for verdict in run.verdicts():
    print("-", verdict)

# %% [markdown]
# **Figure 2.** The paper: at `t_inst` a prompt lies with its kind, whatever the model does with it; at
# `t_post_inst` it lies with what the model does. Here: the margins towards refused harmful prompts, for harmful
# prompts that are accepted and harmless ones that are refused. The model accepts four harmful prompts, too few to
# test; at `t_post_inst` they lie with what it does, at `t_inst` both groups lie on the harmful side.

# %%
figures["fig02_clusters"]

# %% [markdown]
# **Figure 3.** The paper: four groups in the plane of the two beliefs, each where its kind and its answer put it.
# Here: the same plane; the refusal belief tells refused from accepted prompts well, the harm belief adds little
# to it.

# %%
figures["fig03_beliefs"]

# %% [markdown]
# **Section 3.2.** The paper: the two directions are nearly orthogonal, with a cosine of about 0.1. Here: their
# cosine in each layer is well above that; two random directions would lie in the grey band.

# %%
figures["geometry_cosine"]

# %% [markdown]
# How held-out prompts lie along each direction, group by group: what the directions separate, and from which
# layer on.

# %%
figures["geometry_yardstick"]

# %% [markdown]
# **Figure 4.** The paper: adding either direction to harmless prompts makes the model refuse, each at its own
# layers. Here: so do both, from about the middle layers on, and random directions of the same length do not.

# %%
figures["fig04_refusal_steering"]

# %% [markdown]
# **Figures 5a, 5b and 10.** The paper: asked whether a request is harmful, the model's verdict follows the
# harmfulness direction with its sign, while the refusal direction pushes towards refusing words. Here: drawn
# where the unsteered model answers such questions at all; otherwise the reason is given instead.

# %%
inversion = [name for name in figures if name.startswith(("fig05", "fig10"))]
reasons = [verdict for verdict in run.verdicts() if "figure 5" in verdict]
inversion or reasons

# %%
figures.get("fig05a_inversion_harmless")

# %%
figures.get("fig05b_inversion_harmful")

# %%
figures.get("fig10_instruction_tokens_only")

# %% [markdown]
# **Figure 14.** The paper: of all tokens from `t_inst` on, only `t_inst` itself puts accepted harmful prompts on
# the harmful side and refused harmless ones on the other. Here: the groups' margins at each token; no token has
# both signs on this model, with four accepted harmful prompts.

# %%
figures["fig14_positions"]

# %% [markdown]
# **Figure 15.** The paper: the same, layer by layer. Here: one line for each token.

# %%
figures["fig15_position_layers"]

# %% [markdown]
# **Figure 16.** The paper: inversion works best with directions from `t_inst`. Here: drawn where inversion could
# be measured.

# %%
figures.get("fig16_position_inversion")

# %% [markdown]
# **How prompts end** is not in the paper, and decides how much of a direction at `t_inst` is about harm: the
# cosine and the clusters, for each ending.

# %%
figures["confound_endings"]

# %% [markdown]
# Next: [05, Latent Guard on your own prompts](05_latent_guard.ipynb).
