"""Evaluating completions and distributions: refusals, judges, losses, compression, scorers, tasks.

Numbers are `interp.stats.Estimate` objects.
Never changes a model.

Hands out:
`CodeLengths`, `bits`, `KLFrom`, `cross_entropy`, `kl_divergence`, `text_cross_entropy`, `text_windows`, `token_kl`,
`BehavingCount`, `Flag`, `RefusalRates`, `RefusalTokens`, `Reply`, `find_refusal_tokens`, `is_refusal`,
`refusal_metric`, `refusal_rate`, `refusal_scores`, `Responses`, `behaving_rows`, `is_incoherent`, `respond`,
`respond_each`, `Scorer`, `scorer`, `DownstreamTask`, `downstream_task`, `score_model`, `BinaryF1`, `Metric`,
`command_accuracy`, `exact_match`, `rouge_1`, `sql_exact_match`, `RefusalSamples`, `any_of_k`, `first_token_refusal`,
`sample_refusals`, `single_sample`, `string_judge`, `letter_of`, `released_letter`, `ChoiceAnswer`, `ChoiceScores`,
`Stability`, `g_pass`, `leaderboard_row`, `read_outputs`, `score_answers`, `stability`, `voted`, `voted_by_models`,
`ChoiceFormat`, `OptionScores`, `option_scores`, `replied_answers`, `agreement`, `cohen_kappa`, `fleiss_kappa`,
`Exchange`, `Judge`, `Judgement`, `judge_all`, `load_judges`, `Verdicts`, `refusal_verdicts`, `refusal_verdicts_each`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
