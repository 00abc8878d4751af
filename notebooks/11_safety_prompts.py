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
# # 11 · Safety prompts
# What does a system prompt that asks for safety move inside a model, and can a better one be trained there? Zheng et
# al. 2024, *On Prompt-Driven Safeguarding for Large Language Models*
# ([arXiv:2401.18018](https://arxiv.org/abs/2401.18018)). Results are read from a stored run of `smollm2-safe`; in
# brackets are 95% intervals over 32 held-out queries of each kind where nothing else is said.
#
# - The *state* of a query is read at the prompt's last token, after the final norm.
# - The *plane*: four principal components of training queries' states, without a system prompt and under three *safety
#   prompts* (`default`, `short`, `mistral`, texts of this project).
# - In it two boundaries are fitted: harmful against harmless queries, and the probability that the model refuses. The
#   *normal* of each points towards harmful, or towards more refusal. A *shift* is what a system prompt adds to a
#   state.
# - The controls: a *neutral* system prompt that asks for nothing safe, a plane of shuffled labels, and a *random soft
#   prompt*.

# %%
import interp
from interp.data.safety_texts import safety_text
from interp.display.cards import Card
from interp.display.tables import Table
from interp.training.config import SafetyPromptConfig

run = interp.open_run("../figures/safety-prompts")
figures = run.figures()

# %% [markdown]
# **Figure 3.** The paper: without a safety prompt, harmful and harmless queries lie apart. Here, too: on held-out
# queries the boundary has an AUROC of 1.00 [0.98, 1.00], one of shuffled labels 0.68 [0.53, 0.81]. The paper: safety
# prompts move queries in similar directions. Here, too: the mean shifts of harmful queries have a cosine of 0.83
# [0.81, 0.84] with each other, with that of the neutral prompt 0.63 [0.59, 0.66].

# %%
figures["fig03_plane"]

# %% [markdown]
# The paper: that direction leads towards refusal, also for harmless queries. Here it has both signs: along the refusal
# normal harmful queries move by -0.19 [-1.03, 0.69] under `default` and by -2.07 [-2.89, -1.18] under `mistral`,
# harmless ones by 2.09 [0.93, 3.35] and -0.13 [-1.06, 0.81]. Most of every shift lies outside both normals.

# %%
figures["shifts"]

# %% [markdown]
# ## A prompt that is trained
# *DRO*, directed representation optimisation, trains the embeddings of the system prompt in place of its words (a
# *soft prompt*): harmful queries are to move along the refusal normal, harmless ones against it, and nothing else.
# *Prompt tuning*, the baseline, trains them to make refusals and answers likely. Both start from the default text.
#
# **Figure 5.** The paper: DRO does so. Here, too: harmful queries move by 4.58 [3.65, 5.48], harmless ones by -2.58
# [-3.45, -1.78], where a random soft prompt moves them the other way, by -4.01 [-4.90, -3.11] and 2.33 [1.26, 3.31].

# %%
figures["fig05_after_training"]

# %% [markdown]
# Whether it lowers compliance cannot be tested on this model, which complies with 1 of 32 harmful queries under the
# text already. What can be read is the probability of refusing in the first token: DRO moves it the wanted way by
# +0.035 [0.011, 0.067], prompt tuning the other way (-0.068 [-0.123, -0.017]). *KL* is how far the distribution over
# next tokens has moved.

# %%
figures["refusals"]

# %% [markdown]
# The paper takes both boundaries for two things and finds that the refusal term of the loss does the work. Here both
# normals have a cosine of 1.00, so the two terms cannot be told apart.
#
# ## By hand
# A few queries, a plane of the default text alone, and a few steps of DRO.

# %%
N_PROMPTS = 12  # queries of each kind
model, prompts = interp.load("smollm2-safe"), interp.load_prompts("builtin")
harmful, harmless = (prompts[kind, "train"].first(N_PROMPTS) for kind in ("harmful", "harmless"))
settings = SafetyPromptConfig(texts=("default",), epochs=4, batch_size=2 * N_PROMPTS)
trained = interp.safety_prompt(model, harmful, harmless, config=settings)
trained

# %% [markdown]
# A harmless question is still answered under the text and under the trained prompt.

# %%
question = "How do I bake bread?"
ask = {"max_new_tokens": 20}
under_text = interp.tokenize(model.tokenizer, [question], system=safety_text("default"))
answers = {
    "none": interp.generate(model, question, **ask),
    "default": interp.generate(model, under_text, **ask),
    "trained by DRO": interp.generate(model, question, safety_prompt=trained, **ask),
}
rows = [(name, done.answers[0]) for name, done in answers.items()]
Card(title=question, tables=[Table(header=("system prompt", "answer"), rows=rows)])

# %% [markdown]
# A trained prompt is one file for its model: `trained.save("prompt.safetensors")`, `interp.SafetyPrompt.read(...)`.
#
# Next: [12, rewards and preferences](12_rewards.ipynb).
