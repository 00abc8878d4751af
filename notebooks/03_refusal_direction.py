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
# experiment here instead.

# %%
import interp

SOURCE = "stored"  # "computed": about 15 minutes on two cores
run = interp.run("refusal-direction", source=SOURCE, settings={"sweep": "exhaustive"})
run

# %% [markdown]
# On the model organism a few candidates meet the published rule (KL up to 0.1), some only just; on other small models
# none may, and a relaxed limit (`settings={"kl_threshold": 1.0}`) is then said in every title.

# %%
figures = run.figures()
list(figures)

# %% [markdown]
# **Figure 1.** The paper: ablating one direction takes the refusal of harmful requests away, in 13 models. Here:
# so it does, and a random direction of the same length does not.

# %%
figures["fig01_bypass"]

# %% [markdown]
# **Figure 3.** The paper: adding the direction makes harmless requests refused. Here: most of them, against next
# to none with the random direction.

# %%
figures["fig03_induce"]

# %% [markdown]
# **Figure 5.** The paper: an adversarial suffix takes the direction out of the last token's activations, to the
# level of harmless prompts; a random suffix does not. Here, with wrappers instead of an optimised suffix: each
# line is a condition, the band one standard deviation.

# %%
figures["fig05_cosine"]

# %% [markdown]
# **Figure 6a.** The paper: the heads that write most to the direction write less of it under the suffix. Here:
# the same heads under each condition.

# %%
figures["fig06a_heads"]

# %% [markdown]
# **Figure 6b.** The paper: these heads' attention moves from the instruction to the suffix. Here: their attention
# from the last token, by region of the prompt.

# %%
figures["fig06b_attention"]

# %% [markdown]
# **Figure 9.** The paper: harmful and harmless prompts are answered with different first words. Here: the mean
# probability of the ten likeliest first tokens; the refusal tokens are found from this.

# %%
figures["fig09_first_tokens"]

# %% [markdown]
# **Figure 10.** The paper: the refusal metric, log-odds of the refusal tokens, separates the two kinds of
# prompts. Here: harmful ones to the right of zero, harmless ones to its left, with some overlap.

# %%
figures["fig10_refusal_metric"]

# %% [markdown]
# **Figure 11.** The paper: scores of every candidate, a line for each template token. Here: with the KL that the
# rule also limits, and a grey band of random directions; the star is the pick.

# %%
figures["fig11_selection"]

# %% [markdown]
# **Figure 22.** The paper: subtracting the direction pushes harmless activations off their distribution. Here:
# open symbols are the shifted prompts, in the plane of the unmodified ones' first two principal components.

# %%
figures["fig22_scatter"]

# %% [markdown]
# **Figure 23.** The paper: subtraction removes refusals about as well as ablation does. Here: it removes most of
# them.

# %%
figures["fig23_subtract"]

# %% [markdown]
# **Figure 24.** The paper: the base model, never trained to refuse, tells the two kinds apart along the same
# direction. Here: chat model solid, its base model dotted.

# %%
figures["fig24_base_model"]

# %% [markdown]
# What the data say, claim by claim:

# %%
for verdict in run.verdicts():
    print("-", verdict)

# %% [markdown]
# ## The same on an aligned model
# Qwen2.5-Coder-0.5B-Instruct was aligned by its makers, not by us.

# %%
aligned = interp.open_run("../figures/refusal-direction-qwen2.5-coder-0.5b")
aligned

# %%
aligned.figures()["fig05_cosine"]

# %% [markdown]
# Next: [04, harmfulness against refusal](04_harmfulness.ipynb).
