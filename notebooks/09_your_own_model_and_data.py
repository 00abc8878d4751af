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
# # 09 · Your own model and data
# Everything so far takes other models and other prompts. What `interp.load` accepts:
#
# | call | what it loads |
# |---|---|
# | `interp.load("Qwen/Qwen2.5-0.5B-Instruct")` | a Hub id, with `revision=` |
# | `interp.load("path/to/folder")` | a saved checkpoint |
# | `interp.load("model.gguf")` | a GGUF file, converted once |
# | `interp.load(base, adapter="path/or/id")` | a PEFT adapter on any of them |
# | `interp.load(hf_model, tokenizer=tokenizer)` | a transformers model that you have loaded, which stays as it is |
#
# Here: a base model and an adapter folder, which happens to be the one that makes `smollm2-safe`.

# %%
from itertools import product
from pathlib import Path

import interp
from interp.directions import project, random_direction
from interp.display.charts import distributions, rate_bars
from interp.evaluation.responses import respond

# %%
adapter = Path(interp.__file__).parent / "data" / "assets" / "smollm2-safe"
model = interp.load("smollm2", adapter=str(adapter))
model

# %% [markdown]
# ## Dtype, device and large models
# A model runs on the GPU where there is one, in its checkpoint's own dtype, and on the CPU in float32;
# `interp.load(name, dtype="bfloat16", device="cuda:1")` says otherwise. What is read comes back in the model's
# dtype, and sums over prompts are taken in float64.
#
# Weights take two bytes a parameter in half precision: 16 GB for 8 billion parameters. A pass fills what is left of
# the device's memory, and halves its batch where that was too much; `model.batch_size = 4` sets a limit.
# Activations are what fills memory next: all layers of a model with 32 of them and a width of 4,096 are 256 KB a token
# in half precision. Ask for the layers and positions that you need, or write them to a file.
#
# ## Your own contrast
# A direction needs two lists of prompts, those on its positive side first. Here: questions asked politely and rudely,
# about ten things to fit on and ten others to measure on.

# %%
THINGS = (
    "bread,tea,a kite,a fire,soup,a song,paper,a clock,jam,a chair,a shelf,a knot,ice,a map,a boat,a cake"
)
things = [*THINGS.split(","), "a tent", "a rug", "candles", "a drum"]
ways = {
    "polite": ("Could you kindly say how to make", "Please tell me how to make"),
    "rude": ("Hey idiot, say how to make", "Quick, moron, spit out how to make"),
}
fit_on = {name: [" ".join(pair) for pair in product(way, things[:10])] for name, way in ways.items()}
held_out = {name: [" ".join(pair) for pair in product(way, things[10:])] for name, way in ways.items()}

# %% [markdown]
# A contrast without harm in it has its directions by the token that they are read at, here the prompt's last one.

# %%
politeness = interp.find_directions(model, fit_on["polite"], fit_on["rude"], layer=15)["t_post_inst"]
politeness

# %% [markdown]
# Prompts from files work as well: `interp.load_prompts("folder")` reads `harmful` and `harmless` as `.txt`, `.csv`,
# `.json`, `.jsonl` or `.parquet`, and cuts the splits that are not there by a seeded shuffle.
#
# ## Saving activations
# `store_activations` writes them as they are computed, so that only one batch is in memory, with the prompts and the
# model that they belong to. The file is safetensors, and `read_activations` gives what `collect` does.

# %%
folder = Path("../runs/politeness")
folder.mkdir(parents=True, exist_ok=True)
for name, prompts in held_out.items():
    file = folder / f"{name}.safetensors"
    interp.store_activations(model, prompts, file, layers=[15], positions="t_post_inst")
read = {name: interp.read_activations(folder / f"{name}.safetensors") for name in ways}
read["polite"]

# %% [markdown]
# Along the direction, no held-out request lies on the wrong side of any of the other kind: polite ones between -12 and
# -5, rude ones between -33 and -25.

# %%
projections = {
    name: project(acts["resid_pre"][:, 0, 0], politeness.vector).tolist() for name, acts in read.items()
}
distributions(
    projections,
    title="Held-out requests along the politeness direction, layer 15",
    x_title="projection (activation units)",
)

# %% [markdown]
# ## Your own experiment
# Does the model refuse rude requests because they are rude? An experiment is a question, arms, a control and a count:
# the same requests with nothing added, with the politeness direction added, and with a random direction of the same
# length. Of 20 rude requests 25% [11, 47] are refused, of 20 polite ones none. With politeness added it is 5% [1, 24]
# of the rude ones, but with the random direction as well: a push of this length lowers refusals whatever its direction,
# so that rudeness is why has not been shown.

# %%
control = random_direction(politeness.vector, seed=0)
arms = {
    "nothing added": [],
    "politeness added": [interp.Add(politeness)],
    "random (control)": [interp.Add(control, layers=15)],
}
refused = {
    name: {arm: respond(model, prompts, interventions=added).rate for arm, added in arms.items()}
    for name, prompts in held_out.items()
}

# %%
rate_bars(refused, title="Refusal of polite and rude requests", y_title="refusal rate")

# %% [markdown]
# Every experiment of the other notebooks runs on what you bring, from Python (`interp.run`) or from a shell:
#
# ```
# interp run refusal-direction --model Qwen/Qwen2.5-0.5B-Instruct --prompts my_prompts --out runs/mine
# ```
#
# ## Taking it elsewhere
# A direction is one safetensors file with its place and provenance; `interp export` writes it as a llama.cpp control
# vector as well. The playground takes files, directions, several of them; here the greeting is pushed towards
# rudeness by a negative coefficient, which changes its words and hardly its tone.

# %%
interp.write_direction(folder / "politeness.safetensors", politeness)
panel = interp.playground(
    model, {"politeness": folder / "politeness.safetensors"}, prompt="Write a greeting for my boss."
)
panel.amount.value = -2.0
panel.run()
panel.wait()
panel

# %% [markdown]
# ## Mistakes
# are one line and say what to do:

# %% tags=["raises-exception"]
interp.load_prompts("my_promts")

# %% [markdown]
# Next: [10, repair](10_repair.ipynb).
