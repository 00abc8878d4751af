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
# # 06 · Jailbreaks and categories
# Three more questions of Zhao et al. 2025 ([arXiv:2507.11878](https://arxiv.org/abs/2507.11878)): which of the two
# beliefs does a jailbreak move, is harm one direction or one for each kind of it, and what of both is left when a
# model is fine-tuned to comply? Stored results again; `SOURCE = "computed"` runs the experiments here.

# %%
import interp

SOURCE = "stored"  # "computed": about half an hour on two cores
jailbreaks = interp.run("jailbreaks", source=SOURCE, settings={"n_test": 40})
jailbreaks

# %% [markdown]
# A wrapper is text around a request, written by this project: templates and persuasion. A *success* is a request
# that the model refuses when asked plainly and answers when wrapped, judged by how its reply sounds; whether the
# answer is of any use is another question.

# %%
drawn = jailbreaks.figures()
drawn["success"]

# %% [markdown]
# **Figure 6.** The paper: jailbreaks that work suppress the refusal belief; only part of persuasion makes the
# model believe that the request is harmless. Here: both beliefs of the successes beside plain harmful requests
# that are refused, with prompts as they are and all ended by a full stop.

# %%
drawn["fig06_beliefs"]

# %% [markdown]
# How far each belief moves, request by request, in shares of the gap between plain harmful and harmless ones. On
# this model templates move both beliefs; persuasion frees too few requests to say.

# %%
drawn["shifts"]

# %% [markdown]
# ## Categories
# The authors write that harmfulness directions vary by category of harm while refusal directions are more alike.

# %%
categories = interp.run("categories", source=SOURCE)
categories

# %% [markdown]
# Cosines between the directions of different categories; the slider goes through the layers, its first stop is
# their mean.

# %%
figures = categories.figures()
figures["category_cosines"]

# %% [markdown]
# Their mean over all pairs, layer by layer. The grey band is what shuffled category labels give: only below it do
# categories differ by more than the noise of few prompts.

# %%
figures["off_diagonal"]

# %% [markdown]
# What the data say, with prompts as they are and with equal endings:

# %%
for verdict in categories.verdicts():
    print("-", verdict)

# %% [markdown]
# ## Fine-tuned to comply
# The model is trained on requests that it refuses, each with an empty affirmative reply ("Sure, here is how to do
# that."): nothing is taught but to agree. Two controls see as many examples: the same requests with refusals, and
# harmless requests with the same stubs.

# %%
settings = {"sizes": [50, 100, 200], "n_centres": 60, "n_test": 30}
tuned = interp.run("adversarial-finetune", source=SOURCE, settings=settings)
tuned

# %% [markdown]
# **Figure 7.** The paper: layer by layer, the harm belief after fine-tuning on 50 to 400 examples lies on the one
# before. Here: a line for each number of examples, held-out harmful requests, with prompts as they are and all
# ended by a full stop.

# %%
curves = tuned.figures()
curves["fig07_harm_belief"]

# %% [markdown]
# The refusal belief of the same requests: it goes with the behaviour.

# %%
curves["fig07_refusal_belief"]

# %% [markdown]
# A guard that was fitted before the fine-tuning, on the model after it:

# %%
curves["guard"]

# %% [markdown]
# Next: [07, elasticity and tracking your own fine-tune](07_elasticity_and_tracking.ipynb).
