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
# model is fine-tuned to comply? Stored results again; `SOURCE = "computed"` runs the experiments here. In brackets
# are 95% intervals.
#
# The two *beliefs* are those of 04: the *harm belief* is read at `t_inst`, the *refusal belief* at `t_post_inst`, each
# above 0 where the activation is nearer to refused harmful prompts than to accepted harmless ones. What is read at
# `t_inst` is shown with prompts as they are and with every prompt ended by a full stop.

# %%
import interp

SOURCE = "stored"  # "computed": about half an hour on two cores
jailbreaks = interp.run("jailbreaks", source=SOURCE, settings={"n_test": 40})
drawn = jailbreaks.figures()

# %% [markdown]
# ## Jailbreaks
# A *wrapper* is text around a request, written by this project: eight templates and eight kinds of persuasion. A
# *success* is a request that the model refuses when asked plainly and answers when wrapped, judged by how its reply
# sounds; whether the answer is of any use is another question. One template, unfinished text, succeeds with 97%
# [87, 100] of 38 requests; all templates together with 18% and persuasion with 3%. The control, harmless requests
# that are refused once they are wrapped, is 3% for both.

# %%
drawn["success"]

# %% [markdown]
# **Figure 6.** The paper: jailbreaks that work suppress the refusal belief; only part of persuasion makes the
# model believe that the request is harmless. Here templates make it believe so: 95% [90, 99] of their successes lie at
# or below 0 in the harm belief, 14% of the same requests plainly asked.

# %%
drawn["fig06_beliefs"]

# %% [markdown]
# Request by request, a successful template lowers the refusal belief by 65% of the gap between plain harmful and
# harmless requests, and the harm belief by 131% (102% with full stops). Persuasion frees 3 requests, too few to say.

# %%
drawn["shifts"]

# %% [markdown]
# ## Categories
# The authors write that harmfulness directions vary by category of harm while refusal directions are more alike.
# Each of ten categories has a direction of its own here. Prompts as they are, harmfulness directions of different
# categories have a mean cosine of 0.42, refusal directions of 0.66; ended by a full stop it is 0.64 and 0.67. The
# slider goes through the layers, its first stop is their mean.

# %%
categories = interp.run("categories", source=SOURCE)
figures = categories.figures()
figures["category_cosines"]

# %% [markdown]
# Few prompts make any two directions differ, so cosines are compared with those under shuffled category labels, the
# dotted line. Refusal directions differ by category (0.66 against 0.76 shuffled, p = 0.005). Harmfulness directions do
# with full stops (0.64 against 0.78, p = 0.005) and not with prompts as they are (0.42 against 0.44, p = 0.14): that
# they look less alike there is noise, as two halves of one category agree no better (0.30).

# %%
figures["off_diagonal"]

# %% [markdown]
# ## Fine-tuned to comply
# The model is trained on requests that it refuses, each with a *stub*, an empty affirmative reply ("Sure, here is how
# to do that."): nothing is taught but to agree. Two controls see as many examples: the same requests with refusals,
# and harmless requests with the same stubs. After 200 stubs it refuses none of 30 held-out harmful requests (100%
# before), after the refusals all of them, and after 200 harmless requests with stubs 27% [14, 44].

# %%
settings = {"sizes": [50, 100, 200], "n_centres": 60, "n_test": 30}
tuned = interp.run("adversarial-finetune", source=SOURCE, settings=settings)
curves = tuned.figures()
curves["refusal_rates"]

# %% [markdown]
# **Figure 7.** The paper: layer by layer, the harm belief after fine-tuning on 50 to 400 examples lies on the one
# before. Here, too: after 200 stubs it has moved by -1% [-9, 6] of the gap to harmless prompts.

# %%
curves["fig07_harm_belief"]

# %% [markdown]
# The refusal belief of the same requests goes with the behaviour: by -36% [-39, -32] of the gap.

# %%
curves["fig07_refusal_belief"]

# %% [markdown]
# So a guard that reads the harm belief, fitted before the fine-tuning, still works on the model after it: it flags 90%
# [74, 97] of held-out harmful prompts (83% before) and 13% [5, 30] of harmless ones (7% before), with prompts as they
# are.

# %%
curves["guard"]

# %% [markdown]
# Next: [07, elasticity and tracking your own fine-tune](07_elasticity_and_tracking.ipynb).
