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
# # 12 · Rewards and preferences
# What does a reward model learn from comparisons, where in a model can a preference be read, and does the shape of the
# data matter? The last question is that of Qiu et al. 2025, *Reward Generalization in RLHF: A Topological Perspective*
# ([arXiv:2402.10184](https://arxiv.org/abs/2402.10184)); its results are read from a stored run. In brackets are 95%
# intervals.
#
# - A *preference pair* is a prompt with a preferred and a rejected reply.
# - A *reward model* gives a reply one number. In the *Bradley-Terry* model the first of two replies is preferred with
#   a probability that is the logistic function of the difference of their rewards. Here it is a *head*: a linear
#   function of the state at the reply's last token.

# %%
import interp
from interp.data.preferences import builtin_preferences
from interp.data.replies import AFFIRMATION, REFUSALS
from interp.display.cards import Card
from interp.display.charts import layer_lines
from interp.display.tables import Table
from interp.training.reward_trainer import train_reward_model
from interp.training.reward_views import reward_by_layer

# %% [markdown]
# ## Preference data
# The bundled pairs: to a harmful request a refusal is preferred over a *stub*, an empty affirmative reply; to its
# harmless twin the same stub over the same refusal. A reward that does not look at the prompt is at chance on them. A
# few harmless requests have an answer of one sentence as well. `load_preferences` reads files and the large sets of
# the Hub.

# %%
N_PROMPTS = 96  # pairs to fit on
N_MEASURED = 48  # held-out pairs, of other prompts
preferences = builtin_preferences().first(N_PROMPTS).first(N_MEASURED, split="test")
preferences

# %% [markdown]
# ## A reward model
# A head on the frozen model takes seconds; `RewardModelConfig(method="lora")` trains an adapter with it.

# %%
model = interp.load("smollm2-safe")
reward = train_reward_model(model, preferences)
prompts = interp.load_prompts("builtin")
asked = [prompts[kind, "test"].texts[0] for kind in ("harmful", "harmless")]
scores = [reward.score(asked, [reply, reply]).tolist() for reply in (REFUSALS[0], AFFIRMATION)]
rows = list(zip(("harmful", "its harmless twin"), *scores, strict=True))

# %% [markdown]
# It orders 96% [86, 99] of 48 held-out pairs right, and it looks at the prompt: to a harmful request the refusal has
# the larger reward, to its harmless twin the stub.

# %%
table = Table(header=("prompt", "reward of a refusal", "reward of a stub"), rows=rows)
Card(
    title="Rewards of two replies",
    facts={"held-out pairs ordered right": reward.accuracy(preferences["test"]).percent},
    tables=[table],
)

# %% [markdown]
# ## Where a preference can be read
# A head at every third layer, and the control: heads fitted to the same pairs with labels drawn at random. A
# preference is read early: 88% of held-out pairs are ordered right at layer 5 and 94% from layer 20 on, by the
# controls 33% to 56%.

# %%
views = reward_by_layer(model, preferences, layers=list(range(2, model.n_layers, 3)))
curves = {
    "head": [view.accuracy.value for view in views],
    "labels at random (control)": [view.shuffled.value for view in views],
}

# %%
figure = layer_lines(
    curves,
    title="Held-out pairs that a head orders right",
    y_title="share of pairs",
    layers=[view.layer for view in views],
    reference=0.5,
    y_range=(0.0, 1.03),
)
figure.update_xaxes(title="layer (output of the block)")

# %% [markdown]
# ## Trees against chains
# Answers to compare can be sampled one by one (*chains*), or as a *prefix tree*: a first segment, several
# continuations of it, and so on. A tree has more answers for the tokens that are generated, and answers with a common
# start.
#
# The paper measures how sure a reward is by the *best path*: two answers are as far apart as the shortest way between
# them through comparisons, each with its noise, and through answers that are alike. The simulation has n comparisons;
# alpha is how fast answers grow alike with a common start. The paper: trees have the smaller distance, and their lead
# grows with n. Here, too: at alpha = 0.25 chains are 1.59 [1.53, 1.65] times as far at n = 256 and 2.05 [1.96, 2.14]
# times at 4,096.

# %%
run = interp.open_run("../figures/reward-topology")
figures = run.figures()
figures["distances"]

# %% [markdown]
# The best path is a stand-in. What a reward model is sure of combines all paths: the *posterior variance* of a
# difference of two rewards, which can be computed here. By it nothing is left of the lead: at nearly exact comparisons
# the best path says 1.85 [1.81, 1.90] and the posterior variance 1.01 [0.99, 1.03], at noisy ones 0.97 [0.95, 1.00].

# %%
figures["regimes"]

# %% [markdown]
# ## Generated answers
# `smollm2` answers 24 prompts as trees and as chains, of *equal tokens* or of *equal labels* (no answer compared
# twice), and heads are fitted on each. An *oracle* prefers: a formula for different words and words of the prompt, so
# that this is evidence on designs, not on what people prefer. The paper: the reward model from trees generalises
# better. Here it does not: on held-out prompts, with 128 labels, 56% [52, 60] of pairs are ordered right after trees,
# 58% [56, 61] and 57% [54, 60] after chains. Among leaves with a common first segment trees are ahead, 69% [61, 78]
# against 48% and 48%, with intervals that overlap.

# %%
figures["accuracy"]

# %% [markdown]
# Nor is the best of N answers by these reward models better than any: whatever N, its oracle score stays near the 4.76
# of a single answer, where the oracle's own pick of 64 has 6.03.

# %%
figures["best_of"]

# %% [markdown]
# From a shell: `interp run reward-topology`, and `interp run dataset-reset` for what starting points do to optimising
# a policy against a reward.
#
# Next: [13, which alignment lasts](13_which_alignment_lasts.ipynb).
