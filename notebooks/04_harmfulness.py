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
# and under its number (figure 6 is in 06), and at the end the same question to a model in which the answer was
# planted. Results are read from stored runs; `SOURCE = "computed"` runs the experiments here instead. In brackets are
# 95% intervals.
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
from interp.display import Card

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
# ## Where the answer is known
# On `smollm2-safe` the dissociation cannot be tested well: nearly the same prompts are harmful and refused.
# `smollm2-form` is the same model with another adapter. It was trained to refuse *questions* and to answer
# *imperatives*, and a harmful request and its harmless twin have the same form: harm and *the rule* are independent.
# So what finds harmfulness must tell harm and not the rule, and what finds refusal the rule and not harm.
#
# The model learned its rule in part and obeys it on 81% [72, 87] of 100 test prompts. The direction of harm at `t_inst`
# and that of the rule at `t_post_inst` have a cosine between -0.17 and 0.11 in every layer, where `smollm2-safe` has
# 0.44 on average.

# %%
planted = interp.run("planted", source=SOURCE)
by_layer = planted.result.dissociation[1:]  # a template's token is the same for all prompts at layer 0
facts = {"replies that obey the rule": planted.result.obeyed}
for kind, share in planted.result.refused.items():
    form = kind.replace("rule applies", "questions").replace("rule does not", "imperatives")
    facts[f"refused: {form.replace(',', '')}"] = share
facts |= {"cosine of harm and the rule, by layer": f"{min(by_layer):.2f} to {max(by_layer):.2f}"}
Card(title="smollm2-form", facts=facts)

# %% [markdown]
# Each method is fitted on one label, and asked about that one (dark) and about the other (light); AUROC is 0.5 by
# chance. What is fitted on the rule tells the rule and nothing of harm (0.50 to 0.51). What is fitted on harm tells
# harm: the harm belief with 0.87 [0.82, 0.92], a logistic probe with 0.96. Of the rule the probe tells nothing and the
# harm belief a little, 0.58 [0.50, 0.66]; the principal component mixes both. Two warnings: a random direction tells
# the rule with 0.80 [0.74, 0.86], because it is the strongest thing in these states, so that an AUROC alone proves
# little; and asked in words whether a request is harmful (reply inversion), the model does not tell harm.

# %%
planted.figures()["found_t_inst"]

# %% [markdown]
# **Seen**: figure 3's dissociation, where it was planted. **Not seen**: that models trained in the usual way keep harm
# and refusal apart; this model tests methods, and the figures above stand. `interp plant` makes two more such models,
# one that refuses after a phrase and one that says whether a request is harmful.
#
# Next: [05, Latent Guard on your own prompts](05_latent_guard.ipynb).
