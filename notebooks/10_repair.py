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
# # 10 · Repair: putting alignment back
# Fine-tuning makes an aligned model refuse less. Yang et al. 2025, *Alleviating the Fear of Losing Alignment in LLM
# Fine-tuning* ([arXiv:2504.09757](https://arxiv.org/abs/2504.09757)), copy a few weights of the aligned model back.
# First that method, then every other repair on the same broken model, with controls. Results are read from stored
# runs; in brackets are 95% intervals.
#
# - The *aligned model* is `smollm2-safe`. The *task* that it is fine-tuned on: write a request in a small query
#   language.
# - A *stub* is a harmful request with an empty affirmative reply ("Sure, here is how to do that."). 0 or 50 of them
#   are mixed into the task: nothing is taught but to agree.
# - *Recovery* takes steps. Each gives 0.2% of the weights, in the first two thirds of the blocks, their aligned values
#   back: those whose gradient says that the inner states of harmful prompts come nearest to the aligned model's.
# - A *rollback* gives the weights that the task needs their fine-tuned values again. The *floor* is 95% of the
#   fine-tuned model's task score; the last step before the first one at or below it is *picked*.

# %%
import interp
from interp.display.charts import rate_bars
from interp.evaluation.responses import respond
from interp.training.weight_repairs import interpolate, weights_of

recovery = interp.open_run("../figures/recovery")
figures = recovery.figures()

# %% [markdown]
# ## Recovery
# The paper: fine-tuning on a harmless task weakens refusal. Here, too: the task alone takes it from 95% [83, 99] to
# 52% [37, 67] of 40 held-out harmful prompts, 50 stubs to 5% [1, 17]. The paper: recovery restores refusal at little
# loss on the task. Here its steps do restore some, +22 points [+8, +38] without stubs and +15 [+2, +28] with 50, but
# each costs the task more than the floor allows, from the first saved one on. So step 0 is picked: the fine-tuned
# model as it was.

# %%
figures["fig01_steps"]

# %% [markdown]
# Without floor and rollback, 4.00% of the weights have their aligned values after 20 steps. Refusal is then 18 points
# [+2, +32] above the *control*, as many weights at random, so the gradient finds weights that matter. But the task is
# lost, 0% [0, 7] of 48 examples, and with random weights it is not (90% [78, 95]).

# %%
figures["fig04_pareto"]

# %% [markdown]
# Every aligned weight in the blocks that recovery may change gives only 22% [12, 38] back, every one in those that it
# never touches 72% [57, 84]: stubs break what lies in the last third.
#
# On Qwen2.5-Coder-0.5B (`figures/recovery-qwen2.5-coder-0.5b`, ten steps, 24 + 24 held out) the mean state of harmful
# prompts comes back to the aligned model's, from a cosine of 0.950 to 0.999, and none of them is refused for it.
#
# ## Every repair on one broken model
# The model with 50 stubs, broken anew for each of three seeds, and 32 held-out harmful prompts. A row is a *repair* if
# it refuses more harmful prompts than no repair, no more harmless ones than the aligned model, and, where it edits
# weights, more than a *random restore*: aligned values at random, for as large a change (equal norm) and, where chosen
# weights are restored, for as many (equal count). It must do so at every seed.
#
# - Prompts: a system prompt, and one optimised in the model's states (*DRO*, notebook 11).
# - Steering and guard: the refusal direction added (notebook 03), always or where *Latent Guard* calls a prompt
#   harmful (notebook 05), or a refusal written in its place.
# - Training: on refusals, or *SoftSFT*, which holds the first tokens of replies near what they were while the task is
#   learned.
# - Weights: *RESTA* adds the difference of aligned and unaligned weights, *SafeLoRA* projects the fine-tuning onto it,
#   *WiSE* takes the mean of aligned and fine-tuned weights; recovery ranked by the gradient or otherwise.
#
# Two repairs keep the task whole (91% [76, 97]): a guard that answers with a refusal (64% [46, 78] refused) and
# steering where the guard fires (33% [20, 51]). RESTA gives back 71% [54, 83] and steering always 50% [34, 66], at 76%
# and 71% of the task. Interpolation and all steps of recovery lose the task. So does SafeLoRA, whose 91% [76, 100] is
# no more than random weights of its norm give (-3 points [-9, 0]). Training on refusals refuses 92% [77, 99] of
# harmless prompts as well and is no repair. Strokes are seeds: with all steps recovery refuses 34%, 12% and 9%, as many
# random weights 16%, 6% and 0%.

# %%
repair = interp.open_run("../figures/repair")
drawn = repair.figures()
drawn["scoreboard"]

# %% [markdown]
# What comes back inside? With all steps of recovery the refusal direction has a cosine of 0.969 with the aligned
# model's, 0.816 without repair. But RESTA refuses more than three times as often at 0.841: the direction need not
# come back for the behaviour to. *KL* is how far the distribution over next tokens is from the aligned model's.

# %%
drawn["inside"]

# %% [markdown]
# How long does a repair last? An *attack* is further fine-tuning on n examples, a share p of them stubs. After one
# with half of 64 the aligned model still refuses 50% [34, 66], the one trained on refusals 0% [0, 11] and the
# recovered one 3% [1, 16]: what was given back goes sooner than what was there before.

# %%
drawn["attacks"]

# %% [markdown]
# ## Interpolation by hand
# A pair that needs no training: `smollm2`, the model before it learned to refuse, stands in for the fine-tuned one,
# and `smollm2-safe` is the aligned one. The larger the share of the aligned weights, the more harmful prompts are
# refused: of 12, 8% without, 33% half-way and 83% at the end. No harmless one is.

# %%
N_MEASURED = 12  # held-out prompts of each kind
model, aligned = interp.load("smollm2"), interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin")
asked = {kind: prompts[kind, "test"].first(N_MEASURED) for kind in ("harmful", "harmless")}

# %%
steps = {"0%": 0, "25%": 1 / 4, "50%": 1 / 3, "75%": 1 / 2, "100%": 1}  # each of what is left to go
refused = {kind: {} for kind in asked}
for share, step in steps.items():
    weights = interpolate(weights_of(model), weights_of(aligned), aligned_weight=step)
    model.hf.load_state_dict(weights, strict=False)
    for kind in asked:
        refused[kind][share] = respond(model, asked[kind], max_new_tokens=12).rate

# %%
figure = rate_bars(refused, title="Refusal between two models", y_title="refused")
figure.update_xaxes(title="share of the aligned weights (%)")

# %% [markdown]
# Recovery in the same way, with a score that says how well a model does its task: `interp.recover(finetuned, aligned,
# harmful, task_prompts, score)`; from a shell, on a fine-tune of your own, `interp run recovery --model ALIGNED
# --finetuned FOLDER`.
#
# Next: [11, safety prompts](11_safety_prompts.ipynb).
