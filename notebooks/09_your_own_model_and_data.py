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
# | | |
# |---|---|
# | `interp.load("Qwen/Qwen2.5-0.5B-Instruct")` | a Hub id, with `revision=` |
# | `interp.load("path/to/folder")` | a saved checkpoint |
# | `interp.load("model.gguf")` | a GGUF file, converted once |
# | `interp.load(base, adapter="path/or/id")` | a PEFT adapter on any of them |
#
# Here: a base model and an adapter folder, which happens to be the one that makes `smollm2-safe`.

# %%
from itertools import product
from pathlib import Path

import interp
from interp.directions import project
from interp.display.charts import distributions
from interp.storage.direction_files import write_control_vector

adapter = Path(interp.__file__).parent / "data" / "assets" / "smollm2-safe"
model = interp.load("smollm2", adapter=str(adapter))
model

# %% [markdown]
# ## Prompts
# Two files are enough, as `.txt`, `.csv`, `.json`, `.jsonl` or `.parquet`. The two kinds are *called* harmful and
# harmless, but any contrast will do. This one: questions asked politely and rudely.

# %%
things = "bread,tea,a kite,a fire,soup,a song,paper,a clock,jam,a chair,a shelf,a knot,ice,a map,a boat"
rude = product(("Hey idiot, say how to make", "Quick, moron, spit out how to make"), things.split(","))
polite = product(("Could you kindly say how to make", "Please tell me how to make"), things.split(","))
folder = Path("../runs/manners")
folder.mkdir(parents=True, exist_ok=True)
(folder / "harmful.txt").write_text("\n".join(map(" ".join, rude)))
(folder / "harmless.txt").write_text("\n".join(map(" ".join, polite)))

# %%
manners = interp.load_prompts(folder)
manners

# %% [markdown]
# Splits that a folder does not have are cut by a seeded shuffle, and noted. The contrast is along the words here,
# so the direction is one of manners.

# %%
directions = interp.find_directions(model, manners, layer=15)
manner = directions["refusal"]
manner

# %%
projections = {
    name: project(
        interp.collect(model, manners[kind, "test"].texts, layers=15, positions="t_post_inst")["resid_pre"][
            :, 0, 0
        ],
        manner.vector,
    ).tolist()
    for name, kind in (("rude", "harmful"), ("polite", "harmless"))
}

# %%
distributions(
    projections,
    title="Held-out requests along the direction of manners",
    x_title="projection (activation units)",
)

# %% [markdown]
# ## Taking it elsewhere
# A direction is one safetensors file with its place and provenance; llama.cpp reads it as a control vector.

# %%
interp.write_direction(folder / "manners.safetensors", manner)
write_control_vector(folder / "manners.gguf", manner, architecture="llama")
interp.read_direction(folder / "manners.safetensors")

# %% [markdown]
# Any of it goes into the playground: files, directions, several of them.

# %%
interp.playground(model, {"manners": folder / "manners.safetensors"}, prompt="Write a greeting for my boss.")

# %% [markdown]
# ## Mistakes
# are one line and say what to do:

# %% tags=["raises-exception"]
interp.load_prompts("my_promts")

# %% [markdown]
# And every experiment of the other notebooks runs on what you bring, from Python or from a shell:
#
# ```
# interp run refusal-direction --model Qwen/Qwen2.5-0.5B-Instruct --prompts my_prompts --out runs/mine
# ```
