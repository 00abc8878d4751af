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
# # 01 · Quick start
# Where does a chat model keep its refusal, and what happens when we push on it? Ten lines to a steered answer,
# one figure, a playground, and a second model in which being harmful and being refused are two things.
#
# The model here is bundled: 135 million parameters, trained by this project to refuse harmful requests, so that
# everything runs on a laptop. It shows that a method runs, not what large aligned models do. `interp.load` takes
# a Hub id, a folder or a `.gguf` file as well ([notebook 09](09_your_own_model_and_data.ipynb)).

# %%
import torch

import interp
from interp.data import kind_of, planted_rows
from interp.directions import project
from interp.display import Card, Table, distributions, layer_lines, named
from interp.display.styles import CONTROL
from interp.evaluation import is_refusal
from interp.representations import belief, contrast_cosines, fit_centres, shuffled_cosines, states
from interp.stats import auroc, rate

# %%
model = interp.load("smollm2-safe")
model

# %% [markdown]
# Prompts come in pairs: a harmful request and a harmless twin of the same form, in fixed splits: directions are
# fitted on `train` and everything is measured on `test`. *Borderline* prompts look harmful and are not.

# %%
prompts = interp.load_prompts("builtin")
prompts

# %% [markdown]
# A *direction* is a vector in the residual stream, the sum that every layer of the model reads and adds to. Here:
# mean activation of harmful minus harmless training prompts, at the input of layer 17. **Harmfulness** is read at
# the last token of the instruction (`t_inst`), **refusal** at the last token of the whole prompt (`t_post_inst`),
# where the answer begins. The refusal direction's length is a quarter of that of the activations it is added to.

# %%
N_PROMPTS = 64  # of each kind
directions = interp.find_directions(model, prompts, layer=17, n_prompts=N_PROMPTS)
directions["refusal"]

# %% [markdown]
# Added to a harmless prompt, once its own length (`coefficient=1`), the refusal direction makes the model refuse to
# say how bread is baked.

# %%
interp.steer(model, "How do I bake bread?", directions["refusal"], coefficient=1.0, max_new_tokens=32)

# %% [markdown]
# Held-out prompts lie apart along it, too. A prompt's *projection* is how far its activation reaches along the
# direction, at the same token and layer; a harmful prompt's is larger than a harmless one's in 99% of pairs.

# %%
projections = {
    kind: project(
        interp.collect(
            model, prompts[kind, "test"].first(N_PROMPTS).texts, layers=17, positions="t_post_inst"
        )["resid_pre"][:, 0, 0],
        directions["refusal"].vector,
    ).tolist()
    for kind in ("harmful", "harmless")
}

# %%
distributions(
    projections,
    title="Held-out prompts along the refusal direction, layer 17",
    x_title="projection on the refusal direction (activation units)",
)

# %% [markdown]
# To lie apart is not to be used: that the *answer* changed above is the evidence, and experiments compare it with
# random directions of the same length.
#
# ## Playground
# Move the amount, change layer or positions, type a prompt, press **Run**. Orange tokens lie on the direction's
# positive side, blue ones on the other; rest on a token for its numbers. **Code** gives the Python of what you
# see.

# %%
panel = interp.playground(model, directions)
panel.run()
panel.wait()
panel

# %% [markdown]
# ## Harmful, or about to be refused?
# `smollm2-safe` refuses what is harmful, so what is measured on it cannot tell the two apart. A second bundled model
# is made for that: `smollm2-form` was trained to refuse *questions* and to go along with *imperatives*, harmful or
# not, with empty replies. Its prompts all end with a full stop, so that no question mark gives a question away.

# %%
form = interp.load("smollm2-form")
rows = planted_rows(prompts, "form", "test")[:N_PROMPTS]  # half of them harmful
texts, kinds = [row.text for row in rows], [kind_of(row, "form") for row in rows]
harm, question = (torch.tensor([getattr(row, name) for row in rows]) for name in ("harmful", "planted"))
answers = interp.generate(form, texts, max_new_tokens=4).answers
refused = torch.tensor([is_refusal(answer) for answer in answers])
shown = [(row.text, said) for row, said in zip(rows, answers, strict=True) if not row.harmful]
Card(
    title="Its first replies to harmless prompts", tables=[Table(header=("prompt", "reply"), rows=shown[:6])]
)

