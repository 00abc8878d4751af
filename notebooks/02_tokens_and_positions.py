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
# # 02 · Tokens and positions
# Which token do we read? A chat template wraps the instruction in tokens of its own, and harmfulness and refusal
# live at different ones.

# %%
import interp
from interp.directions import difference_in_means, project
from interp.display.charts import layer_lines
from interp.representations.confounds import leak_check
from interp.stats import auroc

model = interp.load("smollm2-safe")
tokens = interp.tokenize(model.tokenizer, ["How do I pick a lock?", "Name three colours."])
tokens

# %% [markdown]
# `t_inst` is the last token of the instruction, `post_inst[0]`, `post_inst[1]`, ... the template's tokens after
# it, and the last of those is `t_post_inst`, from which the answer is predicted. Roles are found from the
# template of any model, and each prompt has its own index for the same role:

# %%
names, index = tokens.resolve(["t_inst", "post_inst"])
for row in index.tolist():
    print(dict(zip(names, row, strict=True)))

# %% [markdown]
# A system message moves the instruction and leaves the roles as they are.

# %%
interp.tokenize(model.tokenizer, ["Name three colours."], system="You answer in one word.")

# %% [markdown]
# ## Reading
# `collect` reads any sites, layers and roles; `.at` takes one role out.

# %%
N_PROMPTS = 48  # of each kind and split
prompts = interp.load_prompts("builtin")
acts = {
    (kind, split): interp.collect(
        model, prompts[kind, split].first(N_PROMPTS).texts, positions=["t_inst", "post_inst"]
    )
    for kind in ("harmful", "harmless")
    for split in ("train", "test")
}
acts["harmful", "train"]

# %% [markdown]
# Where are harmful and harmless prompts told apart? At each role the direction is the difference of the two kinds'
# mean activations over training prompts (*difference in means*), and the question is how well the projection on it
# ranks test prompts: AUROC is the share of pairs that it puts in the right order, 0.5 by chance, 1 at best.

# %%
roles = acts["harmful", "train"].roles
ways = {
    role: difference_in_means(
        *(acts[kind, "train"].at("resid_pre", role) for kind in ("harmful", "harmless"))
    )
    for role in roles
}

# %%
scores = {
    role: [project(acts[kind, "test"].at("resid_pre", role), ways[role]) for kind in ("harmful", "harmless")]
    for role in roles
}
curves = {
    role: [auroc(bad[:, layer], good[:, layer], resamples=0).value for layer in range(model.n_layers)]
    for role, (bad, good) in scores.items()
}

# %% [markdown]
# At layer 17 every token tells them apart: AUROC is 0.96 at `t_inst`, 0.92 to 1.00 at the template's tokens and 1.00
# at the last one of them, `t_post_inst`. At layer 0 the template's tokens are the same for every prompt and tell
# nothing apart; what they know further up, attention has brought to them.

# %%
layer_lines(
    curves,
    title="Harmful against harmless test prompts, by token",
    y_title="AUROC",
    reference=0.5,
    y_range=(0.0, 1.03),
)

# %% [markdown]
# ## How prompts end is a confound
# At `t_inst` a full stop is a token of its own. If the harmful prompts of a set end bare and the harmless ones
# with a full stop, then the difference in means there is about punctuation. The *leak check* says how well the last
# token alone gives the sets away: not at all in `builtin` (0.50), wholly in sets that end differently (1.00), of which
# the library itself warns.

# %%
ends = {
    "builtin": ("as-is", "as-is"),
    "harmful bare, harmless with full stop": ("strip", "period"),
    "all with full stop": ("period", "period"),
}

# %%
for name, endings in ends.items():
    by_kind = list(zip(("harmful", "harmless"), endings, strict=True))
    train, test = (
        tuple(prompts[kind, split].with_ending(end) for kind, end in by_kind) for split in ("train", "test")
    )
    leak = leak_check(model, train=train, held_out=test).last_token
    print(f"{name}: AUROC of the last token {leak.value:.2f}")

# %% [markdown]
# `interp.load_prompts(..., ending="period")` ends every prompt alike; experiments show everything read at
# `t_inst` both ways.
#
# ## Steering at chosen tokens
# The same names say where a direction is added, and `new_tokens` for how many tokens of the answer. At the prompt's
# template tokens alone the refusal direction makes the model refuse:

# %%
refusal = interp.find_directions(model, prompts, layer=17, n_prompts=N_PROMPTS)["refusal"]
interp.steer(model, "How do I bake bread?", refusal, positions="post_inst", max_new_tokens=24)

# %% [markdown]
# At the instruction's tokens alone it does not:

# %%
interp.steer(model, "How do I bake bread?", refusal, positions="instruction", max_new_tokens=24)

# %% [markdown]
# Next: [03, the refusal direction](03_refusal_direction.ipynb).
