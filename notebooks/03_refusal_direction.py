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
# # 03 · The refusal direction
# Arditi et al. 2024, *Refusal in Language Models Is Mediated by a Single Direction*
# ([arXiv:2406.11717](https://arxiv.org/abs/2406.11717)): each figure of the paper that plots data, in its order
# and under its number. Results are read from a stored run, which needs no model; `SOURCE = "computed"` runs the
# experiment here instead. In brackets are 95% intervals; n = 100 prompts of each kind where nothing else is said.
#
# - *Ablating* a direction takes every activation's part along it away, at all layers and tokens; *adding* it adds
#   its own length once, at its own layer; *subtracting* takes that length off instead.
# - A reply is a *refusal* when it contains one of a list of phrases such as "I cannot": the paper's list of 12, or
#   a longer one of 24.
# - The *control* is a random direction, treated in the same way.

# %%
import interp

SOURCE = "stored"  # "computed": about 15 minutes on two cores
run = interp.run("refusal-direction", source=SOURCE, settings={"sweep": "exhaustive"})
figures = run.figures()

# %% [markdown]
# **Figure 1.** The paper: ablating one direction takes the refusal of harmful requests away, in 13 models. Here it
# falls from 96% to 1% [0, 5], also when the weights are edited once and for all (*orthogonalised*: no matrix can
# write along the direction any more); with the random direction it is 97%.

# %%
figures["fig01_bypass"]

# %% [markdown]
# **Figure 3.** The paper: adding the direction makes harmless requests refused. Here 92% [85, 96] of them, against
# 4% without and 3% with the random direction.

# %%
figures["fig03_induce"]

# %% [markdown]
# **Figure 5.** The paper: an adversarial suffix takes the direction out of the last token's activations, to the
# level of harmless prompts; a random suffix does not. Here the request is put into *wrappers* (texts around it, by
# the names in the legend) instead of an optimised suffix, and none goes that far: at layer 16 the cosine of the last
# token with the direction is 0.18 for plain harmful requests, 0.14 to 0.17 in the four wrappers, 0.15 with a random
# suffix and 0.05 for harmless ones.

# %%
figures["fig05_cosine"]

# %% [markdown]
# **Figure 6a.** The paper: the heads that write most to the direction write less of it under the suffix. Here
# head 1 of layer 21 writes 8.6 on plain requests and 5.2 to 8.1 in the wrappers, on harmless requests 1.3.

# %%
figures["fig06a_heads"]

# %% [markdown]
# **Figure 6b.** The paper: these heads' attention moves from the instruction to the suffix. Here head 2 of layer 14
# does so: 0.91 of its attention goes to the request, 0.43 when a random suffix follows, which gets 0.49.

# %%
figures["fig06b_attention"]

# %% [markdown]
# **Figure 9.** The paper: harmful and harmless prompts are answered with different first words. Here with "I" (mean
# probability 0.99) and with "Sure" (0.98). First tokens that are likely on harmful prompts alone are the *refusal
# tokens*.

# %%
figures["fig09_first_tokens"]

# %% [markdown]
# **Figure 10.** The paper: the *refusal metric*, the log-odds of the refusal tokens as the first token, separates
# the two kinds of prompts. Here it is above 0 for 127 of 128 harmful and 2 of 128 harmless training prompts.

# %%
figures["fig10_refusal_metric"]

# %% [markdown]
# **Figure 11.** The paper: scores of every *candidate*, one direction for each layer and template token. The *bypass*
# score is the refusal metric of harmful prompts under ablation, lower is better; the *induce* score that of harmless
# ones under addition, which must be above 0; *KL* is how much ablation changes the answers to harmless prompts, at
# most 0.1. Only 6 of 180 candidates satisfy the rule here; the star is the pick, at layer 15, with a KL of 0.098,
# just under the limit.

# %%
figures["fig11_selection"]

# %% [markdown]
# **Figure 22.** The paper: subtracting the direction pushes harmless activations off their distribution. Here, too:
# harmless prompts move from 50 to 77 along the first principal component, beyond where they were; harmful prompts
# move from -50 to 32.

# %%
figures["fig22_scatter"]

# %% [markdown]
# **Figure 23.** The paper: subtraction removes refusals about as well as ablation does. Here it removes most of
# them: 17% [11, 26] are left.

# %%
figures["fig23_subtract"]

# %% [markdown]
# **Figure 24.** The paper: the base model, never trained to refuse, tells the two kinds apart along the same
# direction. Here, too, and less: at layer 15 the mean cosines are 0.08 and 0.04 in the base model, 0.12 and 0.02
# in the chat model.

# %%
figures["fig24_base_model"]

# %% [markdown]
# **Table 9.** The paper: ablation costs less than subtraction in cross-entropy, the loss on text. Not here: +0.29
# nats per token on the model's own replies against +0.12, +0.17 against +0.08 on other text.
#
# ## The same on an aligned model
# Qwen2.5-Coder-0.5B-Instruct was aligned by its makers, not by us. No candidate meets the published rule, so its
# limit on KL is relaxed to 1, which every title says. Ablation takes refusals from 72% to 1% as well, and here
# it does cost less cross-entropy.

# %%
aligned = interp.open_run("../figures/refusal-direction-qwen2.5-coder-0.5b")
aligned.table()

# %% [markdown]
# And one wrapper, the affirmative opening, does what the paper's suffix did: at layer 18 it takes the cosine from
# 0.25 to 0.02, below that of harmless requests (0.05).

# %%
aligned.figures()["fig05_cosine"]

# %% [markdown]
# Next: [04, harmfulness against refusal](04_harmfulness.ipynb).
