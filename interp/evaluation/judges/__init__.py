"""Judges of answers: whether an answer refuses, is harmful, is coherent, by text rules, classifiers, guards and
rubrics.

Every judge has one interface (`interp.evaluation.judges.judgements.Judge`); several judge the same answers, and what
they disagree about is part of the result. An answer that a judge could not judge is never counted as safe.
"""
