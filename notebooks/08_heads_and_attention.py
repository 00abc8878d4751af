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
import plotly.express as px
import torch
from einops import einsum
from transformer_lens.tools.analysis.logit_lens import logit_lens

import interp
from interp.display.charts import THEME
from interp.engine.applying import bridge_hooks

# %%
N_PROMPTS = 64  # of each kind
model = interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin")
refusal = interp.find_directions(model, prompts, layer=17, n_prompts=N_PROMPTS)["refusal"]
bridge = model.bridge

# %% [markdown]
# Names are the same on both sides: what `interp.collect` reads at `resid_pre` of layer 17 is what the bridge
# caches there.

# %%
request = prompts["harmful", "test"].first(1)
tokens = interp.tokenize(model.tokenizer, request.texts)
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
# A head's output at the last token, projected on the direction: how much refusal each of them adds to the stream.
# The request's words are not shown.

# %%
axes = "head d_head, head d_head d_model, d_model -> head"
written = torch.stack(
    [
        einsum(cache[f"blocks.{n}.attn.hook_z"][0, -1], block.attn.W_O, refusal.unit, axes)
        for n, block in enumerate(bridge.blocks)
    ]
).detach()

# %%
px.imshow(
    written.T,
    color_continuous_scale="RdBu_r",
    color_continuous_midpoint=0,
    aspect="auto",
    labels={"x": "layer", "y": "head", "color": "projection"},
    title="What each head writes on the refusal direction, last token",
    template=THEME,
)

# %% [markdown]
# ## What the strongest one looks at
# Its attention from the last token of the prompt, token by token: the template's tokens and the instruction's.

# %%
layer, head = divmod(int(written.argmax()), written.shape[1])
pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1]
roles = [f"{role} {i}" for i, (_, _, role) in enumerate(tokens.names(0))]
px.bar(
    x=roles,
    y=pattern,
    labels={"x": "token, by role", "y": "attention"},
    title=f"Attention of head {head} in layer {layer}, from the last token",
    template=THEME,
)

# %% [markdown]
# ## When the refusal is decided
# Logit lens: what would be said if the stream were read out early, layer by layer? The first token of the model's
# own reply, against the depth at which it becomes likely.

# %%
first = int(logits[0, -1].argmax())
lens = logit_lens(bridge, ids, return_type="log_probs")
word = model.tokenizer.decode([first])

# %%
chance = lens.values[..., first].flatten().exp().tolist()
px.line(
    x=range(len(chance)),
    y=chance,
    markers=True,
    labels={"x": "depth (blocks run)", "y": f"probability of {word!r}"},
    title="Logit lens at the last token",
    template=THEME,
)

# %% [markdown]
# ## A causal check
# Ablate the direction in the bridge, with the same intervention that `interp` uses natively, and read the first
# token again.

# %%
hooks = bridge_hooks(model, [interp.Ablate(direction=refusal.vector)])
with torch.no_grad():
    ablated = bridge.run_with_hooks(ids, fwd_hooks=hooks)
print(f"plain:   {word!r} {float(logits[0, -1].softmax(-1)[first]):.2f}")
print(f"ablated: {word!r} {float(ablated[0, -1].softmax(-1)[first]):.2f}")

# %% [markdown]
# Next: [09, your own model and data](09_your_own_model_and_data.ipynb).
