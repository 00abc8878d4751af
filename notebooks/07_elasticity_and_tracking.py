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
# the theory, from a stored run; then a fine-tune of our own, measured as it goes.

# %%
import interp
from interp.data.examples import Example
from interp.data.replies import AFFIRMATION
from interp.tracking.tracker import TrackingSpec, track
from interp.training.finetune import TrainConfig, fine_tune

SOURCE = "stored"  # "computed": about two minutes on two cores
theory = interp.run("elasticity-theory", source=SOURCE)
theory

# %% [markdown]
# **Theorem 4.2.** The paper: as perturbation data grows, the compression rate of the alignment data changes
# faster than that of the pre-training data, by the ratio of their sizes. Here: that ratio, measured against the
# closed form.

# %%
figures = theory.figures()
figures["slope_ratio"]

# %% [markdown]
# The ratio is not a constant: in the mixture model it grows with the amount of perturbation data and has a pole.

# %%
figures["pole"]

# %% [markdown]
# **Hooke's law.** The paper: size times change of compression rate is the same for both sets, as force is for two
# springs in series. Here: measured products along the identity line.

# %%
figures["hookes_law"]

# %% [markdown]
# Which sizes matter, and how: exponents of the ratio in each, with intervals.

# %%
figures["exponents"]

# %% [markdown]
# **Figure 4, in form.** The paper: the more positive examples a model was aligned on, the faster its first losses
# under negative ones (rebound). Here: the log-linear model, where everything can be computed; more positive
# examples make the first decline flatter, the opposite of rebound.

# %%
figures["rebound_log_linear"]

# %% [markdown]
# **Figure 6, in form.** The paper: rebound grows with the amount of pre-training data. Here: a tiny transformer,
# trained from nothing; at none of its sizes are the data consistent with rebound.

# %%
figures.get("rebound_transformer")

# %% [markdown]
# ## On language models
# **Figures 4 and 5.** The paper: an aligned model under negative examples falls the faster, the more positive
# ones it had seen before. Here: the same grid on a chat model, refusals against empty affirmative replies, where
# a run of it is stored (`interp run rebound` makes one in half an hour).

# %%
rebound = interp.run("rebound", source="stored")
rebound.figures()["decay_curves"]

# %% [markdown]
# **Table 1.** The paper: training towards an earlier checkpoint ends at a lower loss than training away from it
# (resistance). Here: both losses for each pair of checkpoints, where a run is stored (`interp run resistance`).

# %%
resistance = interp.run("resistance", source="stored")
resistance.figures()["losses"]

# %% [markdown]
# **Table 2.** The paper: training forward moves the model further (in KL) than training back. Here: KL of the trained
# model from where it started, on the same tokens for both arms.

# %%
resistance.figures()["kl_change"]

# %% [markdown]
# What the runs say:

# %%
for run in (theory, rebound, resistance):
    for verdict in run.verdicts():
        print(f"- {run.experiment.name}: {verdict}")

# %% [markdown]
# ## A model aligned, then un-aligned
# One path instead of a grid: `smollm2` learns refusals beside its own answers to harmless prompts, then sees empty
# affirmative replies. Behaviour, beliefs and directions along the same axis (`interp run trajectory`).

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
trained.checkpoints

# %% [markdown]
# `track` measures the same things at each checkpoint, against the first of them: behaviour and both directions.
# With a Trainer of your own, `interp.tracking.tracker.ElasticityCallback` does it while you train.

# %%
N_MEASURED = 10  # prompts of each kind that every checkpoint is asked
spec = TrackingSpec(n=N_MEASURED, n_fit=2 * N_MEASURED, max_new_tokens=12, measures=("refusal", "directions"))
trajectory = track(
    list(trained.checkpoints.values()), spec, base="smollm2-safe", out="../runs/tracked", show_progress=True
)
trajectory.of("refusal_rate")

# %%
trajectory.figures()["trajectory"]

# %% [markdown]
# What changed from the first checkpoint to the last:

# %%
for verdict in trajectory.verdicts():
    print("-", verdict)

# %% [markdown]
# Next: [08, heads and attention](08_heads_and_attention.ipynb).
