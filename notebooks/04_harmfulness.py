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
# experiment here instead. In brackets are 95% intervals.
#
# - *Harmfulness* is read at `t_inst`, the last token of the instruction; *refusal* at `t_post_inst`, the last token of
#   the prompt.
# - The *groups*: harmful prompts that the model refuses (96) or accepts (4), harmless and borderline ones that it
#   refuses (31) or accepts (129). Groups of 4 are too small to test what the paper says about them.
# - A *centre* is the mean activation of training prompts, refused harmful or accepted harmless ones. A *belief* is
#   the cosine to the first minus that to the second, averaged over layers: above 0 is nearer to refused harmful ones.
# - What is read or steered at `t_inst` is shown with prompts as they are, stripped of closing punctuation, and ended
#   by a full stop (see 02).

# %%
import interp

SOURCE = "stored"  # "computed": about half an hour on two cores
run = interp.run("harmfulness", source=SOURCE, settings={"steer_every": 3})
figures = run.figures()

# %% [markdown]
# **Table 1.** The paper: without the template's tokens after the instruction, models refuse less. Here, too: harmful
# prompts 67% [57, 75] instead of 96%, most of them by replies without a word (62%), which the paper's rule counts as
# refusals; stripped of their closing punctuation, 4%.

# %%
run.table()

# %% [markdown]
# **Figure 2.** The paper: at `t_inst` a prompt lies with its kind, whatever the model does with it; at
# `t_post_inst` it lies with what the model does. Here the accepted harmful prompts do: they lie on the harmful side
# at `t_inst` and on the harmless side at `t_post_inst`. The refused harmless ones do not: they lie on the harmful
# side at both tokens.

# %%
figures["fig02_clusters"]

# %% [markdown]
# **Figure 3.** The paper: four groups in the plane of the two beliefs, each where its kind and its answer put it.
# Here the refusal belief tells refused from accepted harmless prompts with an AUROC of 0.99 (the share of pairs in the
# right order), but the harm belief tells harmful from harmless among refused prompts less well (0.67) than the
# refusal belief does (0.85).

# %%
figures["fig03_beliefs"]

# %% [markdown]
# **Section 3.2.** The paper: the two directions are nearly orthogonal, with a cosine of about 0.1. Here it is 0.44
# [0.38, 0.49] averaged over layers. Two random directions would lie in the grey band.

# %%
figures["geometry_cosine"]

# %% [markdown]
# Along the harmfulness direction, held-out groups separate by kind, if at all, from layer 13 on; along the refusal
# direction by what the model does, from layer 15 on.

# %%
figures["geometry_yardstick"]

# %% [markdown]
# **Figure 4.** The paper: adding either direction to harmless prompts makes the model refuse, each at its own
# layers. Here so do both: harmfulness at layer 15 in 96% [80, 99] of 24 prompts, refusal at layer 18 in all of them,
# random directions of the same length in none.

# %%
figures["fig04_refusal_steering"]

# %% [markdown]
# **Figures 5a, 5b, 10 and 16** are not drawn. In the paper the model is asked whether a request is harmful, and its
# verdict follows the harmfulness direction with its sign. This model, unsteered, answers none of the questions well
# enough for that. Give `interp.run` a larger model to draw them.
#
# **Figure 14.** The paper: of all tokens from `t_inst` on, only `t_inst` itself puts accepted harmful prompts on
# the harmful side and refused harmless ones on the other. Here no token does: at `t_inst` both groups lie above 0,
# at 0.006 and 0.002.

# %%
figures["fig14_positions"]

# %% [markdown]
# **Figure 15.** The paper: the same, layer by layer. Here the refused harmless prompts rise at `t_post_inst` from
# layer 15 on, to 0.07, where the accepted harmful ones fall; choose the token at the top right.

# %%
figures["fig15_position_layers"]

# %% [markdown]
# **How prompts end** is not in the paper, and decides how much of a direction at `t_inst` is about harm: stripped of
# closing punctuation, the harm belief separates harmful from harmless prompts least (0.89), and the two directions
# are least alike (cosine 0.30).

# %%
figures["confound_endings"]

# %% [markdown]
# Next: [05, Latent Guard on your own prompts](05_latent_guard.ipynb).
