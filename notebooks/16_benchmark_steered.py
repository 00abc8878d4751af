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
# # 16 · A benchmark with and without steering
# Does a push towards refusal cost a model what it knows? *Multiple choice* tells: a choice is scored by the
# log-probability of its letter, averaged over every cyclic order of the choices, so that a model that prefers a letter
# gains nothing and no reply has to be read. Results are read from a stored run of `smollm2-safe`; in brackets are 95%
# intervals.
#
# - The questions are this project's, 48 on safety and law, 12 in each of the four risk groups of SafeLawBench (Cao et
#   al. 2025, [arXiv:2506.06636](https://arxiv.org/abs/2506.06636)). They are no benchmark; the published set goes in
#   the same way: `load_questions("safelawbench")`.
# - *Addition* adds the refusal direction (notebook 03) at its layer, half or once its norm; *ablation* takes it out
#   everywhere. Random directions of its norm are the control.

# %%
import interp
from interp.data import load_questions
from interp.display.cards import Card
from interp.evaluation import option_scores

run = interp.open_run("../figures/safelawbench")
figures = run.figures()

# %% [markdown]
# ## What the model knows
# Nothing of this: it has 15% [7, 27] of the questions right, where chance has 25%, and so a cost in knowledge could
# not be seen on it. The letters say why: 89% of the probability of a letter is on A, whatever choice stands there.

# %%
figures["letters"]

# %% [markdown]
# ## What steering does to it
# Behaviour and choice come apart. Asked to reply in words, the model refuses none of 24 questions, 23 with half the
# direction added and 20 with all of it; but the probability of the right choice changes by 0.003 [-0.001, 0.007] and
# 0.001 [-0.006, 0.008], with random directions by 0.001 [-0.001, 0.003] and 0.002 [-0.002, 0.006].

# %%
run.table()

# %% [markdown]
# Nor does it change more where the law is about critical safety: with all of the direction added by -0.008 [-0.023,
# 0.005] against the other groups. Each point is paired by question; the three random directions of a group stand in
# the order of the table: ablated, half added, added.

# %%
figures["change"]

# %% [markdown]
# ## By hand
# The same with a few questions: plain, steered towards refusal, ablated. Nothing moves here, either: the right choice
# of 8 questions has a probability of 0.24, 0.25 and 0.24.

# %%
N_PROMPTS = 24  # prompts of each kind that the direction is fitted on
N_MEASURED = 8  # questions
model, prompts = interp.load("smollm2-safe"), interp.load_prompts("builtin")
refusal = interp.find_directions(model, prompts, layer=18, n_prompts=N_PROMPTS)["refusal"]
questions = load_questions("builtin").first(N_MEASURED)
arms = {"plain": [], "added": [interp.Add(refusal)], "ablated": [interp.Ablate(refusal)]}
scores = {name: option_scores(model, questions, interventions=arm) for name, arm in arms.items()}

# %%
Card(title="Probability of the right choice", facts={name: s.right_probability for name, s in scores.items()})

# %% [markdown]
# The same model, steered, under any task of Inspect:
#
# ```
# interp eval choices --model "smollm2-safe?direction=refusal.safetensors&coefficient=1"
# ```
#
# Next: [17, machine-written text](17_machine_text.ipynb).
