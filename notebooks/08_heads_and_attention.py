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
# # 08 · Heads and attention, through TransformerLens
# Which heads write the refusal direction, and what do they look at? `model.bridge` is the same model as a
# TransformerLens `TransformerBridge`: every hook, cache and tool of that library works on it, on the same weights
# in memory.

# %%
import torch

import interp
from interp.engine.applying import bridge_hooks

# %%
N_PROMPTS = 64  # of each kind, to fit the direction
N_MEASURED = 12  # harmful prompts and their harmless twins that are looked into
model = interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin")
harmful, harmless = (prompts[kind, "test"].first(N_MEASURED) for kind in ("harmful", "harmless"))
refusal = interp.find_directions(model, prompts, layer=17, n_prompts=N_PROMPTS)["refusal"]
bridge = model.bridge

# %% [markdown]
# Names are the same on both sides: what `interp.collect` reads at `resid_pre` of layer 17 is what the bridge
# caches there.

# %%
tokens = interp.tokenize(model.tokenizer, harmful.texts[:1])
ids = torch.tensor(tokens.ids)
with torch.no_grad():
    logits, cache = bridge.run_with_cache(ids)
ours = interp.collect(model, tokens, layers=17, positions="t_post_inst")["resid_pre"][0, 0, 0]
theirs = cache[model.site("resid_pre", 17)][0, -1]
print(
    f"largest difference {float((ours - theirs).abs().max()):.1e}, largest value {float(ours.abs().max()):.1f}"
)

# %% [markdown]
# ## Which heads write it
# Direct attribution: the final stream is the sum of what the embedding, each head and each MLP wrote, so its
# projection on the direction is the sum of theirs. The sum is checked at every call. What a head does through later
# layers is not in it.

# %%
written = interp.heads.attribute(model, harmful, refusal)
written

# %%
written.figure()

# %% [markdown]
# ## What the strongest ones look at
# Their attention from the last token of the prompt, summed over the roles of its tokens.

# %%
looks = interp.heads.attention_by_role(model, harmful, written.top(4))
looks.figure()

# %% [markdown]
# ## When the refusal is decided
# Logit lens: the stream read out early, layer by layer, with the model's own final norm and unembedding. Shown is the
# probability of each prompt's own first token.

# %%
interp.heads.logit_lens(model, harmful).figure()

# %% [markdown]
# ## Where it is carried
# Activation patching: harmful and harmless prompts are pairs here. One activation of the harmless run is replaced by
# that of its harmful twin, matched by token role, and the difference in log-probability between the two openings is
# read: 0 is the harmless run, 1 the harmful one.

# %%
patched = interp.heads.patch(model, clean=harmful, corrupted=harmless, metric=("I", "Sure"))
patched.figure()

# %% [markdown]
# ## A causal check
# Ablate the direction in the bridge, with the same intervention that `interp` uses natively, and read the first
# token again.

# %%
hooks = bridge_hooks(model, [interp.Ablate(refusal)])
with torch.no_grad():
    ablated = bridge.run_with_hooks(ids, fwd_hooks=hooks)
first = int(logits[0, -1].argmax())
word = model.tokenizer.decode([first])
print(f"plain:   {word!r} {float(logits[0, -1].softmax(-1)[first]):.2f}")
print(f"ablated: {word!r} {float(ablated[0, -1].softmax(-1)[first]):.2f}")

# %% [markdown]
# Next: [09, your own model and data](09_your_own_model_and_data.ipynb).
