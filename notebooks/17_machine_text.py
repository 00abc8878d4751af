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
# # 17 · Machine-written text
# Did a model write this text? *Zero-shot detectors* ask how well a model predicts it (Wu et al. 2025, a survey,
# [arXiv:2310.14724](https://arxiv.org/abs/2310.14724)); all scores of a text come from one forward pass. A score is no
# proof of authorship: it means something against texts of known origin, of the same length and kind, alone. In
# brackets are 95% intervals.

# %%
import interp
from interp.data.human_texts import bundled_passages
from interp.detectors.machine_text.figures import gltr_figure, watermark_figure
from interp.detectors.machine_text.pairs import make_pairs
from interp.detectors.machine_text.watermark_detection import find_watermark
from interp.display.cards import Card

# %% [markdown]
# ## Pairs
# As the field makes them: the model continues the first 30 tokens of a human text, and both are cut to one length.

# %%
N_PROMPTS = 12  # pairs
model = interp.load("smollm2-safe")
human = bundled_passages().first(N_PROMPTS)
pairs = make_pairs(model, human, length=70)
pairs

# %% [markdown]
# ## Scores of one text
# *GLTR* colours each token by its rank in the model's prediction: green is among the ten likeliest, yellow the
# hundred, red the thousand, purple beyond. Of this text, the model's own after 30 human tokens, 84% is green. Rest on
# a token for its number.

# %%
view = interp.gltr(model, pairs.machine.texts[0])
view

# %% [markdown]
# The same in three histograms: ranks, probabilities beside the likeliest token's, entropies of the predictions.

# %%
gltr_figure(view)

# %% [markdown]
# ## A detector
# It is calibrated on human texts: the threshold lets at most a given share of them be called machine-written, its
# *false positive rate*. With so few texts only a large one can be set. On six texts a rate of 25% may in truth be up
# to 56%.

# %%
detector = interp.MachineTextDetector.fit(model, pairs.human, pairs.machine, false_positive_rate=0.25)
detector

# %% [markdown]
# ## A watermark
# While the model writes, a secret key favours a quarter of the vocabulary after each token, the *green* tokens.
# Whoever has the key counts them: *z* is how far their number is above a quarter, in standard deviations, and 4 is the
# usual threshold. Two texts are written with a key, each after 30 human tokens, which are unmarked. The longer one
# passes with z = 5.1, shown here token by token; the other, of 49 tokens, stays at 1.9. With another key there is
# nothing to find: -0.4 and -0.5.

# %%
watermark = interp.Watermark.of_model(model, key=7919, delta=4.0)
other = interp.Watermark.of_model(model, key=104729, delta=4.0)
marked = make_pairs(model, human.first(2), length=70, processors=[watermark]).machine.texts
found = {
    name: find_watermark(model, marked, key) for name, key in (("its key", watermark), ("another", other))
}
watermark_figure(found["its key"][1])

# %%
zs = {f"z with {name}": [round(one.z, 1) for one in ones] for name, ones in found.items()}
Card(title="Two marked texts", facts=zs)

# %% [markdown]
# ## The whole study
# `interp run machine-text` asks every detector about 200 pairs of 150 tokens. *AUROC* is the share of pairs of a
# machine-written and a human text that a score puts in the right order; in brackets are 95% intervals. The model's own
# text is easy to find, by likelihood alone (0.99) almost as well as by Fast-DetectGPT (1.00). Entropy has the other
# sign: the model is less uncertain on its own text.

# %%
study = interp.open_run("../figures/machine-text")
figures = study.figures()
figures["detectors"]

# %% [markdown]
# What hides the text: paraphrases by the model itself do not (0.99 [0.98, 1.00] by Fast-DetectGPT), human sentences
# mixed in do in part (0.81 [0.72, 0.89]).

# %%
figures["attacks"]

# %% [markdown]
# From which depth on it shows: the *logit lens* reads each block's output as if it were the last.

# %%
figures["lens"]

# %% [markdown]
# Texts written under interventions, each beside a random direction of equal norm. A direction fitted on the two kinds
# of text moves the scores by 2.16 [1.91, 2.41] standard deviations, a random one by 0.43 [0.28, 0.60].

# %%
figures["interventions"]

# %% [markdown]
# What was claimed, and what is seen here.

# %%
print("\n\n".join(study.verdicts()))

# %% [markdown]
# From a shell: `interp detect fit` and `interp detect score`.
