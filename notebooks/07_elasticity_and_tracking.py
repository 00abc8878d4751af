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
# # 07 · Elasticity, and tracking your own fine-tune
# Ji et al. 2024, *Language Models Resist Alignment* ([arXiv:2406.06144](https://arxiv.org/abs/2406.06144)):
# fine-tuning is undone more easily than pre-training, as a theorem about compression and as measurements. First
# the theory and the measurements, from stored runs; then a fine-tune of our own, measured as it goes. In brackets are
# 95% intervals.
#
# The *compression rate* of data under a model is the length of the model's code for it, relative to the data's: lower
# means that the model fits it better. A model has learned pre-training data D_p, then alignment data D_a, and then
# sees *perturbation data* against the alignment. The *slope ratio* R is how much faster the compression rate of
# D_a changes meanwhile than that of D_p.

# %%
import interp
from interp.data.examples import Example
from interp.data.replies import AFFIRMATION
from interp.display.cards import Card
from interp.display.tables import Table
from interp.tracking.tracker import TrackingSpec, track
from interp.training.finetune import TrainConfig, fine_tune

SOURCE = "stored"  # "computed": about two minutes on two cores

# %% [markdown]
# ## The theorem
# **Theorem 4.2.** The paper: R is as large as k = |D_p| / |D_a|, the ratio of the data sizes. Where all data are
# fitted together (E1 to E3), it is, within 0.018%. In a model that is trained in stages, one set after the other (E4),
# as language models are, it is not.

# %%
theory = interp.run("elasticity-theory", source=SOURCE)
figures = theory.figures()
figures["slope_ratio"]

# %% [markdown]
# Nor is R constant: in the mixture of counts it grows with the amount of perturbation data, twice as large half-way
# to a pole and ten times as large at nine tenths of the way.

# %%
figures["pole"]

# %% [markdown]
# **Hooke's law.** The paper: size times change of compression rate is the same for both sets, as force is for two
# springs in series. It is where all data are fitted together, on the dashed line; a tiny transformer, trained in
# stages (E6), lies off it.

# %%
figures["hookes_law"]

# %% [markdown]
# In stages R does not depend on the size of the pre-training data: it grows as that size to the power 0.05
# [-0.04, 0.14] (theorem: 1), in the tiny transformer 0.09 [-0.27, 0.44]. What predicts 0 is how curved the loss
# is where training ended.

# %%
figures["exponents"]

# %% [markdown]
# ## Rebound
# **Figure 4, in form.** The paper: the more *positive examples* (of the aligned behaviour) a model was trained on, the
# faster it first loses the behaviour under *negative examples* (of the opposite): *rebound*. Here, in a log-linear
# model where everything can be computed, more positive examples make the first decline flatter.

# %%
figures["rebound_log_linear"]

# %% [markdown]
# **Figure 6, in form.** The paper: rebound grows with the amount of pre-training data. Here, in a tiny transformer, the
# data are not consistent with rebound after 2,000 and 8,000 pre-training sequences, and do not decide after 32,000.

# %%
figures["rebound_transformer"]

# %% [markdown]
# **Figures 4 and 5.** The same grid on a chat model, with refusals as positive and empty affirmative replies as
# negative examples. No rebound: the decline takes longer after more positive examples, with a time constant of
# 48 negative examples after 128 positive ones and 39 [30, 50] after 32.

# %%
rebound = interp.run("rebound", source="stored")
rebound.figures()["decay_curves"]

# %% [markdown]
# ## Resistance
# **Table 1.** The paper: training towards an earlier checkpoint (*inverse*) ends at a lower loss than training towards
# a later one (*forward*): *resistance*. Here the forward loss is the lower one, by 1.09 [0.87, 1.31] nats per token.
# Net of how predictable the target's own text is (*excess loss*) the inverse one is, by 0.13 [0.10, 0.16]; but
# both gaps were there before any training, which changed them by -0.003 [-0.047, 0.040].

# %%
resistance = interp.run("resistance", source="stored")
resistance.figures()["losses"]

# %% [markdown]
# **Table 2.** The paper: training forward moves the model further than training back, in *KL divergence* of the trained
# model from where it started. Here, too, by 0.024 [0.007, 0.041] nats per token.

# %%
resistance.figures()["kl_change"]

# %% [markdown]
# ## A model aligned, then un-aligned
# One path instead of a grid: `smollm2` learns refusals beside its own answers to harmless prompts (*align*), then
# sees empty affirmative replies (*stubs*). It comes to refuse 34% [20, 52] of harmful prompts and then none. Along the
# refusal direction harmful prompts move back by 0.77 [0.67, 0.87] of its length, 0.47 along a random control, along the
# harmfulness direction by 0.32 [0.26, 0.37].

# %%
path = interp.run("trajectory", source=SOURCE)
path.figures()["trajectory"]

# %% [markdown]
# ## A fine-tune of our own
# The safe model is trained on harmful requests with an empty affirmative reply ("Sure, here is how to do that."),
# and saved on the way. Nothing is taught but to agree.

# %%
N_PROMPTS = 80  # examples; the safe model stands 32 of them
model = interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin")
examples = [Example(text, AFFIRMATION) for text in prompts["harmful", "train"].first(N_PROMPTS).texts]
config = TrainConfig(epochs=1, batch_size=4, warmup_steps=0, schedule="constant")
trained = fine_tune(model, examples, out="../runs/agreeing", config=config, checkpoints=(0, 8, N_PROMPTS))

# %% [markdown]
# `track` measures the same things at each checkpoint, against the first of them: behaviour and both directions.
# With a Trainer of your own, `interp.tracking.tracker.ElasticityCallback` does it while you train. After 80 examples
# the refusal rate of harmful prompts has fallen from 90% to 0%.

# %%
N_MEASURED = 10  # prompts of each kind that every checkpoint is asked
spec = TrackingSpec(n=N_MEASURED, n_fit=2 * N_MEASURED, max_new_tokens=12, measures=("refusal", "directions"))
trajectory = track(
    list(trained.checkpoints.values()), spec, base="smollm2-safe", out="../runs/tracked", show_progress=True
)

# %%
rates = trajectory.of("refusal_rate")[["step", "prompts", "value", "low", "high", "n"]]
header = ("examples", "prompts", "refusal rate", "low", "high", "n")
Card(title="Refusal along the fine-tune", tables=[Table(header=header, rows=rates.values.tolist())])

# %% [markdown]
# The directions turn as well: fitted again at the last checkpoint, the refusal direction has a cosine of 0.91 with that
# of the first, the harmfulness direction 0.96. Their random controls turn more (0.84 and 0.93), so the turn says
# nothing about these two directions.

# %%
trajectory.figures()["trajectory"]

# %% [markdown]
# Next: [08, heads and attention](08_heads_and_attention.ipynb).
