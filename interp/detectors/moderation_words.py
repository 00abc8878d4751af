"""Moderation by words alone: TF-IDF of the answer and logistic regressions, what states have to beat.

Severity is an ordinal regression on the leading components of the same TF-IDF. It reads no model; a moderator on states
that is no better has read nothing that the words do not say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.data.safe_rlhf import CATEGORIES, Answer
from interp.detectors.detector import Self
from interp.detectors.moderation import Moderation
from interp.representations.ordinal import OrdinalFit
from interp.representations.severity import Scaler, fitted_severity


@dataclass(frozen=True, eq=False, kw_only=True)
class WordsModerator:
    """Fitted on labelled answers; kept in memory only, as the baseline of a comparison."""

    vectorizer: Any
    unsafe: Any
    """Logistic regression of unsafe."""
    categories: tuple[Any, ...]
    """One for each category; None where the fitted answers do not vary."""
    scale: Scaler
    severity: OrdinalFit

    @classmethod
    def fit(cls, answers: Sequence[Answer], *, l2: float | int = 1.0, n_components: int = 64) -> Self:
        """Fit on labelled answers.

        Raises:
            ValueError: answers of one kind, or unsafe ones of one severity only.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=20000)
        x: Any = vectorizer.fit_transform([each.text for each in answers])
        unsafe = np.array([not each.safe for each in answers])
        levels = np.array([each.severity for each in answers])
        if unsafe.all() or not unsafe.any():
            raise ValueError("a moderator is fitted on safe and unsafe answers; got one kind only")
        flags = np.array([each.categories for each in answers])

        def logistic(y: Any) -> Any:
            return None if y.all() or not y.any() else LogisticRegression(C=1 / l2, max_iter=2000).fit(x, y)

        rows = np.flatnonzero(unsafe & (levels > 0))
        # The ordinal regression is dense: on as many features as the unsafe answers vary most in.
        columns = np.asarray(x[rows].sum(0)).ravel().argsort()[::-1][:512]
        scale, severity = fitted_severity(
            np.asarray(x[rows][:, columns].todense()), levels[rows], l2=l2, n_components=n_components
        )
        return cls(
            vectorizer=(vectorizer, columns),
            unsafe=logistic(unsafe),
            categories=tuple(logistic(flags[:, c]) for c in range(flags.shape[1])),
            scale=scale,
            severity=severity,
        )

    def detect(self, answers: Sequence[Answer]) -> list[Moderation]:
        """Moderate answers, in order."""
        vectorizer, columns = self.vectorizer
        x = vectorizer.transform([each.text for each in answers])
        odds = self.unsafe.decision_function(x)
        levels = self.severity.predict(self.scale(np.asarray(x[:, columns].todense())))
        flagged = [None if each is None else each.predict(x) for each in self.categories]
        return [
            Moderation(
                id=answer.id,
                category=None,
                harmfulness=float(odds[row]),
                verdict="harmful" if odds[row] > 0 else "harmless",
                severity=int(levels[row]) if odds[row] > 0 else 0,
                flags=tuple(
                    name
                    for name, said in zip(CATEGORIES, flagged, strict=True)
                    if odds[row] > 0 and said is not None and said[row]
                ),
            )
            for row, answer in enumerate(answers)
        ]
