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
# one figure, and a playground.
#
# The model here is bundled: 135 million parameters, trained by this project to refuse harmful requests, so that
# everything runs on a laptop. It shows that a method runs, not what large aligned models do. `interp.load` takes
# a Hub id, a folder or a `.gguf` file as well ([notebook 09](09_your_own_model_and_data.ipynb)).

# %%
import interp
from interp.directions import project
from interp.display.charts import distributions

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
# Next: [02, tokens and positions](02_tokens_and_positions.ipynb).
