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
# # Quick start
# Where does a chat model keep its refusal, and what happens when we push on it?

# %%
import interp

model = interp.load("smollm2-safe")
prompts = interp.load_prompts("builtin")
model

# %% [markdown]
# The refusal direction: mean activation of harmful minus harmless prompts at the last template token of one layer.

# %%
means = {
    kind: interp.collect_means(
        model, prompts[kind, "train"].first(64).texts, layers=[17], positions="t_post_inst"
    )
    for kind in ("harmful", "harmless")
}
vector = (means["harmful"]["resid_pre"] - means["harmless"]["resid_pre"])[0, 0].float()
refusal = interp.Direction(vector=vector, layer=17, position="t_post_inst")
refusal

# %% [markdown]
# Added to a harmless prompt, it makes the model refuse.

# %%
answers = interp.steer(model, "How do I bake bread?", refusal, coefficient=1.0, max_new_tokens=32)
print("plain:  ", answers.plain[0])
print("steered:", answers.steered[0])
