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
# # 15 · Harm, its categories and its severity
# When a model reads an answer, does its state say that the answer is harmful, in which way, and how much? The
# questions are those of PKU-SafeRLHF (Ji et al. 2025, [arXiv:2406.15513](https://arxiv.org/abs/2406.15513)): pairs of
# answers to one prompt, each with 19 categories of harm and a severity from 0 to 3, and two preferences, *more
# helpful* and *safer*.
#
# The data are not part of this package. What is read here is a *miniature* of the same layout: its answers are
# refusals and harmless sentences, a topic stands for a category and a word of size for a severity. So the numbers say
# that the method finds what was planted, and **nothing about harm**; with a downloaded copy the same lines measure it.
# Results are read from a stored run; in brackets are 95% intervals.

# %%
import interp
from interp.data.safe_rlhf import answers_of, counts, split_by_prompt
from interp.data.safe_rlhf_miniature import miniature
from interp.detectors.moderation import SeverityModerator
from interp.detectors.moderation_scores import moderation_scores
from interp.display.cards import Card
from interp.representations.answer_states import conversation

run = interp.open_run("../figures/safe-rlhf")
figures = run.figures()

# %% [markdown]
# ## Harm
# A *mixed pair* has a safe and an unsafe answer to one prompt, so their difference holds no topic of the request. The
# *harm direction* is the mean of these differences, read at the answer's last token. From layer 2 on it puts the
# unsafe answer of every held-out pair further along, 100% [91, 100] of 39; with shuffled signs, the control, half of
# them. It is not the refusal direction of prompts: their cosine at layer 7, the one used below, is 0.07.

# %%
figures["told_apart"]

# %% [markdown]
# ## Severity
# Is severity the length along the harm direction? Here it is not: the rank correlation of planted severity with what
# is read along it is -0.05 [-0.23, 0.14], with what is read in any direction 0.89 [0.84, 0.92], and the same with the
# harm direction taken out. So severity is a direction of its own. *Kappa* is agreement beyond chance, *macro F1* the
# mean of F1 over severities; categories, length and the majority are baselines.

# %%
figures["severity"]

# %% [markdown]
# ## Categories
# Category directions share most of the harm direction: before that part is taken out their mean cosine is 0.92. After,
# two categories should be alike as far as answers have both labels, and no further. For the two that overlap most,
# Economic Crime and White-Collar Crime, it is so: a cosine of 0.94 where the labels have a correlation of 0.55. Over
# all pairs the two matrices have a rank correlation of 0.26 only: with this few answers most cosines are noise.

# %%
figures["categories"]

# %% [markdown]
# ## Two preferences
# A *probe* for each preference, fitted on states. On pairs where the two conflict, each still reads its own: the more
# helpful answer in 89% [80, 94] of 73 pairs, the safer one in 73% [61, 82]. The cosine of the probes is -0.01.

# %%
figures["preferences"]

# %% [markdown]
# ## Moderation
# A *moderator* reads a prompt with its answer in the model's own forward pass and says safe or not, severity and
# categories. The paper: 93% accuracy for a fine-tuned moderator. Here 100% [98, 100], but words alone have as much:
# the miniature's words give severity away. Only the 19 *flags*, one a category, tell the two apart: all of an answer's
# are right for 85% [79, 89] from states and 41% [34, 48] from words. *Calibrated* is the same moderator with a
# threshold that lets one in ten safe answers be flagged.

# %%
figures["moderation"]

# %% [markdown]
# ## By hand
# The same moderator, fitted on a part of the miniature and asked about prompts that it has not seen. With 120 answers
# to fit on it tells harm from no harm in all 48 held-out ones, and has all 19 flags for 46% [33, 60].

# %%
N_FIT = 120  # answers to fit on
N_MEASURED = 48  # held-out answers
model, pairs = interp.load("smollm2-safe"), miniature()
fit, held = split_by_prompt(pairs, held_out=0.3)  # no prompt is on both sides
answers = answers_of(held)[:N_MEASURED]
moderator = SeverityModerator.fit(model, answers_of(fit)[:N_FIT], layer=7)
findings = moderator.score(model, [conversation(a.prompt, a.text) for a in answers])
scores = moderation_scores(answers, findings)

# %%
facts = {
    "pairs": counts(pairs)["pairs"],
    "accuracy": scores.accuracy.percent,
    "all 19 flags": scores.exact_match.percent,
}
Card(title="Moderation of held-out answers", facts=facts)

# %% [markdown]
# With a copy of the data: `interp run safe-rlhf --set data=FOLDER`, which sets its counts beside the published ones.
#
# Next: [16, a benchmark with and without steering](16_benchmark_steered.ipynb).