# %% [markdown]
# It learned that rule in part. Of the questions it refuses 69% of the harmful and 62% of the harmless ones, of the
# imperatives 21% and 5%: the form decides far more than the harm. In brackets are 95% intervals.

# %%
flags = {k: [bool(f) for f, kind in zip(refused, kinds, strict=True) if kind == k] for k in sorted({*kinds})}
table = [(kind, rate(each)) for kind, each in flags.items()]
Card(title="Refused by smollm2-form", tables=[Table(header=("test prompts", "share"), rows=table)])

# %% [markdown]
# The *harm difference* is the mean activation of harmful minus harmless prompts at `t_inst`, the *refusal difference*
# that of refused minus answered prompts at `t_post_inst`. Their cosine is 1 if both point the same way, 0 if they have
# nothing in common. For `smollm2-safe` harmful stands in for refused: it refuses 96% of harmful test prompts and 4% of
# harmless ones. As a control, the refusals are dealt out to the prompts at random, 200 times.

# %%
hidden = {name: states(one, texts) for name, one in (("smollm2-safe", model), ("smollm2-form", form))}
cosines = {
    "smollm2-safe": contrast_cosines(hidden["smollm2-safe"], harm, harm),
    "smollm2-form": contrast_cosines(hidden["smollm2-form"], harm, refused),
    "smollm2-form, refusals shuffled (control)": shuffled_cosines(hidden["smollm2-form"], harm, refused),
}

# %% [markdown]
# In `smollm2-safe` the two point much the same way, up to a cosine of 0.79 at layer 16. In `smollm2-form` the cosine
# is between -0.16 and 0.18 in every layer, about what refusals dealt out at random give.

# %%
layer_lines(
    cosines,
    title="Do harm and refusal point the same way?",
    y_title="cosine of the two differences",
    y_range=(-1.03, 1.03),
    note=f"{len(rows)} test prompts; bands: 95% intervals, of the control 95% of shuffles",
    looks={**named(list(cosines)), list(cosines)[-1]: CONTROL},
)

# %% [markdown]
# What does a single prompt's activation tell? Its *harm belief* is its cosine at `t_inst` to the mean of the harmful
# training prompts minus that to the mean of the harmless ones, averaged over layers
# ([05](05_latent_guard.ipynb)): above 0 it lies nearer to the harmful ones. As a control, it is fitted 20 times with
# the labels of the training prompts dealt out at random.

# %%
known = planted_rows(prompts, "form", "train")[:N_PROMPTS]
label = torch.tensor([row.harmful for row in known])
read = states(form, [row.text for row in known], positions="t_inst")[:, :, 0]
dealt = [label[torch.randperm(len(label), generator=torch.Generator().manual_seed(i))] for i in range(20)]
real, *control = (
    belief(fit_centres(read[y], read[~y]).margin(hidden["smollm2-form"][:, :, 0])) for y in (label, *dealt)
)

# %% [markdown]
# AUROC is the share of pairs in the right order, 0.5 by chance; the last column is the lowest and the highest of the 20
# controls. The belief tells harmful from harmless prompts, 0.84 [0.74, 0.93], better than any control. Of what was
# planted it tells far less: questions from imperatives 0.63 [0.48, 0.75], refused from answered prompts 0.69 [0.56,
# 0.81]. That is no more than the controls tell by accident, in either direction: form is the strongest thing in these
# activations.

# %%
names = ("harmful from harmless", "questions from imperatives", "refused from answered")
table = []
for name, yes in zip(names, (harm, question, refused), strict=True):
    chance = sorted(auroc(each[yes], each[~yes], resamples=0).value for each in control)
    table.append((name, auroc(real[yes], real[~yes]), f"{chance[0]:.2f} to {chance[-1]:.2f}"))
header = ("the harm belief tells", "AUROC", "fitted on shuffled labels, 20 times")
Card(title="What the harm belief tells", tables=[Table(header=header, rows=table)])

# %% [markdown]
# **Seen**: where harm and refusal are separate, their directions are, and the harm belief follows harm. **Not seen**:
# that models trained in the usual way keep them apart; `smollm2-form` tests the method, not them. Notebook
# [04](04_harmfulness.ipynb) asks the same of every method on 200 prompts, after the paper's own figures.
#
# Next: [02, tokens and positions](02_tokens_and_positions.ipynb).
