"""Inputs of models: prompt sets, jailbreak wrappers, corpora, training examples and replies.

The built-in sets are package data in `assets/`.
Never runs a model.

Hands out:
`Corpus`, `default_corpora`, `read_corpus`, `Example`, `ExampleSplits`, `Preference`, `prompt_lines`, `PromptSet`,
`Prompts`, `load_prompts`, `query_examples`, `query_splits`, `read_answered`, `read_prompts`, `find_suffixes`,
`TASK_FORMATS`, `TaskFormat`, `read_task`, `Task`, `TaskProvenance`, `load_task`, `stubs`, `Attempt`, `Wrapper`,
`attempts`, `read_attacks`, `read_suffixes`, `with_held_out`, `SAFETY_TEXTS`, `safety_text`, `adopt`, `fetch`,
`named_rows`, `Overlap`, `overlap`, `DataSet`, `data_set`, `known_sets`, `CheckedSet`, `check_set`,
`load_preferences`, `PairLabels`, `PreferencePair`, `PreferenceSet`, `builtin_preferences`, `cut_by_prompt`,
`Question`, `Questions`, `load_questions`, `read_questions`, `Answer`, `Pair`, `check_copy`, `read_answers`,
`read_pairs`, `miniature`, `PreferenceTree`, `read_trees`, `tree_pairs`, `write_trees`, `PlantedRow`, `kind_of`,
`planted_rows`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
